"""`dit-video inspect FILE`: how a clip was made; with --rerun, makes it again and compares the frames."""

import argparse
import json
import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

EPILOG = """\
What is known stands in the video file itself, or in NAME.json beside it. With --rerun the clip is made again from
that: the same model, prompt, seed and settings. Exit code 0 when the SHA-256 of the raw frames is the stored one, 1
when it is another, 2 when the file does not say enough, 3 when the model, a picture or footage is not there any more.

examples:
  dit-video inspect star.mp4
  dit-video inspect star.mp4 --rerun --json
"""

# Of a clip's metadata: what a request is made of, by the same names, and what is known of the result.
ASKED = (
    "negative_prompt", "num_frames", "height", "width", "fps", "num_inference_steps", "solver", "shift",
    "guidance_scale", "guidance_scale_2", "guidance_interval", "guidance_rescale", "cfg_zero_star",
    "conditioning_scale", "seed", "prompt_at", "transition", "loop", "cache",
)  # fmt: skip
TOLD = (
    "prompt", "prompt_used", "clip", "batch", "strips", "notes", "model", "dtype", "devices", "versions",
    "frames_sha256", "seconds", "weights", "lora", "strength", "decoded", "mesh",
)  # fmt: skip
# Of what else a clip was given, each with where it is from: what that is, and what was said of how to use it.
GIVEN = {"image": "picture", "reference": "picture", "extend": "footage", "video": "footage", "mask": "mask"}
USES = ("resize", "before", "strength", "interpolate")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "inspect", help="how a clip was made; makes it again and compares", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a clip (.mp4, .gif, .webp, .png), or its .json")
    parser.add_argument("--rerun", action="store_true", help="make it again, and compare the frames")
    parser.add_argument("--model", metavar="MODEL", help="where its model is now (default: where it was)")
    parser.add_argument("--image", action="append", metavar="PATH",
                        help="where its picture, footage or mask is now (default: where it was); "
                        "of several, one each")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto")


def run(args: argparse.Namespace) -> int:
    """Prints what is known; 1 when a rerun gave other frames."""
    metadata = read_metadata(args.file)
    report: dict[str, Any] = {"path": str(args.file), "metadata": metadata}
    if args.rerun:
        report["rerun"] = rerun(args, metadata)
    if args.json:
        print(json.dumps(report))
    else:
        print("\n".join(f"{name:20} {text}" for name, text in told(metadata)))
        if args.rerun:
            print(verdict(report["rerun"]))
    return 0 if not args.rerun or report["rerun"]["identical"] else 1


def read_metadata(file: Path) -> dict[str, Any]:
    """What the file tells, or the JSON beside it. Raises MissingError and BadInput."""
    from dit_video.core.errors import BadInput, MissingError
    from dit_video.data.video import iterate_video

    if not file.is_file():
        raise MissingError(f"{file}: no such file.")
    metadata: dict[str, Any] = {}
    if file.suffix.lower() != ".json":
        first = next(iterate_video(file), None)
        if first is None:
            raise BadInput(f"{file} holds a video stream without a frame: it was cut, or never finished. Get it again.")
        metadata = first[3]
    beside = file.with_suffix(".json")
    if not metadata and beside.is_file():
        try:
            metadata = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{beside} cannot be read: {error}") from None
    if not isinstance(metadata, dict) or "prompt" not in metadata:
        raise BadInput(
            f"{file} does not say how it was made: nothing of that is in the file, and {beside.name} is not beside it."
        )
    return metadata


