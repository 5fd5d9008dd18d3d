"""`dit-video import SRC OUT`: a public checkpoint becomes a model folder, checked whole; stdout says where."""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EPILOG = """\
SRC is a folder in the diffusers layout, an OWNER/NAME of the Hugging Face Hub, or a denoiser alone as its authors
publish it (a .safetensors file or a folder of them), which takes the rest from --base.

examples:
  dit-video import Wan-AI/Wan2.1-T2V-1.3B-Diffusers models/wan
  dit-video import wan2.1_t2v_1.3B_bf16.safetensors models/mine --base models/wan
  dit-video generate "a fox in the snow" --model models/wan

Names, shapes, checksums and values are checked; OUT has a checksum of every file. One tensor at a time is in memory.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "import", help="a public checkpoint becomes a model folder", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("source", metavar="SRC", help="what to read")
    parser.add_argument("out", metavar="OUT", help="the folder to write, here or in an object store (gs://, s3://)")
    parser.add_argument("--base", metavar="MODEL", help="where a denoiser alone takes all else from")
    add_writing(parser)


def add_writing(parser: Any) -> None:
    """The flags of everything that writes a model folder."""
    parser.add_argument("--lora", action="append", default=[], metavar="PATH[=STRENGTH]",
                        help="merge an adapter into the weights; repeatable")  # fmt: skip
    parser.add_argument("--dtype", choices=("keep", "float32", "float16", "bfloat16"), default="keep",
                        help="what weights are stored as (default: as they are)")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace a model folder that is there")


def run(args: argparse.Namespace) -> int:
    """Opens, checks, writes."""
    from dit_video.core.log import log
    from dit_video.weights.find import verify_download
    from dit_video.weights.original import find_source, open_any

    source = find_source(args.source)
    if source.is_dir() and (count := verify_download(source)):
        log.info("%d files have the Hub's checksums", count)
    return store(open_any(source, args.base), args)


def store(model: Any, args: argparse.Namespace) -> int:
    """Writes the model folder that the flags of `add_writing` ask for, and says what it holds."""
    from dit_video.core.log import log
    from dit_video.weights.folder import save_model
    from dit_video.weights.lora import merge_files
    from dit_video.weights.released import release

    model = merge_files(model, args.lora)
    dtypes = {} if args.dtype == "keep" else dict.fromkeys(model.parts, args.dtype)
    with destination(args.out, args.force) as folder:
        path = save_model(model, folder, dtypes=dtypes, force=args.force)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    log.info("%s: %s, %.2f GB", args.out, release(model).name, size / 1e9)
    about = {"path": args.out, "pipeline": model.pipeline, "parts": [*model.parts], "bytes": size}
    print(json.dumps(about) if args.json else args.out)
    return 0


@contextmanager
def destination(out: str, force: bool) -> Iterator[Path]:
    """The folder to write: OUT itself, or, for an address of an object store, one here whose files are sent there at
    the end. Raises `BadInput` where the address holds files already (`force` replaces an export or a model)."""
    from dit_video.core.errors import BadInput
    from dit_video.data.store import Store, is_address
    from dit_video.weights.find import INDEX, MANIFEST

    if not is_address(out):
        yield Path(out)
        return
    store = Store(out)
    there = store.names()
    # The manifest comes last: what was sent by half is told by its other files.
    ours = {name.partition("/")[0] for name in there} & {MANIFEST, "run.py", "transformer", "vae"}
    if there and not (force and ours):
        what = "it is no model and no export: choose another place" if force else "--force replaces it"
        raise BadInput(f"{out} holds {len(there)} files already; {what}.")
    with tempfile.TemporaryDirectory(prefix="dit_video-") as folder:
        yield Path(folder) / "out"
        store.send(Path(folder) / "out", INDEX, MANIFEST)
