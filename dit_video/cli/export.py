"""`dit-video export OUT --to FORMAT`: a model or a run becomes files that other programs open; stdout says where."""

import argparse
from importlib import import_module
from typing import Any

EPILOG = """\
formats:
  diffusers   a folder that diffusers' pipelines of the Wan family open: safetensors, configs, scheduler, tokenizer

examples:
  dit-video export models/mine --model runs/a --to diffusers --verify
  dit-video export models/merged --model models/wan --lora style.safetensors=0.8 --to diffusers
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export", help="a model becomes files for other programs", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("out", metavar="OUT", help="what to write")
    parser.add_argument("--to", choices=("diffusers",), required=True, metavar="FORMAT", help="diffusers")
    parser.add_argument("--model", metavar="MODEL", help="a model folder, a run folder, or a name (default: on board)")
    parser.add_argument("--verify", action="store_true", help="read everything back and compare")
    importing().add_writing(parser)


def importing() -> Any:
    """The verb `import`, whose name is a keyword."""
    return import_module("dit_video.cli.import")


def run(args: argparse.Namespace) -> int:
    """Opens, writes, compares."""
    from dit_video.weights.checkpoints import open_base

    return importing().store(open_base(args.model), args, args.verify)
