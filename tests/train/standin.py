"""A small objective for tests of the loop: a linear layer learns a known matrix. Also run as a program:

python standin.py WORKDIR [FIELD=VALUE ...]   as `run`
"""

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_video.core.config import override
from dit_video.core.errors import DitVideoError
from dit_video.data.buckets import Bucket
from dit_video.data.loader import Toyworld, generator
from dit_video.train.experiment import Experiment
from dit_video.train.optim import Optimizer


class Numbers:
    """Batches that are functions of (seed, place)."""

    def __init__(self, seed, batch, width, bad):
        self.seed, self.batch, self.width, self.bad, self.place = seed, batch, width, bad, 0

    def state(self):
        return {"place": self.place}

    def restore(self, state):
        self.place = state["place"]

    def __next__(self):
        rng = generator(self.seed, self.place)
        self.place += 1
        x = rng.standard_normal((self.batch, self.width)).astype(np.float32)
        y = x @ np.arange(self.width * 2, dtype=np.float32).reshape(self.width, 2) / 10
        if self.place in self.bad:
            y[0] = np.nan
        return {"x": x, "y": y}


class Layer(nnx.Module):
    def __init__(self, width, rngs):
        axes = {"kernel_metadata": {"axes": ("width", None)}, "bias_metadata": {"axes": (None,)}}
        self.linear = nnx.Linear(width, 2, rngs=rngs, **axes)


@dataclass(frozen=True)
class Line:
    """The objective."""

    width: int = 8
    noise: float = 0.01
    bad: tuple[int, ...] = ()  # batches with NaN in them

    def resolve(self, experiment, run):
        return self, None

    def modules(self, rules, rngs):
        return {"line": Layer(self.width, rngs)}

    def initial(self, base):
        return None

    def frozen(self, base, mesh, rules):
        return None

    def loss(self, modules, batch, key, rules):
        import jax

        out = modules["line"].linear(batch["x"]) + self.noise * jax.random.normal(key, batch["y"].shape)
        loss = jnp.mean(jnp.square(out - batch["y"]))
        return loss, {"largest": jnp.max(jnp.abs(out))}

    def stream(self, experiment, base, held_out, beat=lambda: None):
        return Numbers(experiment.seed + 1000 * held_out, experiment.batch, self.width, () if held_out else self.bad)

    def model(self, params, base):
        return params

    def finish(self, params, experiment, base, run):
        (run.path / "finished").write_text(str(float(np.sum(params["line"]["linear"]["kernel"]))))


EXPERIMENT = Experiment(
    objective=Line(),
    data=Toyworld(),
    buckets=(Bucket(1, 16, 16),),
    optimizer=Optimizer(lr=0.05, warmup=2, weight_decay=0.0),
    steps=40,
    batch=8,
    ema=(0.5, 0.9),
    checkpoint_every=5,
    eval_every=10,
    eval_batches=2,
    sample_every=0,
    log_every=5,
)


def small(**changes: Any) -> Experiment:
    return dataclasses.replace(EXPERIMENT, **changes)


def run(experiment: Experiment, workdir: str, *changes: str, **more: Any) -> None:
    """Trains with the fields that are changed and prints the summary; exits as the command line does. A pause before
    each step (PAUSE, seconds) makes room for signals."""
    from dit_video.train.loop import Trainer, train

    pause, whole = float(os.environ.get("PAUSE", "0")), Trainer._flops
    Trainer._flops = lambda *args: (time.sleep(pause), whole(*args))[1]
    experiment = override(experiment, dict(change.split("=", 1) for change in changes))
    try:
        print(json.dumps(train(experiment, workdir, **more)))
    except DitVideoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run(EXPERIMENT, *sys.argv[1:])
