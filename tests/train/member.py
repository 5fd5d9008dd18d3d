"""One process of a run, of each kind of objective: python member.py line|denoise|vae WORKDIR [FIELD=VALUE ...]

Each process makes whole batches, as a run of one process does, and brings its part of them: so the runs of one process
and of two are of the same clips, and their losses can be compared. Trains as `standin.run`.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import standin

from dit_video.core.cluster import join_cluster
from dit_video.data.buckets import Bucket
from dit_video.data.loader import Toyworld
from dit_video.data.pool import Pool
from dit_video.train.denoise import Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.optim import Optimizer
from dit_video.train.vae import Cut, Reconstruct


class Alone(Experiment):
    """Brings all of a batch."""

    def part(self):
        return 0, 1


class Part:
    """A process's part of every batch of a stream."""

    def __init__(self, stream, part, parts):
        self.stream, self.part, self.parts = stream, part, parts
        self.state, self.restore = stream.state, stream.restore

    def __iter__(self):
        return self

    def __next__(self):
        def cut(x):
            assert len(x) % self.parts == 0
            return x.reshape(self.parts, -1, *x.shape[1:])[self.part]

        return jax.tree.map(cut, next(self.stream))


def parted(objective):
    """The objective, whose streams are parts of those of a run of one process."""

    class Parted(type(objective)):
        def stream(self, experiment, *args, **more):
            fields = {field.name: getattr(experiment, field.name) for field in dataclasses.fields(experiment)}
            return Part(super().stream(Alone(**fields), *args, **more), *experiment.part())

    fields = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
    return Parted(**fields)


def experiments(workdir):
    """Of each kind; `workdir`/../model holds the VAE that the denoiser stands on."""
    from miniature import DIT, TEXT, VAE

    small = Experiment(
        objective=None, data=Toyworld(), buckets=(Bucket(9, 32, 32),), optimizer=Optimizer(lr=1e-3, warmup=2),
        steps=4, batch=8, ema=(0.5, 0.9), checkpoint_every=4, eval_every=4, eval_batches=1, log_every=1, sample_every=0,
    )  # fmt: skip
    denoise = Denoise(
        dit=DIT, text=dataclasses.replace(TEXT, vocab=256), pool=Pool(clips=16, reuse=2.0, pictures=2, chunk=8),
        tokens=32, crops=(Crop(2),), tokenizer_captions=200,
    )  # fmt: skip
    vae = Reconstruct(vae=VAE, cuts=(Cut(5, 16),), statistics=8)
    return {
        "line": standin.EXPERIMENT,
        "denoise": dataclasses.replace(small, objective=denoise, vae=str(workdir.parent / "model")),
        "vae": dataclasses.replace(small, objective=vae),
    }


def main(kind, workdir, *changes):
    join_cluster(240)
    experiment = experiments(Path(workdir))[kind]
    experiment = dataclasses.replace(experiment, objective=parted(experiment.objective))
    standin.run(experiment, workdir, *changes, sample=lambda *_: None)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(*sys.argv[1:])
