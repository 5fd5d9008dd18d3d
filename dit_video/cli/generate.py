"""`dit-video generate PROMPT...`: prompts become video files; stdout says where."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  dit-video generate "a red circle moves right"
  dit-video generate "a blue star spins" --seconds 4 --aspect 9:16 --output star.mp4
  dit-video generate "the star moves left" --image star.png --seed 7
  dit-video generate "a fox in the snow" --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --weights bfloat16
  dit-video generate "she turns" --model models/wan_i2v --image her.png --lora style.safetensors=0.8 --offload
  dit-video generate "a cat" --model models/vace --video room.mp4 --mask chair.png --reference cat.png

Without --output the file is outputs/<time>_<prompt>_s<seed>.mp4. The suffix chooses the format: .mp4, .gif, .webp, or
.png for a sheet of the frames. NAME.json beside it says how the clip was made.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("generate", help="a prompt becomes a video file", description=__doc__, epilog=EPILOG)
    what = parser.add_argument_group("what to make")
    what.add_argument("words", nargs="*", metavar="PROMPT", help="what should be seen; several make several clips")
    what.add_argument("--prompt", action="append", default=[], metavar="PROMPT", help="the same as a flag; repeatable")
    what.add_argument("--negative_prompt", metavar="TEXT", help="what guidance leads away from (default: nothing)")
    what.add_argument("--image", metavar="PATH", help="a picture that becomes the first frame")
    what.add_argument("--resize", choices=("crop", "pad", "stretch"), default="crop", help="how the picture is fitted")
    what.add_argument("--last_image", metavar="PATH", help="a picture that becomes the last frame")
    what.add_argument("--keyframe", action="append", metavar="N=PATH", help="a picture for frame N; repeatable")
    what.add_argument("--extend", metavar="CLIP", help="go on from a video; lengths count from its last frame")
    what.add_argument("--before", action="store_true", help="with --extend: lead up to it instead, to its first frame")
    what.add_argument("--loop", action="store_true", help="the end goes over into the beginning; 4k frames")
    what.add_argument("--video", metavar="CLIP", help="footage to work on, with one of the next three; or, with VACE "
                      "models, alone: footage to be led by (depth, pose, edges)")  # fmt: skip
    what.add_argument("--mask", metavar="PATH", help="a video or picture: white is made new, black stays")
    what.add_argument("--strength", type=float, metavar="X", help="how much is made new: 0 nothing .. 1 all")
    what.add_argument("--interpolate", type=int, metavar="N", help="N times as many frames: those between are made")
    what.add_argument("--reference", action="append", metavar="PATH",
                      help="a picture of what is to be seen, for VACE models; repeatable")  # fmt: skip
    what.add_argument("--num_videos_per_prompt", type=int, default=1, metavar="N", help="clips of each prompt")
    size = parser.add_argument_group("length and size (defaults: the model's)")
    size.add_argument("--num_frames", type=int, metavar="N", help="4k+1: 1, 5, 9, ... 17, ...; 1 is a still")
    size.add_argument("--seconds", type=float, metavar="S", help="length instead of a number of frames")
    size.add_argument("--fps", type=float, metavar="F", help="frames a second of the file")
    size.add_argument("--height", type=int, metavar="PX")
    size.add_argument("--width", type=int, metavar="PX")
    size.add_argument("--aspect", metavar="W:H", help="the nearest size that the model was trained at, such as 9:16")
    size.add_argument("--fit", choices=("nearest",), help="take the nearest valid length and size instead of an error")
    long = parser.add_argument_group("longer than a model was trained for")
    long.add_argument("--long", choices=("single", "window", "extend", "auto"), default="single",
                      help="one pass; overlapping windows; chunk after chunk; or what fits")  # fmt: skip
    long.add_argument(
        "--prompt_at", action="append", nargs=2, metavar=("SECONDS", "PROMPT"), help="what is seen from then on"
    )
    long.add_argument("--transition", choices=("cut", "carry"), default="cut",
                      help="a new prompt begins a new shot, or goes on from the last frames")  # fmt: skip
    long.add_argument(
        "--rope", choices=("none", "riflex", "ntk"), help="single: how positions beyond training are stretched"
    )
    long.add_argument(
        "--window", type=int, metavar="N", help="latent frames of a window or chunk (default: the model's)"
    )
    long.add_argument(
        "--overlap", type=int, metavar="N", help="window: latent frames that neighbours share (default 2)"
    )
    long.add_argument("--noise_order", choices=("fresh", "shared", "rescheduled"), default="fresh",
                      help="window: each frame's own noise, the first window's again, or that shuffled")  # fmt: skip
    how = parser.add_argument_group("how (defaults: the model's)")
    add_model(how)
    how.add_argument("--seed", type=int, metavar="N", help="same seed, same clip (default: drawn, and printed)")
    how.add_argument("--num_inference_steps", type=int, metavar="N")
    how.add_argument("--guidance_scale", type=float, metavar="X", help="1 switches guidance off: twice as fast")
    how.add_argument("--guidance_scale_2", type=float, metavar="X",
                     help="of the second of two denoisers (Wan 2.2 A14B; default: the first's)")  # fmt: skip
    how.add_argument("--guidance_interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
                     help="guidance only for times from LOW to HIGH, 1 being noise (default 0 1)")  # fmt: skip
    how.add_argument("--guidance_rescale", type=float, default=0.0, metavar="X",
                     help="against over-exposure: pulls contrast back by this part")  # fmt: skip
    how.add_argument("--cfg_zero_star", action="store_true", help="CFG-Zero*, for models that are hardly trained")
    how.add_argument("--conditioning_scale", type=float, metavar="X", help="how much VACE's control counts (default 1)")
    how.add_argument("--solver", metavar="NAME", help="unipc, dpmpp_2m, heun or euler")
    how.add_argument("--shift", type=float, metavar="X", help="above 1: more of the steps near noise")
    how.add_argument("--lora", action="append", default=[], metavar="PATH[=STRENGTH]",
                     help="merge an adapter into the weights; repeatable; PATH@2 is for a second expert")  # fmt: skip
    how.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="auto")
    how.add_argument("--weights", choices=("float32", "bfloat16", "int8"),
                     help="what weights are kept as, to save memory (default: as --dtype)")  # fmt: skip
    how.add_argument("--offload", action="store_true", help="weights of layers stay in the host's memory: slow, small")
    how.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto")
    how.add_argument("--mesh", metavar="AXIS=N,...", help="spread over several devices: clips, and a prompt and its "
                     "negative (data), tokens (context), weights (fsdp, tensor); such as data=2,context=4")  # fmt: skip
    how.add_argument(
        "--cache", choices=("off", "safe", "fast"), default="off", help="leave out steps that change little"
    )
    how.add_argument("--strict", action="store_true", help="warnings become errors")
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="PATH", help="a file, or a folder for files with names made up")
    out.add_argument("--force", action="store_true", help="overwrite")
    out.add_argument("--save_latents", action="store_true", help="also NAME.latents.npz")
    out.add_argument("--preview_every", type=int, metavar="N", help="a picture of the clip under way every N steps")


def add_model(parser: Any) -> None:
    """The flag that names what makes the clips."""
    parser.add_argument("--model", metavar="MODEL", help="a diffusers folder, a run folder (RUN@0.99: another of its "
                        "averages), or a name (default: on board)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Checks, loads, makes, writes. What is cheap to check is checked before anything is loaded."""
    from dit_video.data.video import check_suffix
    from dit_video.generate.clip import check_writable
    from dit_video.generate.request import check_prompts

    prompts = check_prompts([*args.words, *args.prompt], args.num_videos_per_prompt)
    if args.output is not None:
        output = Path(args.output)
        if output.suffix and not output.is_dir():
            check_suffix(output)
        check_writable(output.parent if output.suffix and not output.is_dir() else output)
    prepare_jax(args.device)
    return make(args, prompts)


