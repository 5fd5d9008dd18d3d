"""`dit-video decode NAME.latents.npz`: saved latents become a video file, in memory that does not know its length."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  dit-video decode clip.latents.npz
  dit-video decode clip.latents.npz --output clip.gif --tile 32

`dit-video generate` leaves such a file with --save_latents, and when it was stopped or frames could not be made.
Footage that a clip was made to go on from is not in it.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "decode", help="saved latents become a video file", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("latents", metavar="LATENTS.npz")
    parser.add_argument("--output", metavar="PATH", help="(default: NAME.mp4 beside the latents)")
    parser.add_argument("--model", metavar="MODEL", help="whose VAE (default: the one that the file names)")
    parser.add_argument(
        "--tile", type=int, metavar="N", help="side of a tile in latent positions (default: as memory wants)"
    )
    parser.add_argument("--overlap", type=int, default=4, metavar="N", help="what tiles share (default %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto")
    parser.add_argument("--mesh", metavar="AXIS=N,...", help="spread over several devices, as `generate` does")
    parser.add_argument("--force", action="store_true", help="overwrite")


def run(args: argparse.Namespace) -> int:
    """Reads, decodes and writes piece by piece. Raises BadInput before a model is loaded."""
    import json

    from dit_video.cli.generate import prepare_jax
    from dit_video.core.errors import BadInput
    from dit_video.core.log import Progress, log
    from dit_video.generate.clip import check_free, check_writable, load_latents
    from dit_video.generate.decode import strips_of

    source = Path(args.latents)
    latents, about = load_latents(source)
    strips = strips_of(latents, about)
    name = source.name.removesuffix(".npz").removesuffix(".latents")
    path = Path(args.output) if args.output else source.with_name(f"{name}.mp4")
    check_free(path, args.force, latents=False)
    check_writable(path.parent)
    prepare_jax(args.device)

    from dit_video.generate.decode import Tiles, decode_frames, how_decoded, tiles_for
    from dit_video.generate.film import write_frames
    from dit_video.generate.pipeline import VideoPipeline

    model = about.get("model", {})
    pipe = VideoPipeline.from_pretrained(args.model or model.get("name") or None, args.mesh, dtype=args.dtype)
    if latents.shape[-1] != pipe.model.vae.z:
        raise BadInput(
            f"{source}: latents of {latents.shape[-1]} channels, and the VAE of {pipe.model.name} has "
            f"{pipe.model.vae.z}. Give the --model that they were made with."
        )
    if other := is_of_another(pipe, about):
        log.warning("these latents are of another model (%s): colours and shapes may be off", model["hash"])
    if about.get("steps_done") is not None:
        log.warning("these latents are not finished: %s", about["steps_done"])
    height, width = latents.shape[1:3]
    shown = sum(max(0, 1 + (len(s.latents) - 1) * pipe.model.vae.stride - s.skip - s.drop) for s in strips)
    if shown != about.get("num_frames", shown):  # footage that it was made from is not in them, or they are unfinished
        about = about | {"num_frames": shown, "decoded_from": str(source)}
    vae, tiles, slots = pipe.params["vae"], None, 1  # the one part that is wanted: room for others is free
    if args.tile is None:
        parts = partial(pipe.programs.parts, 1)
        tiles, slots = tiles_for(pipe.model.vae, height, width, pipe.free(), parts)
    else:
        tiles = Tiles(args.tile, args.tile, args.overlap)
    about = about | {"decoded": how_decoded(tiles, slots)}
    spread = pipe.mesh and dict(pipe.mesh.shape)
    about["decoded"] |= {"mesh": spread} if about.get("mesh") != spread else {}
    used = {"name": pipe.model.name, "hash": pipe.model.digest, "vae": pipe.vae_hash}
    about["decoded"] |= {"model": {name: told for name, told in used.items() if told}} if other else {}
    about["decoded"] |= {"dtype": pipe.dtype} if about.get("dtype", pipe.dtype) != pipe.dtype else {}
    progress = Progress(not args.quiet)

    def frames():
        for strip in strips:
            for piece in decode_frames(pipe.programs, vae, strip, tiles, slots):
                yield from piece

    with progress.phase("decode"), pipe.programs.on_mesh():
        about = write_frames(
            path, frames(), about.get("fps", pipe.model.defaults.fps), about, lambda: about.get("seconds", {})
        )
    if args.json:
        print(json.dumps({"path": str(path), "seconds": {"decode": round(progress.seconds["decode"], 3)}}))
    else:
        print(path)
    sys.stdout.flush()
    return 0


def is_of_another(pipe: Any, about: dict[str, Any]) -> bool:
    """Whether latents are of a model with another VAE. Where an older version made them, which did not say: of another
    model, if the one that is here tells without being read."""
    made = about.get("model", {})
    if made.get("vae"):
        return made["vae"] != pipe.vae_hash
    here = not about.get("lora") and pipe.model.digest  # adapters leave the VAE as it is
    return bool(made.get("hash") and here and made["hash"] != here)
