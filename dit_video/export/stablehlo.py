"""StableHLO by `jax.export`: every program for CPU, CUDA and TPU in one file, weights as arguments from safetensors.

Batch, frames, height, width, rows of text and steps stay symbolic, unless shapes are asked for: then frames, height and
width are those, and attention of long clips is in pieces. Such files are a cache and no archive: JAX promises to read
them for six months. The archive is the model folder, from which they are made again.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from dit_video.core.errors import BadInput, MissingError
from dit_video.export.folder import Order, Shape, Target, model_shape, write_export
from dit_video.export.programs import PARTS, Programs, sized
from dit_video.weights.model import weight_dtype
from dit_video.weights.names import Foreign
from dit_video.weights.shards import write

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = ("float32", "bfloat16")
BACK = "platform"  # of the VAE's convolutions: each platform has its own in the file
LIFE = timedelta(days=180)
SLOTS = 4  # the fewest latent slots of a symbolic clip: causal convolutions look back over two
NAMES = ("text_encoder", "denoiser", "vae_decoder", "sampler")
NEEDS = ("jax", "flatbuffers", "numpy", "safetensors", "sentencepiece", "imageio[pyav]")


def check_dtype(dtype: str) -> None:
    """Raises `BadInput` for a dtype that not every platform computes in."""
    if dtype not in DTYPES:
        raise BadInput(
            f"--to stablehlo --dtype {dtype}: JAX has no such products on CPUs, and a program is for all platforms. "
            f"Use {' or '.join(DTYPES)}."
        )


def export_stablehlo(order: Order, out: Path) -> Path:
    """Writes the folder. Raises `MissingError` without flatbuffers, `BadInput` as `check_dtype` and `write_export`."""
    check_dtype(order.dtype)
    if find_spec("flatbuffers") is None:
        raise MissingError("--to stablehlo writes with flatbuffers. Install it: pip install 'dit_video[stablehlo]'")
    now = datetime.now(UTC)
    life = {"created": now.date().isoformat(), "until": (now + LIFE).date().isoformat(),
            "by": f"jax {jax.__version__} and newer",
            "renew": "dit-video export THIS_FOLDER --refresh"}  # fmt: skip
    programs, stride = order.programs, order.model.vae.stride
    usual, fewest = model_shape(order.model), stride * (SLOTS - 1) + 1
    shapes = order.shapes or (*([usual] if usual[0] < fewest else []), None)
    more = {"platforms": list(PLATFORMS), "fewest_frames": fewest, "loadable": life}
    target = Target("stablehlo", "StableHLO for JAX", NEEDS, more)
    stored = {part: store(programs, part, order.dtype) for part in PARTS}
    size = sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for flat in stored.values() for x in flat.values())

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "weights").mkdir()
        (folder / "programs").mkdir()
        for part, tensors in stored.items():
            write(folder / "weights", f"{part}.safetensors", tensors)
        return write_programs(folder, programs, shapes, order.dtype)

    return write_export(target, order, out, size, fill)


def write_programs(
    folder: Path, programs: Programs, shapes: Sequence[Shape | None], dtype: str
) -> dict[str, list[dict[str, Any]]]:
    """One file a program and a shape; which stand where."""
    where: dict[str, list[dict[str, Any]]] = {}
    for name in NAMES:
        for shape in dict.fromkeys(None if name == "text_encoder" else shape for shape in shapes):
            exported = lowered(programs, name, shape, dtype)
            file = Path("programs") / f"{sized(name, shape)}.jax_export"
            (folder / file).write_bytes(exported.serialize())
            parts, others = signatures(programs, shape, dtype)[name]
            taken = dict.fromkeys(parts, "weights") | {k: f"{kind}[{spec}]" for k, (spec, kind) in others.items()}
            one = {"file": file.as_posix(), "shape": shape and list(shape), "arguments": taken}
            where.setdefault(name, []).append(one)
    return where


def store(programs: Programs, part: str, dtype: str) -> dict[str, Foreign]:
    """The arrays of a part as they are kept, each read when it is written."""

    def one(path: str, x: Any) -> Foreign:
        kind = weight_dtype(path, dtype)
        return Foreign(tuple(x.shape), kind, lambda: np.ascontiguousarray(np.asarray(x), kind))

    return {path: one(path, x) for path, x in programs.weights(part).items()}


def signatures(programs: Programs, shape: Shape | None, dtype: str) -> dict[str, tuple[Sequence[str], dict[str, Any]]]:
    """Of each program: the parts whose weights it takes, and its other arguments as (shape, dtype), in symbols: b
    clips, t + 3 latent slots, h and w patches, s rows of text, n steps."""
    model, f32, i32 = programs.model, "float32", "int32"
    patch, texts = model.dit.patch, "2*b" if programs.guided else "b"
    # A symbol is at least 1. A sum of it and a constant can be compared also after it was multiplied.
    grid = f"t+{SLOTS - 1}, {patch[1]}*h, {patch[2]}*w"
    if shape is not None:
        grid = ", ".join(map(str, model.vae.latent_shape(*shape)[:3]))
    latents = (f"b, {grid}, {model.vae.z}", f32)
    text = {"ids": ("b, s", i32), "length": ("b,", i32)}
    rows = {"rows": (f"b, s, {model.text.width}", dtype), "length": ("b,", i32)}
    prompts = {"ids": (f"{texts}, s", i32), "length": (f"{texts},", i32)}
    moments = {"flow": ("n+1,", f32), "model": ("n+1,", f32), "scale": ("", f32)}
    return {
        "text_encoder": (("text",), text),
        "denoiser": (("dit",), {"latents": latents, "time": ("b,", f32), **rows}),
        "vae_decoder": (("vae",), {"latents": latents}),
        "sampler": (PARTS, {**prompts, "noise": latents, **moments}),
    }


def lowered(
    programs: Programs, name: str, shape: Shape | None, dtype: str, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """One program for the platforms; for any shape, or for the one given."""
    programs = programs if shape is None else programs.at(shape)
    parts, others = signatures(programs, shape, dtype)[name]
    weights = [{path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in store(programs, part, dtype).items()}
               for part in parts]  # fmt: skip
    # Each program has symbols of its own, and limits on none but these.
    limits = [f"s <= {programs.model.dit.text_len}"] if {"ids", "rows"} & set(others) else []
    scope = export.SymbolicScope(limits)
    arrays = [jax.ShapeDtypeStruct(export.symbolic_shape(spec, scope=scope) if spec else (), kind)
              for spec, kind in others.values()]  # fmt: skip
    return export.export(jax.jit(getattr(programs, name)), platforms=platforms)(*weights, *arrays)
