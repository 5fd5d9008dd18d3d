"""Tensors in safetensors files, read and written one at a time: a single file, or shards with an index.

Only safetensors. A pickle (`.bin`, `.pt`, `.pth`, `.ckpt`) is a program that runs while it is read.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dit_video.core.errors import BadInput, MissingError, NonFinite
from dit_video.weights.names import Foreign

# As safetensors call them -> NumPy's.
DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}  # fmt: skip
COUNTS = DTYPES | {  # what a LoRA's alpha may be stored as, too
    f"{sign}{bits}": np.dtype(f"{kind}{bits}")
    for sign, kind in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARD = 5 * 10**9  # bytes in a file


class Shards:
    """The tensors of a folder, or of one file: names, shapes and dtypes at once, values when they are asked for.

    Raises `MissingError` when there are none or a shard is missing, `BadInput` for pickles, for a damaged file, for an
    index that does not agree with its files, and for dtypes that are not weights.
    """

    def __init__(self, source: str | Path):
        from safetensors import SafetensorError, safe_open

        self.source = Path(source)
        index, files = _files(self.source)
        self.where: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        kinds: dict[str, str] = {}
        listed: dict[str, str] = {}
        for file in files:
            try:
                opened = safe_open(file, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise BadInput(_damaged(file, error)) from None
            for name in opened.keys():  # noqa: SIM118  (not a dict)
                piece = opened.get_slice(name)
                self.where[name], self.shapes[name] = opened, tuple(piece.get_shape())
                kinds[name], listed[name] = piece.get_dtype(), file.name
        if index is not None:
            _check_index(self.source, index, listed)
        read = {name: COUNTS if name.endswith(".alpha") else DTYPES for name in kinds}
        if strange := sorted(name for name, kind in kinds.items() if kind not in read[name]):
            raise BadInput(
                f"{self.source}: {strange[0]} and {len(strange) - 1} more are stored as {kinds[strange[0]]}; read are "
                f"{', '.join(DTYPES)}. Take the checkpoint in one of those."
            )
        self.dtypes = {name: read[name][kind] for name, kind in kinds.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, a copy. Raises `BadInput` for a damaged file."""
        from safetensors import SafetensorError

        try:
            return self.where[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BadInput(_damaged(self.source, error)) from None


def _damaged(file: Path, error: Exception) -> str:
    return f"{file}: the weights cannot be read ({error}). The file is damaged: copy it again."


def _files(source: Path) -> tuple[dict[str, str] | None, list[Path]]:
    """(tensor -> file of the index, or None without one; the files)."""
    if source.is_file():
        if source.suffix in PICKLES:
            raise BadInput(_pickled(source))
        return None, [source]
    indices = sorted(source.glob("*.safetensors.index.json"))
    if len(indices) == 1:
        try:
            index = dict(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{indices[0]} cannot be read: {error!r}. Copy it again.") from None
        files = [source / name for name in sorted(set(index.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise MissingError(f"{source} is not complete: {indices[0].name} names {', '.join(missing)}, not there")
        return index, files
    files = sorted(source.glob("*.safetensors"))
    if not files:
        if pickles := sorted(file for file in source.glob("*") if file.suffix in PICKLES):
            raise BadInput(_pickled(pickles[0]))
        raise MissingError(f"{source} has no weights: looked for *.safetensors")
    numbers = [re.search(r"-(\d+)-of-(\d+)\.safetensors$", file.name) for file in files]
    if len(files) > 1 or numbers[0]:
        counts = {int(found[2]) if found else 0 for found in numbers}
        if counts != {len(files)}:
            raise BadInput(
                f"{source} has {', '.join(file.name for file in files)} and no index that says which belong together. "
                "Copy the shards that are missing, or the *.safetensors.index.json."
            )
    return None, files


def _pickled(file: Path) -> str:
    return (
        f"{file} is a pickle: reading one runs whatever program it brings along, so it is not read. "
        "Take the checkpoint as safetensors."
    )


def _check_index(source: Path, index: Mapping[str, str], there: Mapping[str, str]) -> None:
    missing = sorted(name for name, file in index.items() if there.get(name) != file)
    if missing:
        raise BadInput(
            f"{source}: the index says {missing[0]} stands in {index[missing[0]]}, and it does not "
            f"({len(missing)} such tensors). Index and shards are not of one checkpoint: copy both again."
        )
    if unlisted := sorted(set(there) - set(index)):
        raise BadInput(
            f"{source}: the index lacks {unlisted[0]} of {there[unlisted[0]]} ({len(unlisted)} such tensors). "
            "Index and shards are not of one checkpoint: copy both again."
        )


def write(folder: Path, name: str, tensors: Mapping[str, Foreign], dtype: Any = None, limit: int = SHARD) -> None:
    """Writes `name` (such as model.safetensors), or shards of at most `limit` bytes and their index.

    One tensor is in memory at a time. dtype: what all are stored as; None keeps each one's own. Raises `NonFinite` for
    tensors that are not finite, or not in that dtype.
    """
    plan: list[dict[str, np.dtype]] = [{}]
    room = limit
    for tensor, what in tensors.items():
        kind = np.dtype(dtype or what.dtype)
        size = int(np.prod(what.shape)) * kind.itemsize
        if size > room and plan[-1]:
            plan.append({})
            room = limit
        plan[-1][tensor], room = kind, room - size
    stem = name.removesuffix(".safetensors")
    files = [name] if len(plan) == 1 else [f"{stem}-{i + 1:05}-of-{len(plan):05}.safetensors" for i in range(len(plan))]
    total = 0
    for file, kinds in zip(files, plan, strict=True):
        total += write_file(folder / file, {t: tensors[t] for t in kinds}, kinds)
    if len(files) > 1:
        index = {"metadata": {"total_size": total},
                 "weight_map": {t: file for file, kinds in zip(files, plan, strict=True) for t in kinds}}  # fmt: skip
        (folder / f"{name}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_file(path: Path, tensors: Mapping[str, Foreign], kinds: Mapping[str, np.dtype]) -> int:
    """One file: the length of the header, the header, the tensors. The wide dtypes first, so that all are aligned."""
    names = {kind: name for name, kind in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order, end = sorted(tensors, key=lambda name: -kinds[name].itemsize), 0
    for name in order:
        size = int(np.prod(tensors[name].shape)) * kinds[name].itemsize
        header[name] = {"dtype": names[kinds[name]], "shape": [*tensors[name].shape], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = tensors[name].read()
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(array.astype(kinds[name], copy=False))
            if not np.isfinite(stored).all():
                fits = f"It does not fit into {kinds[name]}: store this part in float32." if np.isfinite(
                    array).all() else "These weights cannot be used."  # fmt: skip
                raise NonFinite(f"{path.parent.name}: NaN or infinity in {name}. {fits}")
            file.write(stored.reshape(-1).view(np.uint8).data)
    return end


def differing(folder: Path, tensors: Mapping[str, Foreign], dtype: Any = None) -> list[str]:
    """Names of the tensors that a folder does not hold bit for bit, or holds beside them."""
    shards = Shards(folder)
    wrong = sorted(set(shards.shapes) ^ set(tensors))
    for name in set(shards.shapes) & set(tensors):
        wanted = tensors[name].read()
        wanted = wanted.astype(dtype or wanted.dtype, copy=False)
        there = shards.read(name)
        if (there.shape, there.dtype) != (wanted.shape, wanted.dtype) or there.tobytes() != wanted.tobytes():
            wrong.append(name)
    return wrong
