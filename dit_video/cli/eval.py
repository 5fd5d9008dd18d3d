"""`dit-video eval --suite toyworld`: how often a model's videos do what their prompts say."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from dit_video.core.log import Progress
    from dit_video.evals.measure import Reading
    from dit_video.evals.prompts import Asked

SUITES = ("toyworld",)
_RENDERED_AT_ONCE = 32
_SHEET = 24  # clips on the contact sheet: the first ones, not chosen
_DIVERSE = (  # prompts of which several seeds are compared
    {"colour": "red", "shape": "circle", "motion": "still"},
    {"colour": "blue", "shape": "square", "motion": "moves", "direction": "right"},
    {"colour": "green", "shape": "triangle", "motion": "spins"},
    {"colour": "yellow", "shape": "star", "motion": "moves", "direction": "up"},
)
_DRAWS = 64  # scenes of each of them, for the spread of start positions that renders have
_NOTE = """\
The list of prompts is fixed, and longer lists begin with the shorter ones. Clips are measured by their frames alone;
one that cannot be read is wrong in everything. Beside the scores stand those of exact renders of the same prompts
(ceiling) and of the same clips against each other's prompts (shuffled: the floor).

Writes OUT/report.json (with what was asked for and what was seen in every clip) and OUT/first.png, the first 24 clips.

examples:
  dit-video eval --suite toyworld
  dit-video eval --suite toyworld --model runs/a --condition image --out report_image
"""


def add_parser(subparsers: "argparse._SubParsersAction") -> None:
    """The verb `eval`."""
    parser = subparsers.add_parser(
        "eval",
        help="measure whether generated videos do what their prompts say",
        description="Measure whether generated videos do what their prompts say.",
        epilog=_NOTE,
    )
    parser.add_argument("--suite", choices=SUITES, default="toyworld", help="(default %(default)s)")
    parser.add_argument("--model", help="a diffusers folder, a run folder, or a name (default: the weights on board)")
    parser.add_argument("--count", type=int, default=96, help="how many prompts (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write into (default %(default)s)")
    parser.add_argument(
        "--condition",
        choices=("none", "image"),
        default="none",
        help="image: the first frame is given, from a render of what is asked (default %(default)s)",
    )
    parser.add_argument("--num_frames", type=int, help="frames of each clip (default: the model's)")
    parser.add_argument("--height", type=int, help="pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's)")
    parser.add_argument("--num_inference_steps", type=int, help="(default: the model's)")
    parser.add_argument("--guidance_scale", type=float, help="(default: the model's)")
    parser.add_argument("--solver", help="(default: the model's)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; the prompts stay (default %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=8, help="seeds a prompt, for diversity; 0: leave out (default %(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="(default %(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="(default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Generates, measures, scores; writes the report; prints the table, or one JSON object. Returns 0.

    Raises `BadInput` before a model is loaded if a number cannot be or OUT cannot be written.
    """
    _check(args)
    from dit_video.cli.generate import prepare_jax
    from dit_video.core.log import Progress
    from dit_video.generate.pipeline import VideoPipeline

    began = time.perf_counter()
    prepare_jax(args.device)
    progress = Progress(show=not args.quiet)
    pipe = VideoPipeline.from_pretrained(args.model, dtype=args.dtype, progress=not args.quiet)
    report, clips = evaluate(pipe, args, progress)
    report["seconds"] = {name: round(value, 2) for name, value in progress.seconds.items()}
    report["seconds"]["total"] = round(time.perf_counter() - began, 2)
    _write(args.out, report, clips)
    if args.json:
        print(json.dumps({name: value for name, value in report.items() if name != "clips"}))
    else:
        print(table(report))
        print(args.out / "report.json")
    return 0