def compile_cache() -> Path | str:
    """Where compiled programs are kept: JAX_COMPILATION_CACHE_DIR if set (an object store's address as text), or
    `dit_video/xla` in the user's cache."""
    from dit_video.core.files import cache_folder

    if named := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return named if "://" in named else Path(named)
    return cache_folder("xla")


def prepare_jax(device: str) -> None:
    """Chooses the platform and keeps what is compiled: the second run of a command does not compile.

    Only for programs that own their process. Raises MissingError for a device that is not there.
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", str(compile_cache()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    choose_device(device)


def choose_device(device: str) -> None:
    """Chooses the platform and meets its devices. Raises MissingError for one that is not there."""
    import jax

    from dit_video.core.errors import MissingError
    from dit_video.core.log import log

    if device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device, device))
    try:
        log.debug("devices: %s", jax.devices())
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise MissingError(f"--device {device}: none here ({first}). Use --device cpu, or install its JAX.") from error


def make(args: argparse.Namespace, prompts: tuple[str, ...]) -> int:
    import json

    from dit_video.core.log import log
    from dit_video.generate.clip import output_paths
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.generate.request import OPTIONS, resolve

    pipe = VideoPipeline.from_pretrained(
        args.model, args.mesh, args.dtype, progress=not args.quiet, keep=args.weights,
        offload=args.offload, lora=args.lora,
    )  # fmt: skip
    names = {"negative_prompt", "image", "num_frames", "height", "width", "fps", "seed", "num_inference_steps",
             "guidance_scale", "guidance_scale_2", "prompt_at", *OPTIONS}  # fmt: skip
    names -= {"keyframes", "num_videos_per_prompt"}
    asked = {name: getattr(args, name) for name in names}
    request = resolve(
        pipe.model, prompts, keyframes=keyframes(args.keyframe), memory=pipe.memory, ways=pipe.programs.ways, **asked
    )
    paths = output_paths(args.output, prompts, request.seed, args.force)
    log.info(
        "seed %d · %d frames of %dx%d at %g fps · %d steps of %s, guidance %g",
        request.seed, request.num_frames - request.given.loop, request.width, request.height, request.fps,
        request.num_inference_steps, request.solver, request.guidance_scale,
    )  # fmt: skip
    if args.quiet and not args.json:  # a clip that cannot be made again is lost
        print(f"seed {request.seed}", file=sys.stderr)
    results = []
    for path, meta, wrote in written(pipe, request, paths, args):
        results.append({
            "path": str(path), "seed": meta["seed"], "frames": meta["num_frames"], "height": meta["height"],
            "width": meta["width"], "fps": meta["fps"], "steps": meta["num_inference_steps"],
            "model": meta["model"]["hash"], "seconds": {**meta["seconds"], "write": round(wrote, 3)},
        })  # fmt: skip
    if args.json:
        print(json.dumps(results[0] if len(results) == 1 else results))
    else:
        print(*(result["path"] for result in results), sep="\n")
    log.info(" · ".join(f"{name} {spent:.1f} s" for name, spent in results[0]["seconds"].items()))
    sys.stdout.flush()
    return 0


def keyframes(given: list[str] | None) -> dict[int, str] | None:
    """`["24=a.png"]` as {24: "a.png"}. Raises BadInput."""
    from dit_video.core.errors import BadInput

    frames: dict[int, str] = {}
    for text in given or ():
        number, _, path = text.partition("=")
        if not path or not number.strip().isdecimal():
            raise BadInput(f"--keyframe {text}: give the frame's number and its picture, such as 24=path.png.")
        if int(number) in frames:
            raise BadInput(f"--keyframe {text}: frame {int(number)} is given twice. Give each frame one picture.")
        frames[int(number)] = path
    return frames or None


def written(pipe: Any, request: Any, paths: list[Path], args: argparse.Namespace) -> Iterator[tuple[Path, dict, float]]:
    """Makes the clips and writes them: (path, metadata, seconds of writing) of each. Latents are written before they
    are decoded, and go when their clip is there: what kills the process leaves them. What was done when something fails
    or the user stops is kept, and the error says where."""
    import time

    import numpy as np

    from dit_video.core.errors import BadInput, DitVideoError
    from dit_video.core.log import log
    from dit_video.generate.clip import check_free, save_latents
    from dit_video.generate.preview import preview
    from dit_video.generate.unfinished import Unfinished, unfinished

    shown = preview(paths, args.preview_every) if args.preview_every is not None else None
    done: list[Path] = []
    early: dict[int, Path] = {}  # latents that were saved first
    try:
        if not pipe.whole(request):
            for index, path in enumerate(paths):
                film = pipe.film(request, index, callback=shown)
                began = time.perf_counter()
                meta = film.save(path, force=args.force, latents=args.save_latents)
                done.append(path)
                yield path, meta, time.perf_counter() - began - meta["seconds"]["decode"]
            return

        def first(which: list[int], latents: np.ndarray) -> None:
            for index, made in dict(zip(which, latents, strict=True)).items():
                try:
                    check_free(paths[index], args.force)
                    early[index] = save_latents(paths[index], made, pipe.about(request, index))
                except BadInput as error:
                    log.warning("the latents are not saved first: %s", error)

        clips = pipe.run(request, callback=shown, sampled=first).clips
        for index, (path, clip) in enumerate(zip(paths, clips, strict=True)):
            began = time.perf_counter()
            try:
                save(clip, path, args, early.get(index))
            except (Exception, KeyboardInterrupt) as error:
                rest = np.stack([clip.latents for clip in clips[len(done) :]])
                raise unfinished(error, "writing", rest, request) from error
            done.append(path)
            yield path, clip.metadata, time.perf_counter() - began
    except Unfinished as error:
        message, kept = str(error).rstrip("."), list(map(str, done))
        try:
            kept.extend(map(str, keep(error, pipe, request, paths[len(done) :], args, early)))
        except DitVideoError as another:
            message = f"{message}. {another}"
        error.args = (f"{message}. Kept: {', '.join(kept)}" if kept else message,)
        raise


def save(clip: Any, path: Path, args: argparse.Namespace, early: Path | None) -> Path:
    """Writes a clip; its latents, where they were written `early`, go if they are not wanted. Raises BadInput."""
    from dit_video.generate.clip import check_free

    check_free(path, args.force, latents=early is None)
    clip.save(path, force=True, latents=args.save_latents)
    if early is not None and not args.save_latents:
        early.unlink(missing_ok=True)
    return path


def keep(
    error: Any, pipe: Any, request: Any, paths: list[Path], args: argparse.Namespace, early: dict[int, Path]
) -> Iterator[Path]:
    """Writes what there is of the clips that were to be at `paths`: frames of those that are whole, latents of the
    others. Raises BadInput where that cannot be written."""
    from dit_video.generate.clip import save_latents

    for index, (path, clip) in enumerate(zip(paths, error.clips, strict=False), len(request.prompts) - len(paths)):
        yield save(clip, path, args, early.get(index))
    if error.kept is not None:
        yield error.kept
        return
    first, rest = len(request.prompts) - len(paths) + len(error.clips), paths[len(error.clips) :]
    for index, (path, latents) in enumerate(zip(rest, error.latents, strict=False), first):
        about = pipe.about(request, index) | ({"steps_done": error.steps} if error.steps else {})
        yield save_latents(path, latents, about | ({"strips": error.strips} if error.strips else {}))
