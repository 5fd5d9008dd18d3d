"""`dit-video data toyworld OUT --count N`: clips as MP4, each with its caption and its exact scene beside it.
`dit-video data build SRC OUT`: the clips of a training source, encoded once, as shards that training reads.
`dit-video data merge OUT SRC SRC`: several such folders as one."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

DRAWN = {  # fields of toyworld that `build` takes as flags
    "seed": "of toyworld",
    "plain": "share of toyworld's scenes that a plain prompt asks for",
    "two": "share of two objects among its other scenes",
    "often": "its shapes and motions that are drawn so many times as often: star=1.5,spins=2",
}
_BATCH_PIXELS = 2**23  # rendered at once: 100 MB of float32
_NOTE = """\
writes OUT/000000.mp4, OUT/000000.txt (the caption) and OUT/000000.json (the scene), and so on; clip i depends on the
seed and i alone. Such a folder is what a training run reads as --data.path.

example:
  dit-video data toyworld clips --count 100 --num_frames 17 --height 64 --width 64
"""
_BUILD_NOTE = """\
SRC is an experiment (a name that the package carries, or a file: its data and its buckets), or a folder of clips with
captions, here or in an object store (gs://, s3://). Videos are split into scenes and these into clips of the buckets.
OUT gets ArrayRecord shards, manifest.json and a JSON file of what each shard holds. Interrupted, the same line goes on;
with new files in SRC, or a larger --count, it adds to what is there. Files that cannot be read are named and left out;
with --retry_broken they are tried again.

examples:
  dit-video data build toyworld latents --count 20000
  dit-video train toyworld --data latents
  dit-video data build clips/ latents --buckets 17x64x64,1x64x64 --workers 4 --min_motion 0.5
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
    _add_build(kinds)
    _add_merge(kinds)


def _add_build(kinds: "argparse._SubParsersAction") -> None:
    build = kinds.add_parser(
        "build",
        help="encode the clips of a training source once, as shards that training reads",
        description="Encodes the clips of a training source once: latents and captions as ArrayRecord shards.",
        epilog=_BUILD_NOTE,
    )
    build.add_argument("src", metavar="SRC", help="an experiment, or a folder of clips")
    build.add_argument("out", metavar="OUT", help="folder to write into, here or in an object store")
    build.add_argument("--model", metavar="M", help="whose VAE encodes (default: that on board)")
    build.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto")
    build.add_argument("--count", type=int, help="clips of toyworld")
    for name, what in DRAWN.items():
        build.add_argument(f"--{name}", metavar="X", help=f"{what} (default: as the experiment says)")
    build.add_argument("--buckets", metavar="FxHxW,...", help="frames, height, width (default: the experiment's)")
    build.add_argument(
        "--held_out", type=float, default=0.05, help="share kept for the held-out loss (default %(default)s)"
    )
    build.add_argument(
        "--pictures", type=int, default=4, help="frames of each clip encoded alone too (default %(default)s)"
    )
    build.add_argument(
        "--chunk", type=int, default=16, help="clips encoded at once, fewer of large ones (default %(default)s)"
    )
    build.add_argument("--items", type=int, default=256, help="files or drawn clips a shard (default %(default)s)")
    build.add_argument("--stored", choices=("float16", "float32"), default="float16", help="(default %(default)s)")
    files = build.add_argument_group("for folders of clips")
    files.add_argument(
        "--workers", type=int, default=1, help="processes that read files; 0: none (default %(default)s)"
    )
    files.add_argument(
        "--retry_broken", action="store_true",
        help="make the shards anew that left out files which could not be read: they were mended, or are within reach",
    )  # fmt: skip
    files.add_argument("--fps", type=float, help="frames a second of the clips (default: the experiment's, or M's)")
    files.add_argument(
        "--scene", type=float, default=24.0,
        help="change from frame to frame, of 255, that ends a scene; 0: a file is one scene (default %(default)s)",
    )  # fmt: skip
    files.add_argument("--min_seconds", type=float, default=0.0, help="shorter scenes are left out")
    files.add_argument("--min_side", type=int, default=0, help="smaller files are left out: pixels of the shorter side")
    files.add_argument("--min_motion", type=float, default=0.0, help="clips that change less, of 255, are left out")
    files.add_argument("--max_motion", type=float, default=255.0, help="clips that change more are left out")


def _add_merge(kinds: "argparse._SubParsersAction") -> None:
    merge = kinds.add_parser(
        "merge",
        help="several builds as one folder to train on",
        description="Encoded clips of several builds as one folder: shards are linked, or copied where they cannot be.",
        epilog="example:\n  dit-video data merge both latents/footage latents/stills",
    )
    merge.add_argument("out", metavar="OUT", help="a new folder, here or in an object store")
    merge.add_argument("src", metavar="SRC", nargs="+", help="folders that `data build` made with one VAE")


def run(args: argparse.Namespace) -> int:
    """Does what `kind` says, prints the folder (or one JSON object), and returns 0. Raises `BadInput` before any work
    if a number cannot be, or if the folder cannot be written."""
    return {"build": _build, "merge": _merge, "toyworld": _toyworld}[args.kind](args)


def _merge(args: argparse.Namespace) -> int:
    from dit_video.core.log import Progress
    from dit_video.data.merge import merge
    from dit_video.data.store import Store

    progress = Progress(show=not args.quiet)
    with progress.phase("merge"):
        manifest = merge(Store(args.out), [Store(src) for src in args.src])
    _tell(args, manifest, progress.seconds["merge"])
    return 0


def _tell(args: argparse.Namespace, manifest: dict[str, Any], seconds: float) -> None:
    """Where the encoded clips are, or all that is known of them."""
    if not args.json:
        print(args.out)
        return
    shards = [shard for part in manifest["parts"].values() for shard in part]
    told = {name: manifest[name] for name in ("clips", "broken", "dropped")}
    size = {"shards": len(shards), "bytes": sum(shard["bytes"] for shard in shards)}
    print(json.dumps({"path": args.out, **told, **size, "seconds": round(seconds, 2)}))


def _build(args: argparse.Namespace) -> int:
    from dit_video.cli.generate import prepare_jax
    from dit_video.core.log import Progress
    from dit_video.data.build import Builder, Options
    from dit_video.data.scenes import Cutting
    from dit_video.data.store import Store

    cutting = Cutting(
        scene=args.scene, min_seconds=args.min_seconds, min_side=args.min_side,
        min_motion=args.min_motion, max_motion=args.max_motion,
    )  # fmt: skip
    options = Options(cutting.check(), args.pictures, args.chunk, args.items, args.stored).check()
    prepare_jax(args.device)
    buckets, material = _material(args, cutting)
    vae, encode = _encoder(args.model, material.reader)
    builder = Builder(Store(args.out), material, buckets, encode, vae, options)
    progress = Progress(show=not args.quiet)
    with progress.phase("build", steps=sum(map(len, material.items.values()))) as tick:
        manifest = builder.run(tick, args.retry_broken)
    _tell(args, manifest, progress.seconds["build"])
    return 0


def _material(args: argparse.Namespace, cutting: Any) -> tuple[Any, Any]:
    """Buckets and items of SRC. Raises `BadInput` for what is neither an experiment nor a folder, and for buckets off
    the rules."""
    from dataclasses import replace

    from dit_video.core.config import load_experiment, override, packaged_experiments
    from dit_video.core.errors import BadInput
    from dit_video.data.buckets import parse_buckets
    from dit_video.data.build import folder, toyworld
    from dit_video.data.folder import Folder
    from dit_video.data.loader import Toyworld

    if not 0 <= args.held_out < 1:
        raise BadInput(f"held_out={args.held_out} is a share. Use a number from 0 to below 1.")
    if args.workers < 0:
        raise BadInput(f"workers={args.workers} is too small. Use 0 or more.")
    named = args.src in packaged_experiments() or args.src.endswith(".py")
    experiment = load_experiment(args.src if named else "finetune_folder")
    source = experiment.data if named else replace(experiment.data, path=args.src.rstrip("/") or "/")
    buckets = parse_buckets(args.buckets) if args.buckets else experiment.buckets
    for bucket in buckets:
        bucket.check()
    if isinstance(source, Toyworld):
        if not args.count or args.count < 1:
            raise BadInput(f"{args.src} is endless: give --count, the number of clips")
        given = {name: value for name in DRAWN if (value := getattr(args, name)) is not None}
        source = override(source, given)
        return buckets, toyworld(source, buckets, args.count, args.held_out)
    if not isinstance(source, Folder):
        raise BadInput(
            f"{args.src}: its data are {type(source).__name__}; toyworld and folders of clips can be encoded"
        )
    if given := [f"--{name}" for name in ("count", *DRAWN) if getattr(args, name) is not None]:
        raise BadInput(f"{', '.join(given)}: for toyworld; {args.src} has the clips that it has")
    rate = args.fps
    if rate is None and args.model is not None and not named:
        rate = _rate(args.model)
    source = replace(source, held_out=args.held_out, fps=source.fps if rate is None else rate)
    return buckets, folder(source, buckets, cutting, args.workers)


def _rate(model: str) -> float | None:
    """Frames a second of the clips that a model makes; None for what is a VAE alone."""
    from dit_video.core.errors import BadInput, MissingError
    from dit_video.core.log import log
    from dit_video.weights.runs import open_base

    try:
        rate = open_base(model).defaults.fps
    except (BadInput, MissingError):
        return None
    log.info("clips of %g frames a second, as %s makes them (--fps for others)", rate, model)
    return rate


def _encoder(model: str | None, reader: Any) -> tuple[dict[str, Any], Any]:
    """What the manifest says of the VAE, and the function that encodes a chunk."""
    import jax
    import numpy as np
    from flax import nnx

    from dit_video.data.shards import Posterior
    from dit_video.train.encode import encode_clips
    from dit_video.weights.encoder import encoder_digest
    from dit_video.weights.model import abstract
    from dit_video.weights.runs import load_vae

    config, weights = load_vae(model)
    graph, params = nnx.split(abstract(config.on(jax.devices()[0].platform)))[0], jax.device_put(weights)

    def encode(arrays: Any, bucket: int, numbers: Any) -> tuple[Posterior, Posterior]:
        parts = jax.device_get(encode_clips(graph, params, arrays, bucket, reader, numbers))
        clips, pictures = (Posterior(mean, np.exp(0.5 * logvar)) for mean, logvar in parts)
        return clips, pictures

    about = {"name": model or "board", "digest": encoder_digest(config, weights)}
    return about | {"stride": config.stride, "factor": config.factor, "z": config.z}, encode


def _toyworld(args: argparse.Namespace) -> int:
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