def _check(args: argparse.Namespace) -> None:
    from dit_video.core.errors import BadInput

    for name, low in (("count", 1), ("seeds", 0), ("seed", 0)):
        if getattr(args, name) < low:
            raise BadInput(f"{name}={getattr(args, name)} is too small. Use {low} or more.")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{args.out}: cannot make this folder ({error.strerror}). Give another --out.") from error
    if not os.access(args.out, os.W_OK | os.X_OK):
        raise BadInput(f"{args.out}: cannot write here. Give another --out.")


def evaluate(pipe: Any, args: argparse.Namespace, progress: "Progress") -> tuple[dict[str, Any], list["np.ndarray"]]:
    """The report of a pipeline, and its clips (uint8) in the order of the prompts.

    pipe: called as `VideoPipeline`; `pipe.model` has `defaults`, `name`; `pipe.hash`.
    """
    from dit_video.evals.prompts import suite
    from dit_video.evals.score import score

    height, width, frames = size_of(pipe, args)
    asked = suite(args.count, height=height, width=width)
    with progress.phase("render"):
        renders = render_all([one.scene for one in asked], frames, height, width)
    with progress.phase("generate"):
        clips, fps = _generate(pipe, args, asked, renders)
    readings, ceiling = _read(clips, fps, progress), _read(renders, fps, progress)
    report = {"suite": args.suite} | score(readings, asked, ceiling)
    report["model"] = {"name": pipe.model.name, "hash": pipe.hash}
    asked_for = ("condition", "num_inference_steps", "guidance_scale", "solver", "seed")
    report["settings"] = {name: getattr(args, name) for name in asked_for} | {
        "num_frames": frames, "height": height, "width": width, "fps": fps,
    }  # fmt: skip
    if args.condition == "image":
        report["first_frame"] = _first_frames(clips, renders)
    if args.seeds > 1:
        report["diversity"] = _diversity(pipe, args, height, width, progress)
    return report, clips


def size_of(pipe: Any, args: argparse.Namespace) -> tuple[int, int, int]:
    """Height, width and frames: asked for, or the model's own."""
    defaults = pipe.model.defaults
    return args.height or defaults.height, args.width or defaults.width, args.num_frames or defaults.num_frames


def render_all(scenes: Sequence[Any], frames: int, height: int, width: int) -> "np.ndarray":
    """Exact renders, uint8 (N, T, H, W, 3)."""
    import numpy as np

    from dit_video.data.toyworld.render import pack, render_batch, to_uint8

    parts = []
    for first in range(0, len(scenes), _RENDERED_AT_ONCE):
        some = list(scenes[first : first + _RENDERED_AT_ONCE])
        full = some + some[-1:] * (min(_RENDERED_AT_ONCE, len(scenes)) - len(some))  # one size is compiled only
        parts.append(to_uint8(render_batch(pack(full), frames, height, width))[: len(some)])
    return np.concatenate(parts)


def _call(pipe: Any, args: argparse.Namespace, prompts: list[str], seed: int, **more: Any) -> Any:
    names = ("num_frames", "num_inference_steps", "guidance_scale")
    given = {name: getattr(args, name) for name in names}
    height, width, _ = size_of(pipe, args)
    if args.solver is not None:
        more["solver"] = args.solver
    return pipe(prompts, seed=seed, height=height, width=width, **given, **more)


def _generate(
    pipe: Any, args: argparse.Namespace, asked: "Sequence[Asked]", renders: "np.ndarray"
) -> tuple[list["np.ndarray"], float]:
    """A clip for each prompt, and their frames a second."""
    if args.condition == "none":
        out = _call(pipe, args, [one.prompt for one in asked], args.seed)
        return list(out.frames), out.clips[0].fps
    clips, fps = [], 0.0
    for i, (one, render) in enumerate(zip(asked, renders, strict=True)):
        # one call takes one picture, and each of these clips has its own
        out = _call(pipe, args, [one.prompt], args.seed + i, image=render[0])
        clips, fps = [*clips, out.frames[0]], out.clips[0].fps
    return clips, fps


