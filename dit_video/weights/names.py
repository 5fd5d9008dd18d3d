"""Tables of names: how a foreign checkpoint's tensors are called and laid out here.

A row says it once, and both directions follow from it:

    Row("blocks.{i}.attn1.to_q.weight", "blocks/attn1/to_q/kernel", LINEAR)

`{i}`, `{j}`, ... stand for numbers. A number that our path has too is copied; one that our path lacks is a
stacked axis: the layers of the foreign checkpoint become the leading axis of our array. The layout is an einops
pattern for one layer, foreign on the left; the inverse is the same pattern read from right to left.

A table is checked against the shapes that the model wants *before* a tensor is read: what is missing, unknown, or of
another shape is listed in one error, and nothing is loaded by half.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from einops import rearrange

from dit_video.core.errors import BadInput, DitVideoError, NonFinite

SAME = "... -> ..."
LINEAR = "o i -> i o"
CONV2D = "o i h w -> h w i o"
CONV3D = "o i t h w -> t h w i o"
GAMMA2D = "c 1 1 -> c"  # scales that are stored with trailing axes of one
GAMMA3D = "c 1 1 1 -> c"

_INDEX = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Row:
    """One tensor, or one in every layer.

    `layout` is an einops pattern, foreign -> ours; `sizes` gives the axes that it groups, for example
    `Row("patch_embedding.weight", "patch/kernel", "o c t h w -> (t h w c) o", (("t", 1), ("h", 2), ("w", 2)))`.
    `also` names other places where a checkpoint may keep the same tensor: tied embeddings.
    """

    foreign: str
    ours: str
    layout: str = SAME
    sizes: tuple[tuple[str, int], ...] = ()
    also: tuple[str, ...] = ()

    @property
    def stacked(self) -> tuple[str, ...]:
        """Numbers of the foreign name that our path lacks, outermost first."""
        kept = _INDEX.findall(self.ours)
        return tuple(name for name in _INDEX.findall(self.foreign) if name not in kept)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        return rearrange(tensor, self.layout, **dict(self.sizes))

    def to_foreign(self, array: np.ndarray) -> np.ndarray:
        left, right = self.layout.split("->")
        return rearrange(array, f"{right.strip()} -> {left.strip()}", **dict(self.sizes))


@dataclass(frozen=True)
class Table:
    """The rows of a family; `ignored` are regular expressions of foreign tensors that carry nothing for us."""

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where one foreign tensor goes: a path of ours and, when layers are stacked, the place on the leading axes."""

    row: Row
    path: str
    at: tuple[int, ...]
    shape: tuple[int, ...]  # of the foreign tensor
    names: tuple[str, ...]  # where it may be found, the first is where it is written


def keys_of(path: Any) -> tuple[str, ...]:
    """A path of `jax.tree_util` as text: the keys, fields and numbers on the way to a leaf."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {"blocks/attn1/to_q/kernel": leaf}, in the order of the tree."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, path + "/")
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `flatten`. A number in a path becomes an int, as in the state of an `nnx.List`."""
    tree: dict[Any, Any] = {}
    for path, leaf in flat.items():
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _fill(pattern: str, numbers: Mapping[str, int]) -> str:
    return _INDEX.sub(lambda found: str(numbers[found[1]]), pattern)


def _regex(pattern: str) -> re.Pattern[str]:
    parts = _INDEX.split(pattern)  # text and names of numbers in turn
    return re.compile("".join(rf"(?P<{part}>\d+)" if n % 2 else re.escape(part) for n, part in enumerate(parts)))


def _row_of(table: Table) -> Callable[[str], tuple[Row, dict[str, int]]]:
    """path -> its row and the numbers in it."""
    plain = {row.ours: row for row in table.rows if not _INDEX.search(row.ours)}
    numbered = [(row, _regex(row.ours)) for row in table.rows if _INDEX.search(row.ours)]

    def find(path: str) -> tuple[Row, dict[str, int]]:
        if path in plain:
            return plain[path], {}
        for row, regex in numbered:
            if found := regex.fullmatch(path):
                return row, {name: int(number) for name, number in found.groupdict().items()}
        raise DitVideoError(f"no row of the name table is for our parameter `{path}`. Add one to the table.")

    return find


def places(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Place]:
    """Where every foreign tensor goes, for the parameters {our path: shape}."""
    find = _row_of(table)
    for path, shape in shapes.items():
        row, numbers = find(path)
        axes = len(row.stacked)
        one_layer = np.broadcast_to(np.int8(0), shape[axes:])  # no memory behind it: only its shape is wanted
        try:
            foreign_shape = row.to_foreign(one_layer).shape
        except Exception as error:  # einops has its own kinds
            raise DitVideoError(f"the row of `{path}` {tuple(shape)} does not take its layout: {error}") from None
        for at in np.ndindex(*shape[:axes]):
            filled = numbers | dict(zip(row.stacked, at, strict=True))
            names = tuple(_fill(name, filled) for name in (row.foreign, *row.also))
            yield Place(row, path, at, foreign_shape, names)


