"""The benchmarks: how fast the package is, as ratios to something named that was measured in the same run.

    pip install '.[parity]' && python tools/bench.py --against diffusers      # same weights, inputs and shapes
    python tools/bench.py --onnx ort-env/bin/python --converter onnx-env/bin/python      # see tools/exports.py
    python tools/bench.py train       # a training step, beside a matrix product
    python tools/bench.py tokens      # a step of the denoiser: more tokens, more frames, more clips

Each side is a process of its own (sides.py) that has the machine while the others wait for their turn: ours, rival,
ours, rival, ... after everything is compiled. A figure is the median of its calls; a side that can compute in several
ways takes its fastest. Before anything is timed the results are compared, and sides that differ end the run. Memory is
what a process holds by itself at the most during a call, weights and libraries included (on a GPU: what is held there).

Stored as bench_*.json in tools/results, a row as it is done; with --only the other rows stay, if they are of the same
machine and versions. --quick takes tiny shapes, to see that it runs, and stores nothing unless --out says where.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import PROMPT, RESULTS
from race import LEAST, Table, Worker, agree, at_work, interleaved, megabytes

WITHIN = {"float32": 1e-4, "bfloat16": 4e-2}  # relative difference of the sides
FRAMES_WITHIN = 1e-2  # of clips: frames are rounded to 8 bits
LIMIT, LIMIT_OF_TOKENS = 60.0, 900.0  # seconds; a step of 32 k tokens on two cores takes minutes
TINY = {"in_channels": 4, "out_channels": 4, "heads": 2, "head_dim": 16, "depth": 1, "ffn_dim": 48, "text_dim": 32}


# -- against diffusers, and against ONNX Runtime -----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What both sides compute: a part of a model by its config, or a whole clip."""

    words: str
    kind: str  # block | text | encode | decode | clip | start
    config: Any = None
    size: tuple[int, ...] = ()
    attention: tuple[str, ...] = ()  # of ours, to choose from


def cases(quick: bool, backends: Sequence[str]) -> dict[str, Case]:
    from dit_video.models.dit import DiTConfig
    from dit_video.models.text import TextConfig
    from dit_video.models.vae import VAEConfig

    clip = {"clip": Case("a clip from the prompt, weights on board", "clip"),
            "start": Case("from a cold process to that clip", "start")}  # fmt: skip
    if quick:
        dit, video, every = DiTConfig(**TINY), (5, 32, 32), tuple(backends)
        text = TextConfig(vocab=64, width=32, heads=2, head_dim=16, ffn_dim=64, depth=2)
        vae = VAEConfig(base=8, z=4, mult=(1, 2, 2), temporal=(True, True), res_blocks=1)
        return {
            "block": Case("a tiny DiT block, 32 tokens", "block", dit, (2, 4, 4), every),
            "text": Case("2 tiny UMT5 layers, 24 tokens", "text", text, (24,)),
            "encode": Case("a tiny VAE encodes 5x32x32", "encode", vae, video),
            "decode": Case("a tiny VAE decodes 5x32x32", "decode", vae, video),
            **clip,
        }
    dit, text, vae, video = DiTConfig(depth=1), TextConfig(vocab=512, depth=2), VAEConfig(), (17, 256, 256)
    width = f"DiT block, {dit.heads} heads x {dit.head_dim}, ffn {dit.ffn_dim}"
    # The logits of all queries at once would be gigabytes at 8 k tokens.
    lean = tuple(name for name in backends if name != "xla")
    return {
        "block_2k": Case(f"{width}, 2,048 tokens", "block", dit, (8, 16, 16), tuple(backends)),
        "block_8k": Case(f"{width}, 8,192 tokens", "block", dit, (8, 32, 32), lean),
        "text": Case(f"2 UMT5 layers of {text.width}, 512 tokens", "text", text, (512,)),
        "encode": Case("Wan 2.1 VAE encodes 17x256x256", "encode", vae, video),
        "decode": Case("Wan 2.1 VAE decodes 17x256x256", "decode", vae, video),
        **clip,
    }


def backends(dtype: str) -> tuple[str, ...]:
    """The attention back ends of ours that run here."""
    import jax

    return ("cudnn", "xla") if jax.default_backend() == "gpu" and dtype != "float32" else ("xla", "chunked")


