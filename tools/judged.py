"""What is measured of a model's clips by the judge that reads frames: `python tools/measure.py image`, and so on.

Each makes clips of the fixed plain prompts and of renders of the same scenes, and stores a table.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import Rows, store

SCORES = ("readable", "colour", "shape", "motion", "direction", "all")
STEPS = (4, 8, 16, 32)
CLIP = 17  # frames that are given, and that come: slot 0 stands for one frame, four more for four each
SEEDS = 16  # of one prompt
JUMP = 1.5  # a change between two frames, over the median one, above which it is a seam
GOING = ("moves", "bounces", "circles", "spins")  # motions that go on for ever, so that a median change is one


def pipeline(args: argparse.Namespace) -> Any:
    from dit_video import VideoPipeline

    return VideoPipeline.from_pretrained(args.model)


def share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.0f} %"


def scored(clips: Sequence[np.ndarray], asked: Sequence[Any]) -> dict[str, Any]:
    """The judge's report."""
    from dit_video.evals.measure import measure
    from dit_video.evals.score import score

    return score([measure(clip) for clip in clips], asked)


def cells(report: Mapping[str, Any], names: Sequence[str] = SCORES) -> list[str | None]:
    return [share(report["scores"].get(name, {}).get("value")) for name in names]


def image(args: argparse.Namespace) -> None:
    """The first frame of a render given: it is kept, what is in it stays what it is, and moves as the prompt says."""
    from dit_video.evals.measure import measure
    from dit_video.evals.prompts import suite
    from dit_video.evals.reconstruction import psnr
    from dit_video.evals.references import renders
    from dit_video.evals.score import mark, score

    count, pipe = args.count or 96, pipeline(args)
    d = pipe.model.defaults
    asked = suite(count, "plain", d.height, d.width)
    given = renders([one.scene for one in asked], 1, d.height, d.width)[:, 0]
    clips = [
        pipe(one.prompt, image=first, seed=i).frames[0] for i, (one, first) in enumerate(zip(asked, given, strict=True))
    ]
    readings, kept = [measure(clip) for clip in clips], []
    for reading, one in zip(readings, asked, strict=True):
        marks = mark(reading, one)
        kept.append(all(right for name in ("identity", "colour", "shape") for _, right in marks[name]))
    report, names = score(readings, asked), ("colour", "shape", "motion", "direction", "turn", "dynamic")
    decibels = [psnr(clip[0], first) for clip, first in zip(clips, given, strict=True)]
    motions = [f"{value} {share(one['value'])} (n {one['n']})" for value, one in report["values"]["motion"].items()]
    rows = [
        ["PSNR of the first frame, dB: mean", float(np.mean(decibels))],
        ["the worst", float(min(decibels))],
        ["identity: the given object's colour and shape in at least nine frames of ten", share(float(np.mean(kept)))],
        *([f"{name} as asked", cell] for name, cell in zip(names, cells(report, names), strict=True) if cell),
        ["motion by what was asked", ", ".join(motions)],
    ]
    columns = [f"{count} plain prompts, the first frame of a render given", ""]
    store("image", args.out, made_by=args.made_by, columns=columns, rows=rows, scores_of=report["scores"])


