"""`dit-video eval --suite NAME`: how good a model's videos are, by measures that no generator can please."""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_video.cli.generate import add_model

if TYPE_CHECKING:
    import numpy as np

    from dit_video.core.log import Progress
    from dit_video.evals.toyworld import Sampling

FREE = 100  # prompts of the free list
COUNTS = {"toyworld": 400, "reconstruction": 96, "distribution": 256, "drift": 32}  # clips, if nobody says
# Settings that not every suite looks at, and what they are if nobody says: of prompts, toyworld's alone; of how clips
# are made, all but those of reconstruction, which makes none.
ASKED = {"prompts": "world", "heldout": False, "free": None, "condition": "none", "seeds": 8, "references": 100,
         "by": [], "by_count": 96}  # fmt: skip
MADE = {"num_inference_steps": None, "guidance_scale": None, "solver": None, "long": None, "seed": 0}
_NOTE = """\
suites:
  toyworld        does a video do what its prompt says: every attribute, the values of each, two objects and which has
                  which colour and motion; does everything stay in the picture and the same, move, not flicker
  reconstruction  what the VAE loses: PSNR, SSIM, flicker added; of toyworld, or with --data of a folder of videos
  distribution    are the clips spread as they should be: a polynomial-kernel distance (MMD) between generated clips and
                  renders, of what is measured in them and of the features of a small frozen network
  drift           long clips: every score over time

Lists of prompts are fixed, and longer lists begin with the shorter ones. Clips are measured by their frames alone; one
that cannot be read is wrong in everything. Beside the scores stand those of exact renders of the same prompts (the
ceiling), of their first frames frozen, of the nearest clips of training, and of the same clips against each other's
prompts (shuffled: the floor).

Writes OUT/index.html, one page with everything; OUT/report.json; OUT/first.png, best.png and worst.png, and
against.png, the first clips of the other model.

examples:
  dit-video eval --suite toyworld
  dit-video eval --suite toyworld --model runs/a --against runs/b --count 96
  dit-video eval --suite toyworld --by steps=4,8,16,32 --by guidance=1,3,5 --by size=64x64,48x80
  dit-video eval --suite toyworld --condition image --out report_image
  dit-video eval --suite reconstruction --data clips/
"""