def prepared(name: str | None, folder: Path, quick: bool) -> dict[str, Any]:
    """A clip that every side makes: a model folder that diffusers opens, a prompt, noise, and how to sample."""
    from dit_video.diffusion.noise import clip_noise
    from dit_video.weights.folder import open_model, save_model

    model = open_model(name)
    save_model(model, folder / "model")
    of = model.defaults
    slots, *space = model.vae.latent_shape(of.num_frames, of.height, of.width)
    np.save(folder / "noise.npy", clip_noise(0, [0], slots, tuple(space)))
    sampling = {"num_frames": of.num_frames, "height": of.height, "width": of.width, "guidance_scale": of.guidance,
                "num_inference_steps": 2 if quick else of.steps}  # fmt: skip
    return {"model": str(folder / "model"), "noise": str(folder / "noise.npy"), "prompt": PROMPT, "sampling": sampling}


@dataclass(frozen=True)
class Rival:
    side: str  # its name in sides.py
    title: str
    changes: dict[str, Any]  # to ours' job: an interpreter, a folder

    def job(self, job: dict[str, Any]) -> dict[str, Any]:
        return job | {"side": self.side} | self.changes


def compared(case: Case, job: dict[str, Any], rival: Rival, args: argparse.Namespace, folder: Path) -> Iterator:
    """One row: both medians, ours as a multiple of the rival's speed, memory, in which way, how far they differ."""
    within = max(FRAMES_WITHIN if case.kind == "clip" else 0, WITHIN[args.dtype])
    with at_work(job, rival.job(job)) as workers:
        off = agree(case.words, [result for worker in workers for result in worker.results(folder)], within)
        for worker in workers:
            worker.choose()
        seconds = interleaved([worker.time for worker in workers], args.rounds, args.limit)
        ours, theirs = (statistics.median(each) for each in seconds)
        memory, ways = [megabytes(worker.bytes) for worker in workers], [worker.way for worker in workers]
        row = [case.words, ours, theirs, theirs / ours, *memory, *ways, len(seconds[0]), f"{off:.0e}"]
        yield row, workers[1], {"seconds": seconds, "failed": workers[1].failed}


def started(case: Case, job: dict[str, Any], rival: Rival, args: argparse.Namespace, folder: Path) -> Iterator:
    """Two rows, from the start of a process to its clip: ours with an empty compile cache, and with a filled one."""
    results, last = {}, {}

    def cold(job: dict[str, Any], cache: str) -> float:
        worker = last[job["side"]] = Worker(job, JAX_COMPILATION_CACHE_DIR=str(folder / cache))
        try:
            results[job["side"]] = worker.result(worker.way, folder)
            return time.perf_counter() - worker.began
        finally:
            worker.end()

    theirs, fresh = rival.job(job), (f"cache_{i}" for i in range(args.rounds))
    for one in (job, theirs):  # fills the cache, and brings files into memory
        cold(one, "cache")
    calls = [lambda: cold(job, next(fresh)), lambda: cold(job, "cache"), lambda: cold(theirs, "cache")]
    *ours, other = interleaved(calls, args.rounds, args.limit)
    off, median = agree(case.words, [*results.values()], FRAMES_WITHIN), statistics.median(other)
    for words, seconds in zip(("compile cache empty", "compile cache filled"), ours, strict=True):
        mine = statistics.median(seconds)
        row = [f"{case.words}, {words}", mine, median, median / mine, None, None, "whole", last[theirs["side"]].way]
        yield [*row, len(seconds), f"{off:.0e}"], last[theirs["side"]], {"seconds": [seconds, other]}