def seam(args: argparse.Namespace) -> None:
    """The first half of a render given as a known tail: how large the change is where the clip goes on, over the median
    one. In the file given frames stand before made ones; decoded as one, both are the decoder's."""
    from dit_video.data.video import write_video
    from dit_video.evals.prompts import suite
    from dit_video.evals.references import renders

    count, pipe = args.count or 32, pipeline(args)
    d = pipe.model.defaults
    asked = [one for one in suite(3 * count, "plain", d.height, d.width) if one.objects[0]["motion"] in GOING][:count]
    whole = renders([one.scene for one in asked], 2 * CLIP - 1, d.height, d.width)
    made: dict[str, list[np.ndarray]] = {"in the file": [], "decoded as one": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed, (one, clip) in enumerate(zip(asked, whole, strict=True)):
            given = Path(folder) / f"{seed}.mp4"
            write_video(given, clip[:CLIP], d.fps, crf=1)
            (out,) = pipe(one.prompt, extend=given, num_frames=CLIP, seed=seed).clips
            made["in the file"].append(out.frames)
            made["decoded as one"].append(decoded(pipe, out.latents))
    made |= {"renders": list(whole), "renders through the VAE": [decoded(pipe, encoded(pipe, clip)) for clip in whole]}
    ratios = {name: [ratio(clip) for clip in clips] for name, clips in made.items()}
    rows = [
        [name, float(np.median(own)), float(max(own)), share(float(np.mean(np.array(own) < JUMP)))]
        for name, own in ratios.items()
    ]
    columns = [f"{len(asked)} clips, {CLIP} frames of a render given: change at the seam over the median change",
               "median", "worst", f"under {JUMP}"]  # fmt: skip
    store("seam", args.out, made_by=args.made_by, columns=columns, rows=rows, ratios=ratios)


def ratio(clip: np.ndarray) -> float:
    """Of the change where what was given ends."""
    from dit_video.evals.drift import changes

    return float(changes(clip)[CLIP - 1])


def encoded(pipe: Any, clip: np.ndarray) -> np.ndarray:
    """Normalised latents of a clip."""
    vae = pipe.params["vae"]
    ready = pipe.programs.prepare({"encode": ((), pipe.programs.encode, (vae, clip[None]))})
    return np.asarray(ready["encode"](vae, clip[None]))[0]


def decoded(pipe: Any, latents: np.ndarray) -> np.ndarray:
    """Frames of a clip's latents, all at once."""
    vae = pipe.params["vae"]
    ready = pipe.programs.prepare({"decode": ((), pipe.programs.decode, (vae, latents[None]))})
    return np.asarray(ready["decode"](vae, latents[None])[0])[0]


def start(args: argparse.Namespace) -> None:
    """Seeds of one prompt: how far apart objects start, against scenes of the same words as the renderer draws them."""
    from dit_video.evals.measure import measure
    from dit_video.evals.prompts import suite
    from dit_video.evals.quality import first_place, spread
    from dit_video.evals.toyworld import starts

    count, pipe = args.count or 32, pipeline(args)
    d = pipe.model.defaults
    rows: list[list[Any]] = []
    every: dict[str, tuple[list[Any], list[int]]] = {"model": ([], []), "renders": ([], [])}
    for i, one in enumerate(suite(count, "plain", d.height, d.width)):
        words = {name: one.objects[0][name] for name in ("colour", "shape", "motion", "direction")
                 if name in one.objects[0]}  # fmt: skip
        prompt, real = starts(words, i, d.height, d.width)
        clips = pipe([prompt] * SEEDS, seed=i).frames
        mine = [first_place(measure(clip)) for clip in clips]
        for who, own in (("model", mine), ("renders", list(real))):
            every[who][0].extend(own)
            every[who][1].extend([i] * len(own))
        ours, theirs = (spread(own, [i] * len(own)) for own in (mine, list(real)))
        rows.append([prompt, sum(place is not None for place in mine), ours, theirs, ours / theirs])
        print(*rows[-1], sep=" | ", flush=True)
    ours, theirs = (spread(*every[who]) for who in ("model", "renders"))
    rows.insert(0, ["all", sum(row[1] for row in rows), ours, theirs, ours / theirs])
    rows = [[*row[:2], *(float(v) if np.isfinite(v) else None for v in row[2:])] for row in rows]
    lowest = sorted(rows[1:], key=lambda row: -1.0 if row[-1] is None else row[-1])[:3]
    columns = [f"{SEEDS} seeds of a prompt", "objects seen in frame 0", "spread of their places", "of renders", "ratio"]
    store("start", args.out, made_by=args.made_by, columns=columns, rows=[rows[0], *lowest], each=rows[1:])


def steps(args: argparse.Namespace) -> None:
    """Scores by solver and number of steps, and the seconds that denoising one clip takes."""
    from dit_video.diffusion.solvers import SOLVERS
    from dit_video.evals.prompts import suite

    count, pipe = args.count or 96, pipeline(args)
    d = pipe.model.defaults
    asked = suite(count, "plain", d.height, d.width)
    columns = ["solver", "steps", *SCORES, "seconds a clip"]
    settings = {"prompts": count, "model": pipe.hash, "guidance": d.guidance}
    rows = Rows("steps", args.out, columns, 2, settings, args.made_by)
    for solver in SOLVERS:
        for number in STEPS:
            if (solver, number) in rows:
                continue
            how = {"num_inference_steps": number, "solver": solver, "seed": 0}
            report = scored(pipe([one.prompt for one in asked], **how).frames, asked)
            alone = pipe(asked[0].prompt, **how).metadata[0]["seconds"]
            rows.add([solver, number, *cells(report), alone["denoise"]])


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "image": image, "seam": seam, "start": start, "steps": steps,
}  # fmt: skip
