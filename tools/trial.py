"""Short trainings that are compared: how long each may be, and what came of it.

A training is `dit-video train` in a process of its own; one that was stopped goes on. What it is worth: the velocity
error at fixed times on encoded clips that no training sees, with the same noise for all, and the judge's scores of
clips made with it.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import COMMAND

SCORES = ("readable", "colour", "shape", "motion", "direction", "all")
TIMES = (0.4, 0.75, 0.9, 0.97)
AT_ONCE = 32  # clips whose error is computed in one batch
DRAWN = 32  # batches of which a step's FLOPs are the mean: they differ in shape

Fields = dict[str, str]


def parser(about: str, out: str) -> argparse.ArgumentParser:
    """What these tools are given."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", required=True, help="encoded clips: a folder that `dit-video data build` made")
    made.add_argument("--experiment", default="toyworld", help="(default %(default)s)")
    made.add_argument("--runs", type=Path, default=Path(out), help="folder of the trainings (default %(default)s)")
    made.add_argument("--count", type=int, default=96, help="prompts for the judge (default %(default)s)")
    made.add_argument("--clips", type=int, default=256, help="held-out clips for the error (default %(default)s)")
    made.add_argument("--only", action="append", help="these alone, by their names; repeatable")
    made.add_argument("--quick", action="store_true", help="hardly any training: to see that it works")
    made.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON")
    return made


def said(*args: str) -> dict[str, Any]:
    """What a `dit-video` command prints as JSON."""
    done = subprocess.run([*COMMAND, *args, "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def manifest(data: str) -> dict[str, Any]:
    """Of encoded clips."""
    from dit_video.data.shards import read_manifest
    from dit_video.data.store import Store

    return read_manifest(Store(data))


def clips(data: str) -> int:
    """How many there are to train on."""
    return sum(sum(shard["counts"]) for shard in manifest(data)["parts"]["train"])


def identity(name: str, data: str, init: str | None = None) -> dict[str, Any]:
    """What a training is made of, by digests, as names stay when their content changes: the experiment, the encoder of
    its clips, and the weights that it starts from."""
    from dit_video import VideoPipeline
    from dit_video.core.config import digest, load_experiment

    experiment = {"name": name, "digest": digest(load_experiment(name))}
    start = {"init": {"name": init, "hash": VideoPipeline.from_pretrained(init).hash}} if init else {}
    return {"experiment": experiment, "vae": manifest(data)["vae"]["digest"], **start}


def flops_a_step(name: str, data: str, fields: Fields, init: str | None) -> float:
    """Of the experiment with these fields: the mean over its first batches, nothing for the optimizer."""
    from dit_video.core.config import load_experiment, override
    from dit_video.data.latents import Latents
    from dit_video.train.step import initial_params, model_flops
    from dit_video.weights.runs import Run

    changed = replace(load_experiment(name), data=Latents(data), init=init, vae=manifest(data)["vae"]["name"])
    experiment = override(changed, fields)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        run.create()
        objective, base = experiment.objective.resolve(experiment, run)
        stream, key = objective.stream(experiment, base, held_out=False), jax.random.key(0)
        params = jax.eval_shape(lambda: initial_params(objective, experiment.rules, key))
        known: dict[Any, float] = {}
        total = 0.0
        for _ in range(DRAWN):
            batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), next(stream))
            shape = str(batch)
            if shape not in known:
                known[shape] = model_flops(objective, experiment.rules, params, batch, key)
            total += known[shape]
    return total / DRAWN


