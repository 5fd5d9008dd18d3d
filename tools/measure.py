"""Measures what the README's tables say, and stores it where tools/tables.py finds it.

    python tools/measure.py generate   # from a cold process to the file: with an empty compile cache, and again
    python tools/measure.py train      # steps of the toyworld experiment, and what part of the measured peak they are
    python tools/measure.py toyworld   # 96 plain prompts, made with the weights on board and judged
    python tools/measure.py image      # the same from a given first frame: is it kept, and is the prompt followed

Needs the package installed, and a machine with nothing else to do.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PROMPT = "a red circle moves right"
COMMAND = [sys.executable, "-m", "dit_video.cli.main"]


def machine() -> str:
    """Cores and their make, and the versions that matter."""
    from importlib.metadata import version

    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []  # fmt: skip
    chip = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {chip}, Python {platform.python_version()}, JAX {version('jax')}"


def write(name: str, folder: Path = RESULTS, **data: Any) -> dict[str, Any]:
    """NAME.json, with machine (unless it is given) and date."""
    data = {**data, "machine": data.get("machine") or machine(), "date": datetime.date.today().isoformat()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    return data


def store(name: str, **data: Any) -> None:
    print(json.dumps(write(name, **data), indent=1))


def command(*args: str, cwd: Path, **env: str) -> tuple[dict[str, Any], float]:
    """What `dit-video ... --json` prints, and its seconds from start to end of the process."""
    start = time.perf_counter()
    done = subprocess.run(
        [*COMMAND, *args, "--json", "--quiet"], cwd=cwd, env={**os.environ, **env}, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout), time.perf_counter() - start


def generate() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = [command("generate", PROMPT, "--seed", "0", "--output", f"{i}.mp4", cwd=Path(folder),
                        JAX_COMPILATION_CACHE_DIR=f"{folder}/cache") for i in range(3)]  # fmt: skip
    first, second = runs[0], min(runs[1:], key=lambda run: run[1])
    about = first[0]
    rows: list[list[Any]] = [["from the command to the file", first[1], second[1]]]
    rows += [[f"of it: {name}", spent, second[0]["seconds"].get(name)] for name, spent in about["seconds"].items()]
    size = f"{about['frames']} frames of {about['width']}x{about['height']}, {about['steps']} steps"
    columns = [f"seconds for {size}", "empty compile cache", "second time"]
    store("generate", made_by="python tools/measure.py generate", columns=columns, rows=rows)


def product(size: int = 3072, dtype: str = "float32") -> Callable[[], Any]:
    """A product of two square matrices, compiled: 2 size^3 FLOPs."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
    return partial(jax.jit(lambda a: a @ a).lower(a).compile(), a)


def matmul_peak(size: int = 3072, repeats: int = 12) -> float:
    """The best of several float32 matrix products, in GFLOP/s."""
    call = product(size)
    call().block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call().block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def train(steps: int = 100) -> None:
    before = matmul_peak()
    with tempfile.TemporaryDirectory() as folder:
        every = [f"--{name}={10 * steps}" for name in ("sample_every", "eval_every", "checkpoint_every")]
        command("train", "toyworld", "--workdir", "run", f"--steps={steps}", *every, cwd=Path(folder))
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    # The first reports hold the compilation of each shape; a run's own speed is that of its second half.
    late = [line for line in lines if "gflops" in line and line["step"] > steps / 2]
    # A report is of so many clips, each took what its rate says.
    seconds = [1 / line["clips_per_second"] for line in late]
    gflops = sum(line["gflops"] * spent for line, spent in zip(late, seconds, strict=True)) / sum(seconds)
    clips = len(late) / sum(seconds)
    peak = max(before, matmul_peak())
    rows = [
        ["training clips a second", clips],
        ["model GFLOP/s", gflops],
        ["float32 matrix product, best measured GFLOP/s", peak],
        ["model FLOP/s as a part of that", f"{100 * gflops / peak:.0f} %"],
    ]
    store("train", made_by="python tools/measure.py train", columns=["toyworld, float32", ""], rows=rows)


def toyworld(count: int = 96) -> None:
    line = ["eval", "--suite", "toyworld", "--prompts", "plain", "--count", str(count), "--seeds", "0", "--free", "0"]
    with tempfile.TemporaryDirectory() as folder:
        report, _ = command(*line, "--out", "report", cwd=Path(folder))
    splits, reference = report["splits"], report["reference"]
    kept = {"scores": report["scores"], "splits": {"template": splits["template"]}, "values": report["values"]}
    kept["reference"] = {name: reference[name] for name in ("renders", "shuffled")}
    store("toyworld", made_by="python tools/measure.py toyworld", **kept)


def image(count: int = 96) -> None:
    import numpy as np

    from dit_video import VideoPipeline
    from dit_video.data.toyworld.render import pack, render_batch, to_uint8
    from dit_video.evals.measure import measure
    from dit_video.evals.prompts import suite
    from dit_video.evals.reconstruction import psnr
    from dit_video.evals.score import score

    asked, pipe = suite(count, "plain"), VideoPipeline.from_pretrained()
    given = [to_uint8(np.asarray(render_batch(pack([one.scene]), 1, 64, 64)))[0, 0] for one in asked]
    clips = [
        pipe(one.prompt, image=first, seed=i).frames[0] for i, (one, first) in enumerate(zip(asked, given, strict=True))
    ]
    decibels = [psnr(clip[0], first) for clip, first in zip(clips, given, strict=True)]
    scores = score([measure(clip) for clip in clips], asked)["scores"]
    rows: list[list[Any]] = [
        ["PSNR of the first frame, dB: mean", float(np.mean(decibels))],
        ["the worst", float(min(decibels))],
        *([f"{name} as asked", f"{100 * scores[name]['value']:.0f} %"] for name in ("colour", "shape", "motion")),
    ]
    columns = [f"{count} plain prompts, the first frame of a render given", ""]
    store("image", made_by="python tools/measure.py image", columns=columns, rows=rows)


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else "generate"
    {"generate": generate, "train": train, "toyworld": toyworld, "image": image}[what]()
