"""Measures what the README's tables say, and stores it where tools/tables.py finds it.

    python tools/measure.py generate   # from a cold process to the file: with an empty compile cache, and again
    python tools/measure.py train      # steps of the toyworld experiment, and what part of the measured peak they are
    python tools/measure.py toyworld   # 96 plain prompts, made and judged
    python tools/measure.py world      # 1000 held-out prompts of the whole world in three sizes, and the free ones
    python tools/measure.py reconstruction  # what the VAE loses of renders
    python tools/measure.py image      # the same from a given first frame: is it kept, and is the prompt followed
    python tools/measure.py seam       # from the last frames of a given clip: is there a jump where it goes on
    python tools/measure.py start      # many seeds of a prompt: do places differ as much as those of renders
    python tools/measure.py steps      # scores and seconds by solver and number of steps; goes on where it was stopped

Needs the package installed, and a machine with nothing else to do. All from toyworld on take --model and --count.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
ASPECTS = "48x80,80x48"  # width x height, beside the model's own size
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
    partial = folder / f"{name}.json.partial"  # rows of hours are in it: it is whole at any time
    partial.write_text(json.dumps(data, indent=1) + "\n")
    partial.replace(folder / f"{name}.json")
    return data


def store(name: str, folder: Path = RESULTS, **data: Any) -> None:
    print(json.dumps(write(name, folder, **data), indent=1))


class Rows:
    """Rows that are stored as they are done: who measures again goes on with those that are missing. A row is told by
    its first `keys` cells. `settings` are what all rows share; SystemExit where those that are stored have others."""

    def __init__(self, name: str, folder: Path, columns: list[str], keys: int, settings: dict[str, Any], made_by: str):
        self.name, self.folder, self.keys = name, folder, keys
        self.shared = {"made_by": made_by, "columns": columns, "settings": settings}
        file = folder / f"{name}.json"
        self.data: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"rows": []}
        if self.data["rows"] and self.data.get("settings") != settings:
            raise SystemExit(f"{file} is of {self.data.get('settings')}, not of {settings}: move it, or give --out")
        self.rows: list[list[Any]] = self.data["rows"]

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return any(row[: self.keys] == list(key) for row in self.rows)

    def add(self, row: list[Any], **more: Any) -> None:
        """Stores a row in place of the one with its key, and `more` beside all rows."""
        print(*row, sep=" | ", flush=True)
        self.rows[:] = [old for old in self.rows if old[: self.keys] != row[: self.keys]] + [row]
        self.keep(**more)

    def keep(self, **more: Any) -> None:
        """Stores what there is, and `more` beside it."""
        self.data = {**self.data, **self.shared, **more, "machine": machine()}
        write(self.name, self.folder, **self.data)


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


def evaluated(args: argparse.Namespace, folder: Path, suite: str, count: int, *flags: str) -> dict[str, Any]:
    """What `dit-video eval` says; its files are in folder/report."""
    line = ["eval", "--suite", suite, "--count", str(count), *flags, "--out", str(folder / "report")]
    return command(*line, *(["--model", str(Path(args.model).resolve())] if args.model else []), cwd=folder)[0]


def toyworld(args: argparse.Namespace) -> None:
    flags = ("--prompts", "plain", "--seeds", "0", "--free", "0")
    with tempfile.TemporaryDirectory() as folder:
        report = evaluated(args, Path(folder), "toyworld", args.count or 96, *flags)
    splits, reference = report["splits"], report["reference"]
    kept = {"scores": report["scores"], "splits": {"template": splits["template"]}, "values": report["values"]}
    kept["reference"] = {name: reference[name] for name in ("renders", "shuffled")}
    store("toyworld", args.out, made_by=args.made_by, **kept)


def world(args: argparse.Namespace) -> None:
    """Combinations of words that training never saw, in the model's own size and in both other aspects; the free
    prompts beside them; a contact sheet of the worst clips."""
    count = args.count or 1000
    flags = ["--prompts", "world", "--heldout", "--seeds", "0", "--free", str(min(100, count)), "--references",
             str(min(200, count)), f"--by=size={ASPECTS}", "--by_count", str(count)]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        report = evaluated(args, Path(folder), "toyworld", count, *flags)
        args.out.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder) / "report" / "worst.png", args.out / "world_worst.png")
    reference = {name: report["reference"][name] for name in ("renders", "shuffled")}
    free = report["free"]
    kept = {name: report[name] for name in ("suite", "count", "scores", "values", "quality", "settings")}
    kept["free"] = {"count": free["count"], "scores": free["scores"],
                    "reference": {name: free["reference"][name] for name in reference}}  # fmt: skip
    kept |= {"splits": {"size": report["splits"]["size"]}, "reference": reference}
    kept["note"] = f"{count} held-out prompts: the clips that were judged worst, beside each what failed"
    if args.out.resolve() == RESULTS:
        kept["picture"] = "tools/results/world_worst.png"
    store("world", args.out, made_by=args.made_by, **kept)


def reconstruction(args: argparse.Namespace) -> None:
    """Renders of the fixed prompts of the whole world through the VAE, those with a texture behind them apart."""
    from tables import measured, percent

    with tempfile.TemporaryDirectory() as folder:
        report = evaluated(args, Path(folder), "reconstruction", args.count or 96)
    groups = report["splits"].get("group", {})
    sides = [report["scores"], *(groups.get(name, {}) for name in ("plain", "textured"))]
    names = {"psnr": "PSNR, dB", "psnr_first": "of the first frame", "ssim": "SSIM",
             "flicker_added": "flicker added, levels of 255"}  # fmt: skip
    rows: list[list[Any]] = [[said, *(measured(own.get(name)) for own in sides)] for name, said in names.items()]
    rows.append(["bytes of frames over those of latents in float16", report["bytes"]["ratio"], None, None])
    read = ", ".join(f"{name} {percent(share)}" for name, share in report["judge"].items())
    rows.append(["the judge still reads right", read, None, None])
    columns = [f"{report['count']} renders of prompts of the whole world", "all (95 % interval)", "plain backgrounds",
               "textured ones"]  # fmt: skip
    kept = {name: report[name] for name in ("bytes", "judge", "reference")}
    kept["report"] = {"scores": report["scores"], "splits": report["splits"]}
    store("reconstruction", args.out, made_by=args.made_by, columns=columns, rows=rows, **kept)


def main(argv: list[str] | None = None) -> None:
    import judged

    alone = {"generate": generate, "train": train}
    others = {"toyworld": toyworld, "world": world, "reconstruction": reconstruction, **judged.MEASUREMENTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="generate", choices=[*alone, *others])
    parser.add_argument("--model", help="a model folder or a run (default: the weights on board)")
    parser.add_argument("--count", type=int, help="of prompts (default: 96; of world 1000, of seam and start 32)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to store in (default: tools/results)")
    args = parser.parse_args(argv)
    if args.what in alone:
        return alone[args.what]()
    given = [f" --{name} {value}" for name in ("model", "count") if (value := getattr(args, name)) is not None]
    args.made_by = f"python tools/measure.py {args.what}{''.join(given)}"
    return others[args.what](args)


if __name__ == "__main__":
    main()