def _grouped(lines: Iterable[tuple[str, str]]) -> list[str]:
    """(name, what else there is to say) -> one line for names that differ only in their numbers."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, note in lines:
        groups.setdefault((re.sub(r"(?<=\.)\d+(?=\.)", "*", name), note), []).append(name)
    return [
        (names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)} tensors)") + note
        for (_, note), names in groups.items()
    ]


def check(
    table: Table,
    found: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    source: str = "checkpoint",
) -> list[tuple[str, Place]]:
    """What to read, as (foreign name, its place), if the tensors `found` are just those that `shapes` want.

    `found` is {foreign name: shape}, `shapes` {our path: shape}. Raises `BadInput` that lists every tensor that is
    missing, unknown, or of another shape.
    """
    reads, missing, wrong, expected = [], [], [], set()
    for place in places(table, shapes):
        expected.update(place.names)
        name = next((name for name in place.names if name in found), None)
        if name is None:
            missing.append((place.names[0], f"  {place.shape}"))
        elif tuple(found[name]) != place.shape:
            wrong.append((name, f"  has {tuple(found[name])}, the model wants {place.shape}"))
        else:
            reads.append((name, place))
    ignored = [re.compile(pattern) for pattern in table.ignored]
    unknown = [
        (name, f"  {tuple(shape)}")
        for name, shape in found.items()
        if name not in expected and not any(pattern.fullmatch(name) for pattern in ignored)
    ]
    if missing or unknown or wrong:
        kinds = {"missing": missing, "unknown": unknown, "of another shape": wrong}
        counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in kinds.items() if lines)
        parts = [f"{kind}:\n  " + "\n  ".join(_grouped(lines)) for kind, lines in kinds.items() if lines]
        raise BadInput(
            f"{source} does not fit the model: {counts}. Nothing was loaded.\n" + "\n".join(parts) + "\n"
            "Check that its config belongs to these weights."
        )
    return reads


@dataclass(frozen=True, eq=False)
class Stored:
    """An array of ours that is still in its file: one foreign tensor, or one a layer. It is read when it is wanted.

    `array[at]` reads the layer at that place alone (`at` is `()` where nothing is stacked), `numpy.asarray(array)` all.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any  # as in the file; the widest, where layers differ
    pieces: Mapping[tuple[int, ...], Callable[[], np.ndarray]]
    source: str

    def __getitem__(self, at: tuple[int, ...]) -> np.ndarray:
        """Raises `NonFinite` for NaN or infinity."""
        tensor = self.pieces[at]()
        if not np.isfinite(tensor).all():
            raise NonFinite(f"{self.source}: NaN or infinity in {self.path}. These weights cannot be used.")
        return tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.empty(self.shape, dtype or self.dtype)
        for at in self.pieces:
            array[at] = self[at]
        return array


def leaves(
    table: Table,
    found: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtypes: Mapping[str, Any] | None = None,
    source: str = "checkpoint",
) -> dict[str, Stored]:
    """Foreign tensors -> {our path: what reads it}; nothing is read yet. `found` and `shapes` as in `check`, whose
    errors it raises; `dtypes` are those of the foreign tensors (float32 where they are not given)."""
    groups: dict[str, list[tuple[str, Place]]] = {}
    for name, place in check(table, found, shapes, source):
        groups.setdefault(place.path, []).append((name, place))
    kinds = dtypes or dict.fromkeys(found, np.dtype(np.float32))
    return {
        path: Stored(
            path,
            tuple(shapes[path]),
            max((np.dtype(kinds[name]) for name, _ in group), key=lambda kind: kind.itemsize),
            {place.at: partial(_read_ours, place.row, read, name) for name, place in group},
            source,
        )
        for path, group in groups.items()
    }


def _read_ours(row: Row, read: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    return row.to_ours(read(name))


def to_ours(
    table: Table,
    foreign: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: Any = None,
    source: str = "checkpoint",
) -> dict[str, np.ndarray]:
    """Foreign tensors in memory -> {our path: array} of `dtype` (None: theirs). Raises as `check` does."""
    found = {name: tuple(tensor.shape) for name, tensor in foreign.items()}
    dtypes = {name: tensor.dtype for name, tensor in foreign.items()}
    ours = leaves(table, found, foreign.__getitem__, shapes, dtypes=dtypes, source=source)
    return {path: np.asarray(leaf, dtype) for path, leaf in ours.items()}


@dataclass(frozen=True, eq=False)
class Foreign:
    """A foreign tensor that is made when `read` is called: contiguous (safetensors scrambles others, silently)."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], np.ndarray]


def foreign(table: Table, ours: Mapping[str, Any]) -> dict[str, Foreign]:
    """{our path: array, on the host, on devices or `Stored`} -> the foreign tensors, none of them made yet."""
    return {
        place.names[0]: Foreign(place.shape, np.dtype(ours[place.path].dtype), partial(_read_foreign, place, ours))
        for place in places(table, {path: array.shape for path, array in ours.items()})
    }


def _read_foreign(place: Place, ours: Mapping[str, Any]) -> np.ndarray:
    return np.ascontiguousarray(place.row.to_foreign(np.asarray(ours[place.path][place.at])))


def to_foreign(table: Table, ours: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{our path: array} -> foreign tensors."""
    return {name: tensor.read() for name, tensor in foreign(table, ours).items()}
