"""Measures what long clips and conditions are worth, and stores it in tools/results/ where tools/tables.py finds it.

    python tools/long.py memory              # peak memory and time: 20 s against 3 minutes at 512x512
    python tools/long.py content             # 3 minutes whose prompt changes every 20 s: scores, motion; drift where
                                             # what is seen is carried on and no cut begins anew
    python tools/long.py prompts             # pairs of prompts on one time line
    python tools/long.py conditions          # first, last, both, a keyframe, extension, loop, inpainting
    python tools/long.py rotary              # one pass at 1, 2 and 4 times the trained length
    python tools/long.py cache               # step caching: speed and score
    python tools/long.py calibrate MODEL OUT # a copy of a model with its caching curve in it

`--model M` (default: the weights on board), `--count N`, `--seconds S`, `--size PX`, `--steps N` make a measurement
smaller or of another model. All but `memory` want weights that follow prompts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from measure import COMMAND, PROMPT, store

CLIP = 17  # frames that are scored at once
SCORE = "main"  # shape, colour, motion and direction, all right


def made_by(args: argparse.Namespace) -> str:
    """The command of this measurement."""
    return "python tools/long.py " + " ".join(sys.argv[1:])


def memory(args: argparse.Namespace) -> None:
    """Peak memory of a process, and seconds of work a second of video, for a short and a long clip of each mode."""
    rows = []
    lengths = (args.short, args.seconds)
    for mode in ("window", "extend"):
        peaks, speeds = [], []
        for seconds in lengths:
            with tempfile.TemporaryDirectory() as folder:
                argv = [*COMMAND, "generate", PROMPT, "--seconds", str(seconds), "--height", str(args.size), "--width",
                        str(args.size), "--num_inference_steps", "1", "--guidance_scale", "1", "--long", mode, "--seed",
                        "0", "--output", f"{folder}/a.mp4", "--json", "--quiet"]  # fmt: skip
                peak, spent = peak_memory([*argv, *(["--model", args.model] if args.model else [])])
            peaks.append(peak / 2**20)
            speeds.append(sum(spent["seconds"][name] for name in ("denoise", "decode", "write")) / seconds)
            rows.append([f"{mode}, {seconds:g} s of {args.size}x{args.size}", peaks[-1], speeds[-1]])
        rows.append([f"{mode}: {lengths[1]:g} s over {lengths[0]:g} s", peaks[1] / peaks[0], speeds[1] / speeds[0]])
    columns = ["one step, no guidance", "peak memory, MiB", "seconds a second of video"]
    store("long_memory", made_by=made_by(args), columns=columns, rows=rows)


def peak_memory(argv: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Largest resident size of a process in bytes, and the JSON that it printed."""
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(argv, stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")
        out.seek(0)
        scale = 1 if sys.platform == "darwin" else 1024
        return usage.ru_maxrss * scale, json.loads(out.read())


# -- what long clips show ---------------------------------------------------------------------------------------------


def pieces(frames: np.ndarray) -> list[np.ndarray]:
    """Clips as they are scored, one after another."""
    return [frames[i : i + CLIP] for i in range(0, len(frames) - CLIP + 1, CLIP - 1)]


def share(marks: Sequence[dict], name: str = SCORE) -> float:
    """Share of right marks."""
    right = [ok for mark in marks for _, ok in mark.get(name, [])]
    return float(np.mean(right)) if right else float("nan")


def repetition(frames: np.ndarray, least: int = 8) -> float:
    """The highest peak of the autocorrelation of what is seen, from `least` frames on: 1 for a clip that repeats."""
    t, h, w, _ = frames.shape
    x = frames[:, : h // 8 * 8, : w // 8 * 8].reshape(t, 8, h // 8, 8, w // 8, 3).mean((2, 4)).reshape(t, -1)
    x = x - x.mean(0)
    power = (x**2).sum()
    if power < 1e-6 * x.size:
        return 1.0
    r = np.array([(x[:-lag] * x[lag:]).sum() / (t - lag) * t / power for lag in range(1, t // 2)])
    peaks = [r[i] for i in range(least, len(r) - 1) if r[i] >= r[i - 1] and r[i] >= r[i + 1]]
    return float(max(peaks, default=0.0))


def looks(frames: np.ndarray) -> np.ndarray:
    """(brightness, saturation, contrast) of a clip, 0..1."""
    x = frames.astype(np.float32) / 255
    return np.array([x.mean(), (x.max(-1) - x.min(-1)).mean(), x.mean(-1).std((1, 2)).mean()])


def speed(objects: Sequence[Any], motion: str) -> float | None:
    """How fast objects move that move so, in the unit of that motion; None if none does. Of hops, orbits, growing and
    shrinking the rate is a time: its inverse is the speed."""
    rates = [o.rate for o in objects if o.motion == motion and o.rate]
    inverse = motion in ("bounces", "circles", "grows", "shrinks")
    return float(np.mean([1 / rate if inverse else rate for rate in rates])) if rates else None


def segment_report(
    clips: Sequence[np.ndarray], asked: Sequence[Any], renders: Sequence[np.ndarray], fps: float
) -> dict:
    """Numbers of long segments: scores against time, and what moves against exact renders of the same scenes."""
    from dit_video.evals.measure import measure
    from dit_video.evals.quality import moving
    from dit_video.evals.score import mark

    marks, dynamic, speeds = [], {"ours": [], "renders": []}, {"ours": [], "renders": []}
    for kind, segments in (("ours", clips), ("renders", renders)):
        for frames, one in zip(segments, asked, strict=True):
            readings = [measure(piece, fps) for piece in pieces(frames)]
            if kind == "ours":
                marks.append([mark(reading, one) for reading in readings])
            dynamic[kind] += [any(moving(o) for o in r.objects) for r in readings]
            speeds[kind].append(speed([o for r in readings for o in r.objects], one.objects[0]["motion"]))
    again = {"ours": [repetition(c) for c in clips], "renders": [repetition(c) for c in renders]}
    drift = np.array([looks(c) - looks(r) for c, r in zip(clips, renders, strict=True)])
    slopes = np.polyfit(np.linspace(0, 1, len(drift)), drift, 1)[0] if len(drift) > 2 else np.zeros(3)
    rng = np.random.default_rng(0)
    draws = [rng.permutation(len(drift)) for _ in range(1000)]
    chance = np.quantile(np.abs([np.polyfit(np.linspace(0, 1, len(drift)), drift[d], 1)[0] for d in draws]), 0.95, 0)
    pairs = zip(speeds["ours"], speeds["renders"], strict=True)
    alike = [np.log(ours / theirs) for ours, theirs in pairs if ours and theirs]
    ratio = lambda pair: float(np.mean(pair["ours"]) / max(np.mean(pair["renders"]), 1e-9)) if pair["ours"] else 0.0  # noqa: E731
    return {
        "score": share([m for each in marks for m in each]),
        "segments": [share(each) for each in marks],
        "dynamic": ratio(dynamic), "speed": float(np.exp(np.mean(alike))) if alike else 0.0,
        "repetition": float(np.mean(again["ours"])),
        "repetition_of_renders": float(np.mean(again["renders"])),
        "trend": dict(zip(("brightness", "saturation", "contrast"), map(float, slopes), strict=True)),
        "trend_by_chance": dict(zip(("brightness", "saturation", "contrast"), map(float, chance), strict=True)),
    }  # fmt: skip


def holds(report: dict, short: Sequence[float], trend: bool = True) -> dict[str, bool]:
    """The test that a long clip has to pass. `short`: what short clips of each segment's prompt score. trend: whether
    one segment goes on from the other; after a cut each is a beginning, and drift cannot show."""
    near = lambda x: 0.9 <= x <= 1.1  # noqa: E731
    calm = {"no trend": all(abs(v) <= max(report["trend_by_chance"][k], 0.02) for k, v in report["trend"].items())}
    return {
        "score within 5 points of short clips": report["score"] >= np.mean(short) - 0.05,
        "each segment within 5 points": all(
            s >= alone - 0.05 for s, alone in zip(report["segments"], short, strict=True)
        ),
        "dynamic degree": near(report["dynamic"]),
        "speed": near(report["speed"]),
        "repetition": abs(report["repetition"] - report["repetition_of_renders"]) <= 0.1,
        **(calm if trend else {}),
    }


def content(args: argparse.Namespace) -> None:
    """A long clip of each mode whose prompt changes, after a cut and carried on, against short clips of the same
    prompts, exact renders, and two forgeries that must fail: frozen segments, and segments that repeat their first
    frames."""
    from dit_video.evals.measure import measure
    from dit_video.evals.references import renders as render
    from dit_video.evals.score import mark

    pipe, every = pipeline(args), args.short
    count = max(2, round(args.seconds / every))
    asked = single_objects(count)
    fps, defaults = pipe.model.defaults.fps, pipe.model.defaults
    frames = count * int(every * fps) + 1
    long = int(every * fps) - 8  # of a segment, its first frames are left to the change
    exact = list(render([one.scene for one in asked], long, defaults.height, defaults.width))
    prompts = [one.prompt for one in asked for _ in range(4)]
    clips = pipe(prompts, seed=1, **steps(args)).frames
    alone = [share([mark(measure(c, fps), one) for c in clips[4 * i : 4 * i + 4]]) for i, one in enumerate(asked)]
    reports: dict[str, dict] = {}
    for mode, transition in product(("window", "extend"), ("cut", "carry")):
        began = time.perf_counter()
        out = pipe(asked[0].prompt, num_frames=frames, long=mode, seed=0, transition=transition, **steps(args),
                   prompt_at=[(i * every, one.prompt) for i, one in enumerate(asked) if i])  # fmt: skip
        whole = out.frames[0]
        cut = [whole[i * int(every * fps) + 8 :][:long] for i in range(count)]
        seconds = time.perf_counter() - began
        reports[f"{mode}, {transition}"] = segment_report(cut, asked, exact, fps) | {"seconds": seconds}
    loops = [np.resize(c[:CLIP], c.shape) for c in exact]
    reports["renders"] = segment_report(exact, asked, exact, fps)
    reports["frozen"] = segment_report([np.repeat(c[:1], len(c), 0) for c in exact], asked, exact, fps)
    reports["repeated"] = segment_report(loops, asked, exact, fps)
    for name, report in reports.items():
        base = reports["renders"]["segments"] if name in ("frozen", "repeated", "renders") else alone
        report["holds"] = holds(report, base, trend=not name.endswith(", cut"))
    rows = [[name, r["score"], min(r["segments"]), r["dynamic"], r["speed"], r["repetition"],
             "yes" if all(r["holds"].values()) else ", ".join(k for k, ok in r["holds"].items() if not ok),
             r.get("seconds")] for name, r in reports.items()]  # fmt: skip
    rows.append(["short clips", float(np.mean(alone)), min(alone), None, None, None, None, None])
    columns = [f"{frames} frames, a new prompt every {every:g} s", "score", "worst segment", "dynamic / renders",
               "speed / renders", "repetition", "holds", "seconds"]  # fmt: skip
    store("long_content", made_by=made_by(args), columns=columns, rows=rows, reports=reports)


def prompts(args: argparse.Namespace) -> None:
    """Each prompt of a pair is followed in its part of one time line."""
    from dit_video.evals.measure import measure
    from dit_video.evals.score import mark

    pipe, half = pipeline(args), 4.0
    fps = pipe.model.defaults.fps
    asked = single_objects(2 * args.count)
    rows = []
    for mode in ("window", "extend"):
        for transition in ("cut", "carry"):
            parts: list[list] = [[], []]
            for first, second in zip(asked[::2], asked[1::2], strict=True):
                out = pipe(first.prompt, num_frames=1 + int(2 * half * fps), long=mode, seed=0, transition=transition,
                           prompt_at=[(half, second.prompt)], **steps(args))  # fmt: skip
                frames, change = out.frames[0], int(half * fps)
                parts[0].append(mark(measure(frames[:CLIP], fps), first))
                parts[1].append(mark(measure(frames[change + 8 :][:CLIP], fps), second))
            rows.append([f"{mode}, {transition}", share(parts[0]), share(parts[1])])
    columns = [f"{args.count} pairs of prompts", "first part as asked", "second part as asked"]
    store("long_prompts", made_by=made_by(args), columns=columns, rows=rows)


def conditions(args: argparse.Namespace) -> None:
    """Given pictures are kept, the prompt is still followed, seams are no jumps, what a mask keeps stays."""
    from PIL import Image

    from dit_video.data.video import write_video
    from dit_video.evals.measure import measure
    from dit_video.evals.reconstruction import psnr
    from dit_video.evals.references import renders as render
    from dit_video.evals.score import mark

    pipe = pipeline(args)
    d = pipe.model.defaults
    asked = single_objects(args.count)
    exact = render([one.scene for one in asked], 2 * CLIP - 1, d.height, d.width)

    def of_renders(first: int) -> float:
        """What exact renders score from that frame on: after two seconds many that move have met a wall."""
        clips = (clip[first:][:CLIP] for clip in exact)
        return share([mark(measure(clip, d.fps), one) for clip, one in zip(clips, asked, strict=True)])

    cases: dict[str, tuple[Callable, tuple[int, ...]]] = {
        "first": (lambda c: {"image": c[0]}, (0,)),
        "last": (lambda c: {"last_image": c[CLIP - 1]}, (CLIP - 1,)),
        "first and last": (lambda c: {"image": c[0], "last_image": c[CLIP - 1]}, (0, CLIP - 1)),
        "keyframe in the middle": (lambda c: {"keyframes": {8: c[8]}}, (8,)),
    }
    rows = []
    for name, (given, places) in cases.items():
        kept, marks = [], []
        for seed, (one, clip) in enumerate(zip(asked, exact, strict=True)):
            frames = pipe(one.prompt, num_frames=CLIP, seed=seed, **given(clip), **steps(args)).frames[0]
            kept += [psnr(frames[i], clip[i]) for i in places]
            marks.append(mark(measure(frames, d.fps), one))
        rows.append([name, float(np.mean(kept)), float(np.min(kept)), share(marks), of_renders(0), None])
    with tempfile.TemporaryDirectory() as folder:
        mask = np.zeros((d.height, d.width, 3), np.uint8)
        Image.fromarray(mask).save(f"{folder}/none.png")
        mask[:, d.width // 2 :] = 255
        Image.fromarray(mask).save(f"{folder}/half.png")
        seams: dict[str, list[float]] = {"extend": [], "before": [], "loop": []}
        marks_of: dict[str, list] = {name: [] for name in seams}
        rest = []
        for seed, (one, clip) in enumerate(zip(asked, exact, strict=True)):
            path = f"{folder}/{seed}.mp4"
            write_video(path, clip[:CLIP], d.fps, crf=1)
            more = {"num_frames": CLIP, "seed": seed, **steps(args)}
            for name in seams:
                given = {"loop": True} if name == "loop" else {"extend": path, "before": name == "before"}
                frames = pipe(one.prompt, **given, **more).frames[0]
                if name == "loop":
                    frames, at = np.concatenate([frames, frames[:1]]), len(frames)
                else:
                    at = CLIP if name == "extend" else CLIP - 1
                jumps = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))
                others = np.delete(jumps, at - 1)
                seams[name].append(float(jumps[at - 1] / max(np.quantile(others, 0.95), 1e-6)))
                new = frames[CLIP:] if name == "extend" else frames[: CLIP - 1]
                marks_of[name].append(mark(measure(new, d.fps), one))
            frames = pipe(one.prompt, video=path, mask=f"{folder}/half.png", **more).frames[0]
            same = pipe(one.prompt, video=path, mask=f"{folder}/none.png", **more).frames[0]
            rest.append(psnr(frames[:, :, : d.width // 2 - 16], same[:, :, : d.width // 2 - 16]))
        for name, jumps in seams.items():
            followed = of_renders(CLIP) if name == "extend" else None
            rows.append([name, None, None, share(marks_of[name]), followed, float(np.max(jumps))])
        rows.append(["inpainting: the rest", float(np.mean(rest)), float(np.min(rest)), None, None, None])
    columns = [f"{args.count} clips", "PSNR of what is given", "lowest", "prompt followed", "by renders",
               "largest seam over 95th percentile of jumps"]  # fmt: skip
    store("long_conditions", made_by=made_by(args), columns=columns, rows=rows)


def rotary(args: argparse.Namespace) -> None:
    """One pass of 1, 2 and 4 times the trained length, with each way to stretch positions."""
    from dit_video.evals.measure import measure
    from dit_video.evals.score import mark

    pipe = pipeline(args)
    d, asked = pipe.model.defaults, single_objects(args.count)
    rows = []
    for times in (1, 2, 4):
        frames = (d.max_frames - 1) * times + 1
        row: list[Any] = [f"{times}x: {frames} frames"]
        for rope in ("none", "riflex", "ntk"):
            marks, again = [], []
            for first in range(0, len(asked), 4):
                some = asked[first : first + 4]
                for one, clip in zip(some, pipe([a.prompt for a in some], num_frames=frames, rope=rope, seed=first,
                                                **steps(args)).frames, strict=True):  # fmt: skip
                    marks += [mark(measure(piece, d.fps), one) for piece in pieces(clip)]
                    again.append(repetition(clip))
            row += [share(marks), float(np.mean(again))]
        rows.append(row)
    columns = [f"{args.count} prompts"] + [f"{r} {w}" for r in ("as trained,", "RIFLEx,", "NTK,")
                                           for w in ("score", "repetition")]  # fmt: skip
    store("long_rotary", made_by=made_by(args), columns=columns, rows=rows)


def cache(args: argparse.Namespace) -> None:
    """Seconds and score with steps left out, at 32 steps and at the model's own number."""
    from dit_video.evals.measure import measure
    from dit_video.evals.score import mark

    pipe = pipeline(args)
    asked, fps = single_objects(args.count), pipe.model.defaults.fps
    rows = []
    for count in (32, args.steps or pipe.model.defaults.steps):
        base = 0.0
        for how in ("off", "safe", "fast"):
            more = {"num_inference_steps": count, "cache": how, "seed": 0}
            pipe([one.prompt for one in asked[:16]], **more)  # compiles, and measures the curve
            began, marks = time.perf_counter(), []
            for first in range(0, len(asked), 16):
                some = asked[first : first + 16]
                clips = pipe([one.prompt for one in some], output_type="uint8", **more)
                marks += [mark(measure(c, fps), one) for c, one in zip(clips.frames, some, strict=True)]
            spent = clips.metadata[0]["seconds"]["denoise"]
            base = base or spent
            rows.append([f"{count} steps, {how}", spent, base / spent, share(marks), time.perf_counter() - began])
    columns = [
        f"{args.count} prompts",
        "seconds of denoising the last batch",
        "times as fast",
        "score",
        "seconds in all",
    ]
    store("long_cache", made_by=made_by(args), columns=columns, rows=rows)


def calibrate(args: argparse.Namespace) -> None:
    """Writes a copy of a model whose caching curve was measured."""
    from dit_video.generate.calibrate import calibrate as measured
    from dit_video.generate.calibrate import rows as of
    from dit_video.generate.request import resolve
    from dit_video.weights.folder import open_model, save_model

    pipe = pipeline(args)
    prompts = [one.prompt for one in single_objects(4)]
    curve = of(measured(pipe, [resolve(pipe.model, prompt, seed=seed) for seed, prompt in enumerate(prompts)]))
    model = open_model(args.model)
    save_model(replace(model, defaults=replace(model.defaults, cache=curve)), args.out, force=True)
    print(args.out)


# -- what they share --------------------------------------------------------------------------------------------------


def pipeline(args: argparse.Namespace) -> Any:
    from dit_video.cli.generate import prepare_jax
    from dit_video.generate.pipeline import VideoPipeline

    prepare_jax("auto")
    return VideoPipeline.from_pretrained(args.model)


def steps(args: argparse.Namespace) -> dict[str, Any]:
    return {"num_inference_steps": args.steps} if args.steps else {}


def single_objects(count: int) -> list[Any]:
    """The first plain prompts of the fixed list, those that ask for one object."""
    from dit_video.evals.prompts import suite

    found = [one for one in suite(4 * count + 8, "plain") if len(one.objects) == 1]
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = {f.__name__: f for f in (memory, content, prompts, conditions, rotary, cache, calibrate)}
    parser.add_argument("what", choices=list(verbs))
    parser.add_argument("paths", nargs="*", help="of calibrate: MODEL OUT")
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument(
        "--short", type=float, default=20.0, help="seconds of a segment, and of the short clip of memory"
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    args.model, args.out = [*args.paths, None, None][:2] if args.paths else (args.model, None)
    verbs[args.what](args)


if __name__ == "__main__":
    main()