def against(args: argparse.Namespace, rival: Rival, name: str, made_by: str, only: Sequence[str] | None = None) -> None:
    from dit_video.weights.folder import to_foreign_config

    there = cases(args.quick, backends(args.dtype))
    columns = [args.dtype, "ours, s", f"{rival.title}, s", f"times as fast as {rival.title}", "ours, MB",
               f"{rival.title}, MB", "ours by", f"{rival.title} by", "calls of each", "difference"]  # fmt: skip
    table = Table(name, made_by, columns, [case.words for case in there.values()], args.out)
    for case in picked(there, only).values():
        with tempfile.TemporaryDirectory() as temporary:
            folder, whole = Path(temporary), case.config is None
            job = {"side": "ours", "dtype": args.dtype, "attention": case.attention, "case": case.kind}
            job |= prepared(args.model, folder, args.quick) | {"case": "clip"} if whole else {
                "config": to_foreign_config(case.config), "size": case.size}  # fmt: skip
            job |= {"compile": not args.eager and case.kind != "start"}
            rows = (started if case.kind == "start" else compared)(case, job, rival, args, folder)
            for row, worker, details in rows:
                table.add(row, worker.about, config=job.get("config"), size=case.size or job["sampling"], **details)


def picked(there: dict[str, Any], only: Sequence[str] | None) -> dict[str, Any]:
    if unknown := set(only or ()) - set(there):
        raise SystemExit(f"--only {','.join(sorted(unknown))}: there are {', '.join(there)}")
    return {key: there[key] for key in only or there}


# -- alone: training, and scaling --------------------------------------------------------------------------------------


def settled(args: argparse.Namespace, **defaults: tuple[Any, Any]) -> argparse.Namespace:
    """The arguments, with what was left open as it is on (a CPU, an accelerator)."""
    import jax

    large = jax.default_backend() != "cpu"
    filled = {name: pair[large] for name, pair in defaults.items() if getattr(args, name) is None}
    return argparse.Namespace(**{**vars(args), **filled})


