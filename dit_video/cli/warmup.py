"""`dit-video warmup --shapes 17x64x64,33x64x64`: compiles ahead, so that `generate` at these shapes starts at once."""

import argparse
import itertools
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_video.weights.model import Model

EPILOG = """\
A shape is frames x height x width. One step is run at each, and what was compiled stays in the compile cache, of which
`dit-video doctor` says where it is. The number of steps, the seed, the scale of guidance and the words of the prompt do
not change the programs; the prompt's length in steps of 16 tokens, the solver, guidance as such, a picture, the dtype,
the device and the number of clips at once do.

examples:
  dit-video warmup --shapes 17x64x64,33x64x64
  dit-video warmup --shapes 81x480x832 --model models/wan --with_image
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("warmup", help="compiles ahead for given shapes", description=__doc__, epilog=EPILOG)
    parser.add_argument("--shapes", required=True, metavar="TxHxW,...", help="frames x height x width, comma between")
    parser.add_argument(
        "--model", metavar="MODEL", help="a diffusers folder, a run folder, or a name (default: on board)"
    )
    parser.add_argument("--tokens", default="16,32", metavar="N,...", help="lengths of prompts (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="clips at once (default %(default)s)")
    parser.add_argument("--solver", metavar="NAME", help="unipc, dpmpp_2m, heun or euler (default: the model's)")
    parser.add_argument("--guidance_scale", type=float, metavar="X", help="1: the programs without guidance")
    parser.add_argument("--with_image", action="store_true", help="also those that start from a picture")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto")
    parser.add_argument("--mesh", metavar="AXIS=N,...", help="spread over several devices, as `generate` does")


def run(args: argparse.Namespace) -> int:
    """Checks every shape, then makes one step of each. Raises BadInput before anything is compiled."""
    from dit_video.cli.generate import compile_cache, prepare_jax
    from dit_video.core.errors import BadInput

    sizes = parse_shapes(args.shapes)
    parts = [part.strip() for part in args.tokens.split(",") if part.strip()]
    lengths = [int(part) for part in parts if part.isdecimal() and int(part) > 0]
    if args.batch < 1 or not lengths or len(lengths) < len(parts):
        raise BadInput(
            f"--batch {args.batch} --tokens {args.tokens}: give whole numbers from 1 up, comma between: 16,32"
        )
    prepare_jax(args.device)

    import numpy as np

    from dit_video.generate.mode import wanted
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.generate.request import resolve

    pipe = VideoPipeline.from_pretrained(args.model, args.mesh, dtype=args.dtype, progress=not args.quiet)
    how = {"solver": args.solver, "guidance_scale": args.guidance_scale, "num_inference_steps": 1, "seed": 0}
    prompts = {prompt_of(pipe.model, length): length for length in lengths}
    requests = []
    for (frames, height, width), prompt in itertools.product(sizes, prompts):
        picture = np.full((height, width, 3), 128, np.uint8)
        for image in (None, picture) if args.with_image else (None,):
            about = {"shape": f"{frames}x{height}x{width}", "tokens": prompts[prompt], "image": image is not None}
            size = {"num_frames": frames, "height": height, "width": width, "image": image}
            size |= dict.fromkeys(wanted(pipe.model), picture)
            requests.append(
                (
                    about,
                    resolve(
                        pipe.model, [prompt] * args.batch, memory=pipe.memory, ways=pipe.programs.ways, **size, **how
                    ),
                )
            )
    done = []
    for about, request in requests:
        before, began = programs(compile_cache()), time.perf_counter()
        pipe.run(request)
        spent, new = round(time.perf_counter() - began, 1), len(programs(compile_cache()) - before)
        done.append({**about, "seconds": spent, "programs": new})
        if not args.json:
            more = " and a picture" if about["image"] else ""
            print(f"{about['shape']}, prompts of {about['tokens']} tokens{more}: {spent:g} s, {new} new programs")
    if args.json:
        print(json.dumps({"cache": str(compile_cache()), "model": pipe.hash, "shapes": done}))
    return 0


def prompt_of(model: "Model", tokens: int) -> str:
    """Words that the model takes for a prompt of so many tokens, rounded up as it rounds, or as many as it takes."""
    text, limit = "a", model.dit.text_len
    while model.tokenizer.encode([text], max_length=limit).ids.shape[1] < min(tokens, limit):
        text += " a"
    return text


def programs(cache: Path | str) -> set[str]:
    """Names of what the compile cache holds."""
    from dit_video.data.store import Store

    return {name for name in Store(cache).names() if name.endswith("-cache")}


def parse_shapes(text: str) -> list[tuple[int, int, int]]:
    """`17x64x64,33x64x64` as (frames, height, width). Raises BadInput."""
    from dit_video.core.errors import BadInput

    shapes = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in shapes if not re.fullmatch(r"\d+x\d+x\d+", part)]
    if wrong or not shapes:
        raise BadInput(f"--shapes {text}: give frames x height x width, comma between: 17x64x64,33x64x64")
    return [(int(t), int(h), int(w)) for t, h, w in (part.split("x") for part in dict.fromkeys(shapes))]