def train(run: Path, name: str, data: str, fields: Fields, steps: int, init: str | None = None) -> None:
    """Trains to so many steps, from where it was. SystemExit where the run is that of another training."""
    from dit_video.weights.runs import Run

    told = {"experiment": name, "data": str(data), "init": init, **fields, "made_of": identity(name, data, init)}
    note = run / "trial.json"
    if note.is_file() and (before := json.loads(note.read_text())) != told:
        raise SystemExit(f"{run} is a training of {before}, not of {told}: give other --runs")
    run.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(told) + "\n")
    if Run(run).has_checkpoint() and max(Run(run).checkpoints().steps(), default=0) >= steps:
        return
    often = {"sample_every": "0", "checkpoint_every": str(max(100, steps // 4)), "eval_every": str(steps)}
    given = [f"--{key}={value}" for key, value in (often | {"eval_batches": "1"} | fields).items()]
    start = ["--init", init] if init else []
    said("train", name, "--workdir", str(run), "--data", data, "--vae", manifest(data)["vae"]["name"], *start,
         f"--steps={steps}", *given)  # fmt: skip


def speed(run: Path) -> float | None:
    """Training clips a second; None for a run that was too short to tell."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["clips_per_second"] for line in lines if line.get("clips_per_second")]
    return len(rates) / sum(1 / rate for rate in rates) if rates else None


def velocity_error(model: Any) -> Callable[..., Any]:
    """A function of latents (B, T, H, W, C), noise, one time, tokens (B, L) and their lengths (B,): the mean squared
    error of the velocity of each clip (B,), without guidance."""
    from dit_video.diffusion.flow import RectifiedFlow, training_time
    from dit_video.weights.folder import read
    from dit_video.weights.model import abstract

    path = RectifiedFlow()
    graphs = {part: nnx.split(abstract(getattr(model, part)))[0] for part in ("dit", "text")}
    params = jax.device_put({part: read(model.params[part], np.float32) for part in graphs})

    @jax.jit
    def error(params: Any, z: Any, noise: Any, t: Any, ids: Any, length: Any) -> Any:
        time = training_time(jnp.full(len(z), t), jnp.zeros(z.shape[:4], bool))
        text = nnx.merge(graphs["text"], params["text"])(ids, length)
        x = path.add_noise(z, noise, time.field(z.shape))
        velocity = nnx.merge(graphs["dit"], params["dit"])(x, time, text, None)
        return jnp.square(velocity - path.velocity_target(z, noise)).mean((1, 2, 3, 4))

    return lambda z, noise, t, ids, length: error(params, z, noise, np.float32(t), ids, length)


def velocity_errors(model: Any, data: str, count: int) -> list[float]:
    """Mean squared error of the velocity at each of TIMES, of held-out clips of the model's own size and their
    captions."""
    from dit_video.data.buckets import Bucket
    from dit_video.data.latents import Latents

    d, vae = model.defaults, model.vae
    reader = Latents(data, noise=0.0).open((Bucket(d.num_frames, d.height, d.width),), held_out=True)
    found = [sample for i in range(min(count, reader.total)) if (sample := reader.load(i)) is not None]
    raw = np.stack([sample.arrays["latents"] for sample in found])
    z = (raw - np.float32(vae.latents_mean or 0)) / np.float32(vae.latents_std or 1)
    tokens = model.tokenizer.encode([sample.caption for sample in found], max_length=model.dit.text_len)
    noise = np.random.default_rng(0).standard_normal(z.shape, np.float32)
    error = velocity_error(model)
    at_once = min(AT_ONCE, len(z))
    parts = [slice(i, i + at_once) for i in range(0, len(z) - at_once + 1, at_once)]
    return [float(np.mean([error(z[p], noise[p], t, tokens.ids[p], tokens.length[p]) for p in parts])) for t in TIMES]


def judged(run: Path, count: int, *flags: str) -> dict[str, Any]:
    """The report of `dit-video eval`."""
    line = ["eval", "--model", str(run), "--prompts", "plain", "--count", str(count), "--out", str(run / "report")]
    return said(*line, "--seeds", "0", "--free", "0", "--references", "0", "--quiet", *flags)


def cells(scores: dict[str, Any]) -> list[float | None]:
    """Scores as they stand in a row."""
    return [scores[name]["value"] if name in scores else None for name in SCORES]


def parameters(model: Any) -> int:
    """Of what is trained."""
    return sum(x.size for part in ("dit", "text") for x in jax.tree.leaves(model.params[part]))
