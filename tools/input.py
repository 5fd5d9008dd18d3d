"""Measures how fast clips come in: from latent shards, from video files, and what a training step waits for them.

    python tools/input.py    # tools/results/input.json, for tools/tables.py

Needs the package installed, and a machine with nothing else to do. The shards hold random numbers in the sizes of two
experiments, read by the stream that training uses, from files that the system has in memory.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, store

from dit_video.core.config import load_experiment
from dit_video.data.buckets import Bucket
from dit_video.data.build import Builder, Material, Options
from dit_video.data.latents import Latents
from dit_video.data.scenes import Clip, Cut, Cutting, cut_file
from dit_video.data.shards import HELD_OUT, TRAIN, Posterior
from dit_video.data.store import Store
from dit_video.data.video import write_video
from dit_video.data.workers import run
from dit_video.train.ahead import Ahead
from dit_video.weights.encoder import encoder_digest
from dit_video.weights.runs import Run, load_vae

H200_TFLOPS = 989 * 0.42  # dense bf16 of the data sheet, and the part of it that training is meant to reach
# (words, bucket, clips in the shards, a host's clips a step)
SIZES = (
    ("17 frames of 64x64", Bucket(17, 64, 64), 512, 32),
    ("81 frames of 832x480", Bucket(81, 480, 832), 16, 4),
)
SMALL_STEP = 0.1  # seconds of a step of 64x64; that of the large clips is planned


def shards(folder: Path, bucket: Bucket, count: int) -> Latents:
    """Shards of random latents in the size that the VAE on board makes of a bucket."""
    config, params = load_vae(None)
    shape = config.latent_shape(bucket.frames, bucket.height, bucket.width)
    rng = np.random.default_rng(0)

    def make(item: str) -> Iterator[Clip]:
        yield Clip(0, f"a red circle moves right and a blue square moves up, number {item}", {"n": np.zeros(1)}, {})

    def encode(arrays: Any, which: int, numbers: np.ndarray) -> tuple[Posterior, Posterior]:
        def draw(*size: int) -> Posterior:
            return Posterior(rng.standard_normal(size, np.float32), np.full(size, 0.01, np.float32))

        return draw(1, *shape), draw(*numbers.shape, *shape[1:])

    items = {TRAIN: [str(i) for i in range(count)], HELD_OUT: []}
    vae = {"name": "board", "digest": encoder_digest(config, params)}
    material = Material(items, make, None, {})
    Builder(Store(folder), material, (bucket,), encode, vae, Options(pictures=2, chunk=1, items=128)).run()
    return Latents(str(folder))


def fastest_step(plans: Path = RESULTS / "plan.json") -> float:
    """Seconds of the fastest training step that is planned for a ready experiment (tools/plan_table.py)."""
    stored = json.loads(plans.read_text())
    rows = [dict(zip(stored["columns"], row, strict=True)) for row in stored["rows"]]
    training = (row for row in rows if row["fits"] and "generate" not in row["experiment"])
    return min(row["step or clip, s"] for row in training if row["step or clip, s"] is not None)


def run_on(name: str, folder: Path, source: Latents, bucket: Bucket, batch: int) -> tuple[Any, Any, Any]:
    """An experiment on these shards, and its objective and weights to start from."""
    e = load_experiment(name)
    slots = 1 + (bucket.frames - 1) // 4
    crops = (replace(e.objective.crops[0], slots=slots, share=1.0),)
    e = replace(e, data=source, buckets=(bucket,), batch=batch, objective=replace(e.objective, crops=crops))
    work = Run(folder / "run")
    work.create()
    return e, *e.objective.resolve(e, work)


def batches(folder: Path, source: Latents, bucket: Bucket, batch: int) -> Any:
    """The stream of a run of toyworld on these shards."""
    e, objective, base = run_on("toyworld", folder, source, bucket, batch)
    return objective.stream(e, base, held_out=False)


def flops_a_clip(name: str, folder: Path, source: Latents, bucket: Bucket, batch: int = 2) -> float:
    """Of a training step of an experiment on these shards, its text encoder and attention too."""
    import jax

    from dit_video.train.step import initial_params, model_flops

    e, objective, base = run_on(name, folder, source, bucket, batch)
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: initial_params(objective, e.rules, key))
    drawn = next(objective.stream(e, base, held_out=False))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), drawn)
    return model_flops(objective, e.rules, params, shapes, key) / batch


def rate(stream: Any, clips: int, seconds: float = 5.0) -> float:
    """Clips a second."""
    next(stream)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(stream)
        count += clips
    return count / (time.perf_counter() - start)


def waiting(stream: Any, step: float, steps: int = 20) -> float:
    """The part of the time that a loop waits for batches when a step is a sleep."""
    ahead = Ahead(stream, lambda batch: batch)
    ahead.next()
    waited = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        ahead.next()
        waited += time.perf_counter() - start
        time.sleep(step)
    ahead.close()
    return waited / (waited + steps * step)


def eaten(bucket: Bucket, parameters: float) -> float:
    """Clips a second that an H200 takes for a denoiser of `parameters`: six FLOPs a weight and token, attention aside,
    so rather more than it will."""
    tokens = (1 + (bucket.frames - 1) // 4) * bucket.height * bucket.width / 256
    return H200_TFLOPS * 1e12 / (6 * parameters * tokens)


def films(folder: Path, count: int = 4, seconds: int = 8) -> list[Path]:
    """Videos of 832x480 at 24 frames a second: a textured picture that moves."""
    rng = np.random.default_rng(0)
    texture = rng.integers(40, 215, (70, 120, 3)).astype(np.float32).repeat(8, 0).repeat(8, 1)
    found = []
    for n in range(count):
        frames = [texture[k % 60 : k % 60 + 480, (2 * k) % 120 : (2 * k) % 120 + 832] for k in range(24 * seconds)]
        found.append(write_video(folder / f"{n}.mp4", np.stack(frames).astype(np.uint8), 24, crf=23))
    return found


def read(path: Path) -> Iterator[int]:
    """Frames of the clips of a file, without the pixels, which would have to travel between processes."""
    for cut in cut_file(path, (Bucket(33, 480, 832),), Cutting(fps=16)):
        if isinstance(cut, Cut):
            yield len(cut.frames)


def decoding(paths: list[Path], workers: int) -> float:
    """Frames of the files a second, decoded, told apart by scenes, scaled and cut. The processes' start is left out: a
    picture is their first item."""
    first = write_video(paths[0].with_name("first.png"), np.zeros((1, 480, 832, 3), np.uint8), 1)
    start, clips = 0.0, 0
    for number, result in run(read, [first] * workers + paths, workers):
        if number < workers:
            start = time.perf_counter()
        clips += isinstance(result, int)
    assert clips, "the files gave no clip"
    return 24 * 8 * len(paths) / (time.perf_counter() - start)


def main() -> None:
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for n, (words, bucket, count, batch) in enumerate(SIZES):
            step = fastest_step() if n else SMALL_STEP
            folder = Path(name) / str(n)
            source = shards(folder / "shards", bucket, count)
            stream = batches(folder, source, bucket, batch)
            size = sum(
                s["bytes"] for s in json.loads((folder / "shards" / "manifest.json").read_text())["parts"][TRAIN]
            )
            rows += [
                [f"clips a second from shards, {words}", rate(stream, batch)],
                [f"MB a clip, {words}", size / count / 1e6],
                [
                    f"% of the time spent waiting, {batch} clips a step of {step:.3g} s, {words}",
                    100 * waiting(stream, step),
                ],
            ]
            if n:
                who, eats = "at 1.3B parameters", eaten(bucket, 1.3e9)
            else:
                who = "of toyworld_gpu_1"
                eats = H200_TFLOPS * 1e12 / flops_a_clip("toyworld_gpu_1", folder / "gpu", source, bucket)
            rows.append([f"clips a second that an H200 takes {who}, {words}", eats])
        videos = films(Path(name))
        for workers in (1, 2):
            rows.append([f"frames a second from MP4 of 832x480, {workers} process(es)", decoding(videos, workers)])
    store("input", made_by="python tools/input.py", columns=["input", ""], rows=rows)


if __name__ == "__main__":
    main()
