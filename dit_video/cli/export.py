"""`dit-video export OUT --to FORMAT`: a model or a run becomes files that other programs open; stdout says where."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

EPILOG = """\
formats:
  diffusers   a folder that diffusers' pipelines of the Wan family open: safetensors, configs, scheduler, tokenizer
  stablehlo   programs for CPU, CUDA and TPU in one file, of any size and any length from 13 frames up (and of the
              model's own, where that is shorter); JAX runs them without this package
  onnx        programs for ONNX Runtime, float32, one set for each of --shapes

Each holds a manifest and a model card; the last two also run.py, which makes a video and needs nothing of this package.
They compute in float32; --dtype bfloat16 goes with stablehlo. A shape is frames x height x width. StableHLO files are
promised to load for six months; --refresh makes them anew from the model.

examples:
  dit-video export models/mine --model runs/a --to diffusers --verify
  dit-video export models/merged --model models/wan --lora style.safetensors=0.8 --to diffusers
  dit-video export exported --to stablehlo --verify
  dit-video export exported --refresh
  dit-video export onnx --to onnx --shapes 17x64x64,33x64x64 --converter onnx-env/bin/python
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export", help="a model becomes files for other programs", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("out", metavar="OUT", help="what to write, here or in an object store (gs://, s3://)")
    parser.add_argument("--to", choices=("diffusers", "stablehlo", "onnx"), metavar="FORMAT",
                        help="diffusers, stablehlo or onnx")  # fmt: skip
    parser.add_argument("--model", metavar="MODEL", help="a model folder, a run folder, or a name (default: on board)")
    parser.add_argument("--shapes", metavar="TxHxW,...", help="of these sizes alone (default: stablehlo of any from 13 "
                        "frames up, onnx of the model's own)")  # fmt: skip
    parser.add_argument(
        "--verify", action="store_true", help="read everything back and open it in diffusers, or run it, and compare"
    )
    parser.add_argument("--scores", metavar="FILE", help="what `dit-video eval --json` printed, for the model card")
    parser.add_argument("--refresh", action="store_true", help="write OUT anew from the model that it was made from")
    parser.add_argument("--converter", metavar="PYTHON", help="the interpreter that has jax2onnx and onnxruntime")
    importing().add_writing(parser)


def importing() -> Any:
    """The verb `import`, whose name is a keyword."""
    return import_module("dit_video.cli.import")


def run(args: argparse.Namespace) -> int:
    """Opens, writes, compares."""
    from dit_video.core.errors import BadInput

    if args.refresh:
        again(args)
    if args.to is None:
        raise BadInput("--to FORMAT is missing: diffusers, stablehlo or onnx")
    if args.to == "diffusers":
        if args.shapes or args.converter:
            raise BadInput("--shapes and --converter go with --to stablehlo or onnx")
        return folder_for_diffusers(args)
    return programs(args)


def again(args: argparse.Namespace) -> None:
    """Takes what an export was made with from its manifest. Raises as `read_manifest`, and BadInput for other flags."""
    from dit_video.core.errors import BadInput
    from dit_video.data.store import is_address
    from dit_video.export.folder import read_manifest

    if is_address(args.out):
        raise BadInput(f"--refresh {args.out}: this is for a folder here. Export there again with --force.")
    about = read_manifest(Path(args.out))
    if args.to not in (None, about["format"]):
        raise BadInput(f"{args.out} is an export to {about['format']}; --to {args.to} wants a folder of its own")
    args.to, args.force = about["format"], True
    args.model = args.model or about["model"]["name"]
    args.lora = args.lora or about["model"]["lora"]
    args.dtype = about["dtype"] if args.dtype == "keep" else args.dtype
    args.shapes = args.shapes or ",".join("x".join(map(str, shape)) for shape in about["shapes"])
    args.hash, args.told = about["model"]["hash"], about.get("scores")


def folder_for_diffusers(args: argparse.Namespace) -> int:
    """A model folder with a card, read back and opened when it is to be verified."""
    from dit_video.core.log import log
    from dit_video.export.card import read_scores
    from dit_video.export.folder import Order
    from dit_video.export.model import add_card, add_to_manifest
    from dit_video.export.verify import open_in_diffusers
    from dit_video.generate.request import native_shift
    from dit_video.weights.folder import check_saved, save_model
    from dit_video.weights.lora import merge_files
    from dit_video.weights.runs import open_base

    scores = read_scores(args.scores) if args.scores else None
    model = merge_files(open_base(args.model), args.lora)
    dtypes = {} if args.dtype == "keep" else dict.fromkeys(model.parts, args.dtype)
    with importing().destination(args.out, args.force) as folder:
        path, measured = save_model(model, folder, dtypes=dtypes, force=args.force), None
        add_card(Order(model, args.dtype, native_shift(model), lora=tuple(args.lora), scores=scores), path)
        if args.verify:
            measured = {"tensors": check_saved(model, path, dtypes), "diffusers": open_in_diffusers(path)}
            add_to_manifest(path, {"measured": {**measured, "differing": 0, "against": model.name}})
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    about = {"path": args.out, "pipeline": model.pipeline, "parts": [*model.parts], "bytes": size}
    said = ""
    if measured is not None:
        about |= {"verified": measured["tensors"], "diffusers": measured["diffusers"]}
        opened = "diffusers is not installed, and did not open it"
        opened = f"opened by diffusers {measured['diffusers']}" if measured["diffusers"] else opened
        said = f"; {measured['tensors']} tensors read back bit for bit; {opened}"
    log.info("%s: %.2f GB%s", args.out, size / 1e9, said)
    print(json.dumps(about) if args.json else args.out)
    return 0


def programs(args: argparse.Namespace) -> int:
    """StableHLO and ONNX."""
    from dataclasses import replace

    from dit_video.cli.warmup import parse_shapes
    from dit_video.core.errors import BadInput
    from dit_video.core.log import log
    from dit_video.export import onnx, stablehlo
    from dit_video.export.card import checked, read_scores
    from dit_video.export.folder import Order, model_shape
    from dit_video.export.programs import portable
    from dit_video.export.verify import verify
    from dit_video.generate.request import native_shift
    from dit_video.weights.digests import digest_of
    from dit_video.weights.lora import merge_files
    from dit_video.weights.runs import open_base

    if args.converter and args.to != "onnx":
        raise BadInput("--converter goes with --to onnx")
    dtype = "float32" if args.dtype == "keep" else args.dtype
    (onnx if args.to == "onnx" else stablehlo).check_dtype(dtype)
    if args.scores:
        scores = read_scores(args.scores)
    elif scores := getattr(args, "told", None):
        checked(scores, f"{args.out}/manifest.json: what it says under scores")
    model = merge_files(open_base(args.model), args.lora)
    model = replace(model, digest=digest_of(model))
    if getattr(args, "hash", "") and model.digest != args.hash:
        raise BadInput(
            f"{args.out} was made from {args.hash}, and {model.name} is {model.digest} by now. Name the old one with "
            "--model, or export the new one elsewhere."
        )
    order = Order(
        portable(model, dtype, stablehlo.BACK), dtype, native_shift(model),
        tuple(parse_shapes(args.shapes)) if args.shapes else (), tuple(args.lora),
        scores, args.force,
    )  # fmt: skip
    python = onnx.converter(args.converter) if args.to == "onnx" else sys.executable
    with importing().destination(args.out, args.force) as out:
        if args.to == "onnx":
            onnx.export_onnx(order, out, python)
        else:
            stablehlo.export_stablehlo(order, out)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        shape = (*order.shapes, model_shape(model))[0]
        measured = verify(out, python, reference(model, dtype, shape), shape) if args.verify else None
    near = "" if measured is None else f"; {100 * measured['pixels_within_2_of_255']:.3f} % of pixels within 2/255"
    log.info("%s: %.1f MB%s", args.out, size / 1e6, near)
    about = {"path": args.out, "format": args.to, "bytes": size}
    print(json.dumps(about | ({} if measured is None else {"verified": measured})) if args.json else args.out)
    return 0


def reference(model: Any, dtype: str, shape: tuple[int, int, int]) -> Any:
    """What `generate` makes, as `verify` asks for it: (prompts, seed) -> frames."""
    from dit_video.generate.pipeline import VideoPipeline

    frames, height, width = shape
    pipe = VideoPipeline(model, dtype=dtype)
    size = {"num_frames": frames, "height": height, "width": width}
    return lambda prompts, seed: pipe(list(prompts), seed=seed, **size).frames