def add_parser(subparsers: "argparse._SubParsersAction") -> None:
    """The verb `eval`."""
    parser = subparsers.add_parser(
        "eval",
        help="measure whether generated videos do what their prompts say",
        description="Measure how good a model's videos are.",
        epilog=_NOTE,
    )
    parser.add_argument("--suite", choices=tuple(COUNTS), default="toyworld", help="(default %(default)s)")
    add_model(parser)
    parser.add_argument("--against", metavar="MODEL", help="another model, measured the same way and shown beside")
    counts = ", ".join(f"{suite} {count}" for suite, count in COUNTS.items())
    parser.add_argument("--count", type=int, help=f"how many clips (default: {counts})")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write into; a report there "
                        "is replaced (default %(default)s)")  # fmt: skip
    what = parser.add_argument_group("what is asked")
    what.add_argument(
        "--prompts",
        choices=("world", "plain", "free"),
        default=ASKED["prompts"],
        help="world: all that there is; plain: one medium object by day, static camera; free: a hundred that were "
        "written by somebody who did not know the grammar (default %(default)s)",
    )
    what.add_argument("--heldout", action="store_true", help="only combinations of words that training never saw")
    what.add_argument(
        "--free", type=int, metavar="N", help=f"free prompts beside the others (default: COUNT / 4, at most {FREE})"
    )
    what.add_argument(
        "--condition",
        choices=("none", "image"),
        default=ASKED["condition"],
        help="image: the first frame is given, from a render of what is asked (default %(default)s)",
    )
    what.add_argument(
        "--seeds",
        type=int,
        default=ASKED["seeds"],
        help="seeds a prompt, for diversity, two or more; 0: leave out (default %(default)s)",
    )
    what.add_argument(
        "--references",
        type=int,
        default=ASKED["references"],
        metavar="N",
        help="prompts rendered for comparison (default %(default)s)",
    )
    what.add_argument("--data", type=Path, metavar="DIR", help="reconstruction: a folder of videos instead of toyworld")
    how = parser.add_argument_group("how clips are made (defaults: the model's)")
    how.add_argument("--num_frames", type=int, help="frames of each clip")
    how.add_argument("--height", type=int, help="pixels")
    how.add_argument("--width", type=int, help="pixels")
    how.add_argument("--num_inference_steps", type=int)
    how.add_argument("--guidance_scale", type=float)
    how.add_argument("--solver")
    how.add_argument("--long", help="how clips beyond the length of training are made (as of generate)")
    how.add_argument("--seed", type=int, default=0, help="of the noise; the prompts stay (default %(default)s)")
    how.add_argument(
        "--by", action="append", default=[], metavar="AXIS=V,V",
        help="also with each of these values; axes: steps, guidance, frames, size (WIDTHxHEIGHT), solver; repeatable",
    )  # fmt: skip
    how.add_argument(
        "--by_count", type=int, default=ASKED["by_count"], help="prompts for each of them (default %(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="(default %(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="(default %(default)s)")
    parser.add_argument("--mesh", metavar="AXIS=N,...", help="spread over several devices, as `generate` does")


def run(args: argparse.Namespace) -> int:
    """Makes clips, measures, scores; writes the report; prints the tables, or one JSON object. Returns 0.

    Raises `BadInput` before a model is loaded if a number cannot be or OUT cannot be written.
    """
    _check(args)
    from dit_video.cli.generate import prepare_jax
    from dit_video.core.log import Progress
    from dit_video.evals import compare, distribution, page, tables

    began = time.perf_counter()
    prepare_jax(args.device)
    progress = Progress(show=not args.quiet)
    evaluate = SUITES[args.suite]
    report, clips, ours = evaluate(Maker(args.model, args), args, progress)
    their_clips: Sequence[np.ndarray] = ()
    if args.against is not None:
        page.write(args.out, report, clips)  # whatever comes of the other
        other, their_clips, theirs = evaluate(Maker(args.against, args), args, progress)
        differ = distribution.difference if args.suite == "distribution" else compare.difference
        compare.beside(report, other, differ(ours, theirs))
    report["seconds"] = {name: round(value, 2) for name, value in progress.seconds.items()}
    report["seconds"]["total"] = round(time.perf_counter() - began, 2)
    page.write(args.out, report, clips, their_clips)
    if args.json:
        print(json.dumps({name: value for name, value in report.items() if name != "clips"}))
    else:
        print(tables.text(tables.tables(report)))
        print(args.out / "report.json")
        print(args.out / "index.html")
    return 0


def _check(args: argparse.Namespace) -> None:
    from dit_video.core.errors import BadInput, MissingError
    from dit_video.evals import WRITES

    foreign = ({} if args.suite == "toyworld" else ASKED) | (MADE if args.suite == "reconstruction" else {})
    if given := [f"--{name}" for name, usual in foreign.items() if getattr(args, name) != usual]:
        raise BadInput(f"{', '.join(given)}: --suite {args.suite} does not look at that. Leave it out.")
    if args.suite == "toyworld":
        _check_lists(args)
    args.count = COUNTS[args.suite] if args.count is None else args.count
    args.free = min(FREE, args.count // 4) if args.free is None else args.free
    for name, low in (("count", 1), ("seeds", 0), ("seed", 0), ("free", 0), ("references", 0), ("by_count", 1)):
        if getattr(args, name) < low:
            raise BadInput(f"{name}={getattr(args, name)} is too small. Use {low} or more.")
    if args.suite == "distribution" and args.count < 2:
        raise BadInput("count=1 is too small: one clip has no distribution. Use 2 or more.")
    axes = [_axis(text) for text in args.by]
    args.by = dict(axes)
    if len(args.by) < len(axes):
        raise BadInput("--by: an axis is given twice. Give it once, with all its values: --by steps=4,8,16.")
    if args.data is not None and args.suite != "reconstruction":
        raise BadInput(f"--data is for --suite reconstruction; {args.suite} knows the truth of toyworld only.")
    if args.data is not None and not args.data.is_dir():
        raise MissingError(f"--data {args.data}: there is no such folder.")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{args.out}: cannot make this folder ({error.strerror}). Give another --out.") from error
    there = [name for name in WRITES if (args.out / name).exists()]
    if there and not _is_report(args.out / "report.json"):
        raise BadInput(f"{args.out / there[0]} is there already, and eval did not write it. Give another --out.")
    if not os.access(args.out, os.W_OK | os.X_OK):
        raise BadInput(f"{args.out}: cannot write here. Give another --out.")


def _check_lists(args: argparse.Namespace) -> None:
    """The list of free prompts is fixed and has an end; what cannot be had of it is no choice."""
    from dit_video.core.errors import BadInput

    if args.seeds == 1:
        raise BadInput("--seeds 1: diversity compares seeds of one prompt. Use 2 or more, or 0 to leave it out.")
    if args.free is not None and args.free > FREE:
        raise BadInput(f"--free {args.free}: there are {FREE} free prompts. Use {FREE} or less.")
    if args.prompts != "free":
        return
    if args.condition == "image":
        raise BadInput("--condition image needs prompts that can be rendered. Leave out --prompts free.")
    if args.heldout:
        raise BadInput("--heldout: of free prompts nobody knows what training saw. Leave it, or --prompts free, out.")
    if args.free:
        raise BadInput(f"--free {args.free}: with --prompts free they are all that is asked. Leave --free out.")
    if (args.count or 0) > FREE:
        raise BadInput(f"--count {args.count}: there are {FREE} free prompts. Use {FREE} or less.")
    args.count, args.free = FREE if args.count is None else args.count, 0


def _is_report(file: Path) -> bool:
    """Whether it is the report of an evaluation, which the next one replaces."""
    try:
        return "suite" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _axis(text: str) -> tuple[str, list[Any]]:
    """`steps=4,8` as an axis and its values."""
    from dit_video.core.errors import BadInput

    def size(value: str) -> tuple[int, int]:
        width, height = value.split("x")
        return int(height), int(width)

    axis, _, values = text.partition("=")
    kinds: dict[str, Callable[[str], Any]] = {
        "steps": int, "guidance": float, "frames": int, "size": size, "solver": str,
    }  # fmt: skip
    try:
        return axis, [kinds[axis](value) for value in values.split(",")]
    except (KeyError, ValueError):
        raise BadInput(
            f"--by {text}: not an axis with its values. Use steps=4,8 or guidance=1,3 or frames=17,33 or "
            f"size=64x64,48x80 or solver=unipc,euler."
        ) from None


class Maker:
    """A model on board a pipeline, as the evaluations want it (`evals.toyworld.Subject`)."""

    def __init__(self, model: str | None, args: argparse.Namespace):
        from dit_video.generate.pipeline import VideoPipeline

        self.pipe = VideoPipeline.from_pretrained(model, args.mesh, dtype=args.dtype, progress=not args.quiet)
        self.name, self.hash, self.fps = self.pipe.model.name, self.pipe.hash, self.pipe.model.defaults.fps

    def sampling(self, args: argparse.Namespace) -> "Sampling":
        """What was asked for on the command line, sizes filled in by the model."""
        from dit_video.evals.toyworld import Sampling

        defaults = self.pipe.model.defaults
        sizes = {name: getattr(defaults, name) if getattr(args, name) is None else getattr(args, name)
                 for name in ("height", "width", "num_frames")}  # fmt: skip
        names = ("num_inference_steps", "guidance_scale", "solver", "long", "seed")
        return Sampling(**sizes, **{name: getattr(args, name) for name in names})

    def check(self, how: "Sampling") -> None:
        """Raises BadInput where no clip can be made so, before one is."""
        from dit_video.generate.request import resolve

        resolve(self.pipe.model, "a red circle moves right", seed=how.seed, **asked_for(how))

    def make(
        self, prompts: Sequence[str], how: "Sampling", images: "Sequence[np.ndarray] | None" = None
    ) -> list["np.ndarray"]:
        """Clips uint8 (T, H, W, 3), one a prompt. With images one call a clip, as a call takes one picture; the seeds
        count up."""
        given = asked_for(how)
        if images is None:
            return list(self.pipe(list(prompts), seed=how.seed, **given).frames)
        return [
            self.pipe([prompt], seed=how.seed + i, image=image, **given).frames[0]
            for i, (prompt, image) in enumerate(zip(prompts, images, strict=True))
        ]

    def reconstruct(self, clips: "np.ndarray") -> "np.ndarray":
        """Clips uint8 (N, T, H, W, 3) through encoder and decoder."""
        import numpy as np

        programs, vae = self.pipe.programs, self.pipe.params["vae"]
        with programs.on_mesh():
            encode = programs.prepare({"encode": ((), programs.encode, (vae, clips))})["encode"]
            latents = np.asarray(encode(vae, clips))
            decode = programs.prepare({"decode": ((), programs.decode, (vae, latents))})["decode"]
            return np.asarray(decode(vae, latents)[0])

    def about(self, args: argparse.Namespace, how: "Sampling", *names: str) -> dict[str, Any]:
        """What a report says of model and settings."""
        from dataclasses import asdict

        settings = {name: getattr(args, name) for name in names} | asdict(how) | {"fps": self.fps}
        return {"model": {"name": self.name, "hash": self.hash}, "settings": settings}


def asked_for(how: "Sampling") -> dict[str, Any]:
    """The arguments of a call of the pipeline, but for the seed."""
    given = {name: getattr(how, name) for name in ("height", "width", "num_frames", "guidance_scale")}
    given |= {"num_inference_steps": how.num_inference_steps}
    return given | {name: value for name in ("solver", "long") if (value := getattr(how, name)) is not None}


Result = tuple[dict[str, Any], "Sequence[np.ndarray]", Any]  # report, clips, what two models' difference is made of


def toyworld(maker: Maker, args: argparse.Namespace, progress: "Progress") -> Result:
    """Prompts, and whether clips do what they say."""
    from dit_video.evals import compare, page
    from dit_video.evals.toyworld import Plan, changed, evaluate

    plan = Plan(args.count, args.prompts, args.heldout, args.condition, args.seeds, args.free, args.references, args.by,
                args.by_count)  # fmt: skip
    how = maker.sampling(args)
    for axis, options in args.by.items():
        for value in options:
            maker.check(changed(how, axis, value))
    about = maker.about(args, how, "prompts", "heldout", "condition")
    # Hours of clips are not lost with what comes after them.
    out = evaluate(maker, plan, how, progress, lambda report, clips: page.write(args.out, report | about, clips))
    return out.report | about, out.clips, compare.of_marks(out.marks)


def reconstruction(maker: Maker, args: argparse.Namespace, progress: "Progress") -> Result:
    """What the VAE loses."""
    from dit_video.evals import compare
    from dit_video.evals import reconstruction as suite

    how = maker.sampling(args)
    size = (how.num_frames, how.height, how.width, maker.fps)
    if args.data is not None:
        clips, groups = suite.folder_clips(args.data, args.count, *size, maker.pipe.model.vae.stride)
        report, back = suite.evaluate(maker.reconstruct, clips, groups, progress)
    else:
        report, back = suite.evaluate_toyworld(maker.reconstruct, args.count, *size, progress)
    smaller = suite.compression(back, maker.pipe.model.vae.latent_shape)
    own = compare.of_numbers({name: [clip[name] for clip in report["clips"]] for name in report["scores"]})
    return report | {"bytes": smaller} | maker.about(args, how), back, own


def distribution(maker: Maker, args: argparse.Namespace, progress: "Progress") -> Result:
    """How alike the clips and renders are, taken together."""
    from dit_video.evals.distribution import evaluate

    how = maker.sampling(args)
    report, clips, sets = evaluate(maker, args.count, how, progress)
    return report | maker.about(args, how), clips, sets


def drift(maker: Maker, args: argparse.Namespace, progress: "Progress") -> Result:
    """Long clips, window by window."""
    from dataclasses import replace

    from dit_video.evals.drift import evaluate

    how = maker.sampling(args)
    if args.num_frames is None:
        how = replace(how, num_frames=4 * how.num_frames - 3)  # 65 of 17: the next of the frames that a VAE can make
    report, clips, own = evaluate(maker, args.count, how, progress)
    return report | maker.about(args, how), clips, own


SUITES: dict[str, Callable[[Maker, argparse.Namespace, "Progress"], Result]] = {
    "toyworld": toyworld,
    "reconstruction": reconstruction,
    "distribution": distribution,
    "drift": drift,
}