def _read(clips: Sequence["np.ndarray"], fps: float, progress: "Progress") -> list["Reading"]:
    from dit_video.evals.measure import measure

    readings = []
    with progress.phase("measure", steps=len(clips)) as tick:
        for clip in clips:
            readings.append(measure(clip, fps))
            tick()
    return readings


def _first_frames(clips: Sequence["np.ndarray"], renders: "np.ndarray") -> dict[str, float]:
    """How well the given first frame is kept, in dB."""
    import numpy as np

    from dit_video.evals.score import psnr

    each = np.array([psnr(clip[0], render[0]) for clip, render in zip(clips, renders, strict=True)])
    return {
        "psnr": round(float(each.mean()), 2),
        "lowest": round(float(each.min()), 2),
        "over_28": round(float((each > 28).mean()), 4),
    }


def _diversity(pipe: Any, args: argparse.Namespace, height: int, width: int, progress: "Progress") -> dict[str, float]:
    """Spread of start positions over seeds of one prompt, in units of min(height, width), and the renderer's."""
    import numpy as np

    from dit_video.data.toyworld.captions import canonical
    from dit_video.data.toyworld.draw import make_scene
    from dit_video.data.toyworld.motion import pack, screen_track
    from dit_video.evals.score import first_place, spread

    prompts, real, groups = [], [], []
    for i, given in enumerate(_DIVERSE):
        scenes = [make_scene(np.random.default_rng((i, k)), height=height, width=width, **given) for k in range(_DRAWS)]
        track = screen_track(pack(scenes), np.zeros(1, np.float32), height, width)
        real += list(np.stack([track.x[:, 0, 0], track.y[:, 0, 0]], -1) / min(height, width))
        groups += [i] * _DRAWS
        prompts += [canonical(scenes[0])] * args.seeds
    out = _call(pipe, args, prompts, args.seed + 1)
    places = [first_place(reading) for reading in _read(out.frames, out.clips[0].fps, progress)]
    made, known = spread(places, prompts), spread(real, groups)
    ratio = {} if np.isnan(made) else {"spread": round(made, 4), "ratio": round(made / known, 4)}
    return ratio | {"renders": round(known, 4), "n": len(prompts), "seen": sum(place is not None for place in places)}


def _write(out: Path, report: dict[str, Any], clips: Sequence["np.ndarray"]) -> None:
    from PIL import Image

    from dit_video.data.video import contact_sheet

    Image.fromarray(contact_sheet(clips[:_SHEET])).save(out / "first.png")
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(report: dict[str, Any]) -> str:
    """Per attribute the score with its interval beside the splits and the references; then per value."""
    templates, reference = report["splits"].get("template", {}), report["reference"]

    def cell(value: float | None) -> str:
        return f"{100 * value:7.1f}" if value is not None else "      -"

    heads = f"{'score':>7s}  {'95 % interval':>15s}{'seen':>7s}{'unseen':>7s}{'renders':>8s}{'shuffled':>9s}{'n':>6s}"
    lines = [f"{'':12s}{heads}"]
    for name, entry in report["scores"].items():
        interval = f"{100 * entry['low']:.1f} .. {100 * entry['high']:.1f}"
        sides = "".join(cell(templates.get(side, {}).get(name, {}).get("value")) for side in ("seen", "unseen"))
        known = f"{cell(reference.get('renders', {}).get(name))} {cell(reference['shuffled'].get(name)):>8s}"
        lines.append(f"{name:12s}{cell(entry['value'])}  {interval:>15s}{sides} {known}{entry['n']:6d}")
    lines.append("")
    for name, values in report["values"].items():
        each = "  ".join(f"{value} {100 * entry['value']:.0f} ({entry['n']})" for value, entry in values.items())
        lines.append(f"{name:12s}{each}")
    for name in ("first_frame", "diversity"):
        if name in report:
            lines.append(f"{name:12s}" + "  ".join(f"{key} {value:g}" for key, value in report[name].items()))
    return "\n".join(lines)
