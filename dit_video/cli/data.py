"""`dit-video data toyworld OUT --count N`: clips as MP4, each with its caption and its exact scene beside it."""

import argparse
import json
import os
from pathlib import Path

_BATCH_PIXELS = 2**23  # rendered at once: 100 MB of float32
_NOTE = """\
writes OUT/000000.mp4, OUT/000000.txt (the caption) and OUT/000000.json (the scene), and so on; clip i depends on the
seed and i alone. Such a folder is what a training run reads as --data.path.

example:
  dit-video data toyworld clips --count 100 --num_frames 17 --height 64 --width 64
"""


def add_parser(subparsers: "argparse._SubParsersAction") -> None:
    """The verb `data` and its own verbs."""
    data = subparsers.add_parser("data", help="make data", description="Make data to train on and to measure with.")
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=type(data))
    toy = kinds.add_parser(
        "toyworld",
        help="captioned clips of moving shapes, rendered from exact scenes",
        description="Captioned clips of moving shapes, rendered from exact scenes, at 8 frames a second.",
        epilog=_NOTE,
    )
    toy.add_argument("out", metavar="OUT", type=Path, help="folder to write into; made if it is not there")
    toy.add_argument("--count", type=int, required=True, help="how many clips")
    toy.add_argument("--num_frames", type=int, default=17, help="frames of each clip (default %(default)s)")
    toy.add_argument("--height", type=int, default=64, help="pixels, even (default %(default)s)")
    toy.add_argument("--width", type=int, default=64, help="pixels, even (default %(default)s)")
    toy.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    toy.add_argument("--plain", type=float, default=0.5, help="share of plain scenes (default %(default)s)")
    toy.add_argument("--two", type=float, default=0.25, help="share of two objects in the rest (default %(default)s)")
    toy.add_argument(
        "--split",
        choices=("train", "heldout", "any"),
        default="train",
        help="which combinations: those of training, those that training never sees, or all (default %(default)s); "
        "captions take held-out templates with heldout",
    )
    toy.add_argument("--force", action="store_true", help="write over clips that are there")


def run(args: argparse.Namespace) -> int:
    """Writes the clips, prints the folder (or one JSON object), and returns 0. Raises `BadInput` before any rendering
    if a number cannot be, or if the folder has clips already or cannot be written."""
    _check(args)
    from dit_video.core.log import Progress
    from dit_video.data.toyworld.scene import FPS

    progress = Progress(show=not getattr(args, "quiet", False))
    with progress.phase("toyworld", steps=args.count) as tick:
        for first in range(0, args.count, _batch(args)):
            _write(args, range(first, min(first + _batch(args), args.count)), tick)
    if getattr(args, "json", False):
        fields = ("count", "num_frames", "height", "width", "seed", "split", "plain", "two")
        print(json.dumps({"path": str(args.out)} | {name: getattr(args, name) for name in fields} | {"fps": FPS}))
    else:
        print(args.out)
    return 0


def _batch(args: argparse.Namespace) -> int:
    return max(1, min(32, args.count, _BATCH_PIXELS // (args.num_frames * args.height * args.width)))


def _check(args: argparse.Namespace) -> None:
    from dit_video.core.errors import BadInput

    for name, low in (("count", 1), ("num_frames", 1), ("height", 16), ("width", 16), ("seed", 0)):
        if getattr(args, name) < low:
            raise BadInput(f"{name}={getattr(args, name)} is too small. Use {low} or more.")
    for name in ("height", "width"):
        value = getattr(args, name)
        if value % 2:
            raise BadInput(f"{name}={value}: MP4 halves the grid of colours, so it must be even. Use {value + 1}.")
    for name in ("plain", "two"):
        if not 0 <= getattr(args, name) <= 1:
            raise BadInput(f"{name}={getattr(args, name)} is a share. Use a number from 0 to 1.")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{args.out}: cannot make this folder ({error.strerror}). Give another OUT.") from error
    if not os.access(args.out, os.W_OK | os.X_OK):
        raise BadInput(f"{args.out}: cannot write here. Give another OUT.")
    if not args.force and any(args.out.glob("[0-9]" * 6 + ".mp4")):
        raise BadInput(f"{args.out} has clips already. Give another OUT, or --force to write over them.")


def _write(args: argparse.Namespace, indices: range, tick) -> None:
    import numpy as np

    from dit_video.data.toyworld.captions import caption
    from dit_video.data.toyworld.render import pack, render_batch, to_uint8
    from dit_video.data.toyworld.scene import FPS, to_json
    from dit_video.data.toyworld.splits import sample_scene
    from dit_video.data.video import write_video

    scenes, texts = [], []
    for i in indices:
        rng = np.random.default_rng((args.seed, i))
        scenes.append(sample_scene(rng, args.split, args.plain, args.two, args.height, args.width))
        texts.append(caption(scenes[-1], rng, "heldout" if args.split == "heldout" else "train"))
    # A short last batch is filled up, so that one size is compiled only.
    full = scenes + scenes[-1:] * (_batch(args) - len(scenes))
    clips = to_uint8(render_batch(pack(full), args.num_frames, args.height, args.width))
    for i, scene, text, frames in zip(indices, scenes, texts, clips, strict=False):
        name = args.out / f"{i:06d}"
        name.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        name.with_suffix(".json").write_text(to_json(scene) + "\n", encoding="utf-8")
        about = {"caption": text, "scene": json.loads(to_json(scene)), "seed": args.seed, "index": i}
        write_video(name.with_suffix(".mp4"), frames, FPS, about)
        tick()