def told(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values for people, the empty ones left out."""
    rows = []
    for name, value in metadata.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, dict):
            value = " · ".join(f"{key} {x}" for key, x in value.items())
        elif isinstance(value, list):
            value = "; ".join(map(str, value))
        rows.append((name, str(value)))
    return rows


def rerun(args: argparse.Namespace, metadata: dict[str, Any]) -> dict[str, Any]:
    """Makes the clip again: `{"identical", "frames_sha256", "stored_sha256", "changed", "difference"}`.

    changed: what is not as it was then (versions, devices), each as `name: then -> now`. difference: the mean
    difference from the frames in the file, 0..255, where those are of the same shape (compression alone: about one).
    """
    from dit_video.cli.generate import prepare_jax
    from dit_video.core.errors import BadInput, MissingError

    if metadata.get("by") == "run.py":
        why = "made by an export's run.py, which makes it again: `inspect` without --rerun shows the flags for it"
        raise BadInput(f"{args.file} was {why}.")
    stored = metadata.get("frames_sha256")
    if not stored:
        raise BadInput(f"{args.file} has no hash of its frames: it was stopped before they were decoded.")
    given = arguments(args, metadata)
    model = args.model or metadata["model"]["name"]
    prepare_jax(args.device)

    import jax
    import numpy as np

    from dit_video.core.mesh import MeshShape
    from dit_video.diffusion.noise import clip_noise
    from dit_video.generate.clip import frames_sha256
    from dit_video.generate.decode import Tiles
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.generate.request import resolve
    from dit_video.generate.shots import OPENING
    from dit_video.weights.find import find_model

    try:
        find_model(model)
    except BadInput as error:
        raise MissingError(f"the model that made it is not there: {error} Give --model.") from error
    how = {"dtype": metadata.get("dtype"), "keep": metadata.get("weights"), "lora": metadata.get("lora", ())}
    if (mesh := metadata.get("mesh")) and math.prod(mesh.values()) == jax.device_count():
        how["mesh"] = MeshShape(**mesh)
    pipe = VideoPipeline.from_pretrained(model, progress=not args.quiet, **how)
    if pipe.hash != metadata["model"]["hash"]:
        raise MissingError(
            f"it was made with the weights {metadata['model']['hash']}; {model} now has {pipe.hash}. "
            "Give --model with a folder that holds those weights."
        )
    clip, batch = metadata.get("clip", 0), metadata.get("batch") or [metadata["prompt"]]
    # As it was decoded then, where that is known, whatever memory is free now.
    decoded = metadata.get("decoded")
    memory = None if decoded else pipe.memory
    request, size = resolve(pipe.model, batch, memory=memory, ways=pipe.programs.ways, **given), len(batch)
    if decoded in (None, "whole") and pipe.whole(request):
        # The whole batch that it was a part of: a matrix product rounds by its shape.
        place = clip % size
        shape = pipe.model.vae.latent_shape(request.num_frames, request.height, request.width)[1:]
        (shot,), lead = request.shots(pipe.model.vae.stride), OPENING + np.arange(len(request.given.references))
        which = range(clip - place, clip - place + size)
        noise = [clip_noise(request.seed, which, 1, shape, int(slot)) for slot in (*lead, *shot.noise)]
        made = pipe.run(request, latents=np.concatenate(noise, 1)).clips[place]
        frames, now = made.frames, made.metadata
    else:
        request = resolve(
            pipe.model, [metadata["prompt"]] * (clip + 1), memory=memory, ways=pipe.programs.ways, **given
        )
        film = pipe.film(request, clip)
        if isinstance(decoded, dict):
            film.slots, film.tiles = decoded["slots"], decoded["tiles"] and Tiles(*decoded["tiles"])
        frames, now = np.stack(list(film.frames())), film.metadata
    found = frames_sha256(frames)
    return {
        "identical": found == stored,
        "frames_sha256": found,
        "stored_sha256": stored,
        "changed": changes(metadata, now),
        "difference": None if found == stored else difference(args.file, frames),
    }


def arguments(args: argparse.Namespace, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the clip was asked with, for `generate.request.resolve`. Raises BadInput where the metadata does not say
    enough to ask again, MissingError for a picture or footage that is not there."""
    from dit_video.core.errors import BadInput

    given = {name: metadata[name] for name in ASKED if metadata.get(name) is not None}
    if given.get("loop"):
        given["num_frames"] += 1  # a loop's last frame is its first, and is not shown
    if long := metadata.get("long"):
        given |= {"long": long["mode"], "noise_order": long["noise"]}
        given |= {name: long.get(name) for name in ("window", "overlap", "rope")}
    sources = metadata.get("given") or ([{"frame": 0} | metadata["image"]] if metadata.get("image") else [])
    kinds = [next((kind for kind in GIVEN if kind in source), None) for source in sources]
    known = {*ASKED, *TOLD, "image", "long", *([] if None in kinds else ["given"])}
    if unknown := sorted(name for name, value in metadata.items() if name not in known and value):
        raise BadInput(f"{args.file} was made with {', '.join(unknown)}, which what it says is not enough to repeat.")
    if any(kind == "extend" and "before" not in source for kind, source in zip(kinds, sources, strict=True)):
        raise BadInput(f"{args.file} does not say on which side of its footage it is (an older version made it).")
    now = args.image or [None] * len(sources)
    if len(now) != len(sources):
        were = ", ".join(named(kind, source) for kind, source in zip(kinds, sources, strict=True)) or "none"
        raise BadInput(f"--image is given {len(now)} times; what {args.file} was made from: {were}. Give one for each.")
    pictures: dict[int, Path] = {}
    for kind, source, at in zip(kinds, sources, now, strict=True):
        file = find_given(args, GIVEN[kind], source[kind], at)
        if kind == "image":
            pictures[source["frame"]] = file
        else:
            given[kind] = [*given.get(kind, ()), file] if kind == "reference" else file
        if kind == "video" and metadata.get("strength") is not None:  # where older versions noted it
            given["strength"] = metadata["strength"]
        given |= {name: source[name] for name in USES if name in source}
        if kind == "extend":
            given["num_frames"] += 1 - source["used"]  # one frame is of both, the footage and what was made
    if given.get("interpolate"):
        del given["num_frames"]  # as many as the footage gives
    for name, frame in (("image", 0), ("last_image", metadata["num_frames"] - 1)):
        if frame in pictures:
            given[name] = pictures.pop(frame)
    return given | ({"keyframes": pictures} if pictures else {})


def named(kind: str, source: dict[str, Any]) -> str:
    """Something that a clip was given, for people."""
    return f"{source[kind]} ({'frame ' + str(source['frame']) if kind == 'image' else GIVEN[kind]})"


def find_given(args: argparse.Namespace, what: str, name: str, now: str | None) -> Path:
    """Something that a clip was made from: where it is `now`, or as it was named then, or beside the clip. Raises
    MissingError."""
    from dit_video.core.errors import MissingError

    places = [Path(now)] if now else [Path(name), args.file.parent / Path(name).name]
    for place in places:
        if place.is_file():
            return place
    why = "was given from Python" if name == "given" else f"is not at {' or '.join(map(str, places))}"
    raise MissingError(f"the {what} that it was made from {why}. Give it with --image.")


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of versions and devices is not as it was, and of how many clips were made at once and how decoded."""
    pairs = [(f"versions.{name}", then.get("versions", {}).get(name), x) for name, x in now["versions"].items()]
    pairs += [("devices", then.get("devices"), now["devices"])]
    pairs += [("mesh", then.get("mesh"), now.get("mesh"))]
    pairs += [("decoded", then.get("decoded", now["decoded"]), now["decoded"])]
    pairs += [("clips at once", *(len(about.get("batch") or [0]) for about in (then, now)))]
    return [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]


def difference(file: Path, frames: "np.ndarray") -> float | None:
    """Mean absolute difference from the frames in the file; None where they have another shape or are not there."""
    import numpy as np

    from dit_video.core.errors import DitVideoError
    from dit_video.data.video import read_video

    try:
        there = read_video(file).frames
    except DitVideoError:
        return None
    if there.shape != frames.shape:
        return None
    return round(float(np.mean(np.abs(there.astype(np.int16) - frames))), 3)


def verdict(result: dict[str, Any]) -> str:
    """The outcome for people."""
    if result["identical"]:
        return f"made again: identical, frames {result['frames_sha256']}"
    text = f"made again: NOT identical, frames {result['frames_sha256']}"
    if result["difference"] is not None:
        text += f"; {result['difference']:g} of 255 away from the file's on average"
    causes = result["changed"] or [f"nothing that is recorded has changed (host: {platform.machine()})"]
    return "\n".join([text, *(f"  changed: {line}" for line in causes)])