def denoiser(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """A config of 1.3B width, and the job for it."""
    from dit_video.models.dit import DiTConfig
    from dit_video.weights.folder import to_foreign_config

    cfg = DiTConfig(**TINY) if args.quick else DiTConfig(depth=args.layers)
    how = {"attention": args.attention, "remat": args.remat or "none"}
    job = {"side": "ours", "case": args.subject, "config": to_foreign_config(cfg), "dtype": args.dtype, "how": how}
    return replace(cfg, dtype=args.dtype, **how), job


def grid_of(tokens: int) -> tuple[int, int, int]:
    """Frames, height and width in patches: frames of 16 x 16, or of 4 x 4 where there are few tokens."""
    side = 16 if tokens % 256 == 0 else 4
    if tokens < 1 or tokens % side**2:
        raise SystemExit(f"--tokens {tokens}: a multiple of 256, or of 16")
    return tokens // side**2, side, side


def latent(cfg: Any, grid: Sequence[int]) -> tuple[int, ...]:
    """Frames, height and width of the latents that are a grid of patches."""
    return tuple(n * p for n, p in zip(grid, cfg.patch, strict=True))


def train(args: argparse.Namespace) -> None:
    """The step of the package's trainer (gradients, clipping, AdamW, an average) on one clip, with a text encoder of
    no consequence. FLOPs are the denoiser's."""
    from dit_video.models.dit import flops

    args = settled(args, layers=(2, 30), dtype=("float32", "bfloat16"), attention=("chunked", "cudnn"),
                   remat=("none", "dots"), tokens=(2048, 32768), product=(3072, 16384))  # fmt: skip
    if args.quick:
        args.tokens, args.product = 32, 64
    cfg, job = denoiser(args)
    grid, rows = grid_of(args.tokens), 8 if args.quick else cfg.text_len
    job |= {"size": latent(cfg, grid), "rows": rows, "product": args.product}
    work = 3 * flops(cfg, latent(cfg, grid), rows)
    attention = 12 * cfg.depth * float(args.tokens) ** 2 * cfg.width / work
    with at_work(job) as (worker,), tempfile.TemporaryDirectory() as folder:
        loss = float(worker.result("step", Path(folder)))
        if not np.isfinite(loss):
            raise RuntimeError("the loss is not finite: no benchmark")
        worker.ask("first", "product")
        memory = worker.ask("peak", "step")["bytes"]
        calls = [lambda: worker.time("step"), lambda: worker.time("product")]
        seconds = interleaved(calls, args.rounds, args.limit)
    spent, best = statistics.median(seconds[0]), 2 * args.product**3 / min(seconds[1])
    part = work / spent / best
    columns = ["training step of the denoiser", "s", "model GFLOP/s", "matrix product, best GFLOP/s",
               "model FLOP/s as a part of that", "attention's part of the FLOPs", "MB", "calls"]  # fmt: skip
    words = f"{cfg.depth} x {cfg.width} wide, {args.tokens:,} tokens, {cfg.dtype}, {cfg.attention}, remat {cfg.remat}"
    row = [words, spent, work / spent / 1e9, best / 1e9, f"{100 * part:.0f} %", f"{100 * attention:.0f} %",
           megabytes(memory), len(seconds[0])]  # fmt: skip
    details = {"seconds": seconds, "part": part, "flops": work, "product": args.product, "loss": loss, "grid": grid}
    table = Table("bench_train", args.made_by("train"), columns, [], args.out)
    table.add(row, worker.about, config=job["config"], **details)


Shape = tuple[int, int, int, int]  # clips; frames, height and width in patches


def growing(quick: bool) -> dict[str, list[Shape]]:
    """Each is compared with the first of its line."""
    if quick:
        return {"tokens": [(1, 1, 4, 4), (1, 4, 4, 4)], "frames": [(1, 1, 4, 4), (1, 4, 4, 4)],
                "clips": [(1, 1, 4, 4), (2, 1, 4, 4)]}  # fmt: skip
    return {
        "tokens": [(1, n, 16, 16) for n in (4, 8, 16, 32, 64, 128)],  # 1 k to 32 k
        "frames": [(1, n, 16, 16) for n in (1, 5, 9, 21)],  # a still, 17, 33 and 81 frames of 256x256
        "clips": [(n, 4, 16, 16) for n in (1, 2, 4, 8)],
    }


def grown(rows: list[list[Any]], runs: dict[str, Any]) -> str:
    """Seconds, and memory, of a step over its tokens: a curve for each way to have more of them."""
    from dit_video.evals.plots import below, points

    seconds: dict[str, list[tuple[float, float]]] = {}
    memory: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        line, (base, shape) = row[0].split(" x ")[0], runs[row[0]]["shapes"]
        seconds.setdefault(line, [(float(np.prod(base)), row[2])]).append((float(np.prod(shape)), row[1]))
        if row[6] is not None:
            memory.setdefault(line, []).append((float(np.prod(shape)), float(row[6])))
    plots = [points(seconds, "tokens in all", "seconds")]
    return below([*plots, points(memory, "tokens in all", "MB at the peak")] if memory else plots)


def tokens(args: argparse.Namespace) -> None:
    """A step that would take more than --limit seconds, at the speed of the one before, is left out."""
    from dit_video.models.dit import flops

    args = settled(args, layers=(1, 30), dtype=("float32", "bfloat16"), attention=("chunked", "cudnn"))
    cfg, job = denoiser(args)
    lines, named = growing(args.quick), lambda shape: "x".join(map(str, shape))
    work = lambda shape: shape[0] * flops(cfg, latent(cfg, shape[1:]), cfg.text_len)  # noqa: E731
    words = {(line, one): f"{line} x {np.prod(one) / np.prod(shapes[0]):g}: {one[0]} x {np.prod(one[1:]):,} tokens"
             for line, shapes in lines.items() for one in shapes[1:]}  # fmt: skip
    columns = [f"step of {cfg.depth} x {cfg.width} wide, {cfg.dtype}, {cfg.attention}", "s", "of x 1, s", "times x 1",
               "over linear", "FLOPs over linear", "MB", "calls of each"]  # fmt: skip
    note = "a step of the denoiser over its tokens: seconds, and memory at the peak"
    table = Table("bench_tokens", args.made_by("tokens"), columns, list(words.values()), args.out, grown, note)
    lines = picked(lines, args.only)
    with at_work(job | {"shapes": {named(one): one for shapes in lines.values() for one in shapes}}) as (worker,):
        for line, (base, *shapes) in lines.items():
            worker.ask("first", named(base))
            pace = worker.time(named(base)) / work(base)
            for shape in shapes:
                if pace * work(shape) > args.limit:
                    print(f"{words[line, shape]}: over {args.limit:g} s a step, left out", file=sys.stderr)
                    break
                worker.ask("first", named(shape))
                memory = worker.ask("peak", named(shape))["bytes"]
                calls = [lambda one=one: worker.time(named(one)) for one in (base, shape)]
                seconds = interleaved(calls, min(args.rounds, LEAST), args.limit)
                one, this = (statistics.median(each) for each in seconds)
                pace, times = this / work(shape), np.prod(shape) / np.prod(base)
                row = [words[line, shape], this, one, this / one, this / one / times, work(shape) / work(base) / times,
                       megabytes(memory), len(seconds[0])]  # fmt: skip
                table.add(row, worker.about, config=job["config"], shapes=[base, shape], seconds=seconds)


# -- the command line --------------------------------------------------------------------------------------------------


GIVEN = ("model", "dtype", "rounds", "limit", "tokens", "layers", "attention", "remat", "product")


def command(args: argparse.Namespace, parser: argparse.ArgumentParser, *subject: str) -> str:
    """What makes a table again: of what changes its rows, all that was given. (With --only others stay.)"""
    given = [word for name in GIVEN if (value := getattr(args, name)) != parser.get_default(name)
             for word in (f"--{name}", str(value))]  # fmt: skip
    flags = [f"--{name}" for name in ("eager", "quick") if getattr(args, name)]
    return shlex.join(["python", "tools/bench.py", *subject, *given, *flags])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="?", choices=("train", "tokens"))
    parser.add_argument("--against", choices=("diffusers",))
    parser.add_argument("--onnx", metavar="PYTHON", help="an interpreter with what an export's run.py needs")
    parser.add_argument("--converter", metavar="PYTHON", help="an interpreter with jax2onnx (default: this one)")
    parser.add_argument("--model", help="of whole clips: a model folder (default: the weights on board)")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="ROW,...", help="these rows alone")
    parser.add_argument("--dtype", choices=(*WITHIN,), help="default: float32; of train and tokens on a GPU bfloat16")
    parser.add_argument("--eager", action="store_true", help="do not try torch.compile")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each side (default %(default)s)")
    parser.add_argument("--limit", type=float, metavar="SECONDS",
                        help=f"once a row's calls took so long, {LEAST} of each are enough (default {LIMIT:g}); of "
                        f"tokens also the longest step (default {LIMIT_OF_TOKENS:g})")  # fmt: skip
    parser.add_argument("--tokens", type=int, help="of train (default: 2048; on a GPU 32768)")
    parser.add_argument("--layers", type=int, help="of train and tokens (default: 2 and 1; on a GPU all 30)")
    parser.add_argument("--attention", help="back end of train and tokens")
    parser.add_argument("--remat", choices=("none", "block", "attention", "dots"), help="of train")
    parser.add_argument("--product", type=int, help="rows of train's matrix product (default: 3072; on a GPU 16384)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one call: does it run?")
    parser.add_argument("--out", type=Path, help="folder for the JSON (default: tools/results)")
    args = parser.parse_args(argv)
    if not (args.subject or args.against or args.onnx):
        parser.error("name a subject: --against diffusers, --onnx PYTHON, train or tokens")
    args.made_by = partial(command, argparse.Namespace(**vars(args)), parser)
    args.out = args.out or (None if args.quick else RESULTS)
    args.rounds = 1 if args.quick else args.rounds
    if args.limit is None:
        args.limit = LIMIT_OF_TOKENS if args.subject == "tokens" else LIMIT
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sides share a GPU
    if args.subject:
        {"train": train, "tokens": tokens}[args.subject](args)
        return
    args.dtype = args.dtype or "float32"
    if args.against:
        rival = Rival("diffusers", "diffusers", {})
        against(args, rival, "bench_diffusers", args.made_by("--against", "diffusers"), args.only)
    if args.onnx:
        from exports import made

        with tempfile.TemporaryDirectory() as folder:
            out = made("onnx", args.model, args.converter, Path(folder) / "onnx")
            rival = Rival("onnx", "ONNX Runtime", {"python": args.onnx, "model": str(out)})
            subject = ["--onnx", "PYTHON", *(["--converter", "PYTHON"] if args.converter else [])]
            against(args, rival, "bench_onnx", args.made_by(*subject), args.only or ("clip", "start"))


if __name__ == "__main__":
    main()
