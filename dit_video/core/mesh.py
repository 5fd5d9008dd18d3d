"""The only module that knows the names of the mesh axes.

Modules name logical axes (`batch`, `tokens`, `width`, `heads`, `mlp`); `Rules` maps them to mesh axes. Every parameter
carries its logical axes as plain metadata (`axes=`), so a layout is a change of one table. `over_frames` lays out the
frames of a VAE.
"""

import math
from dataclasses import dataclass, fields
from functools import partial

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_video.core.errors import BadInput

Axis = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes. To shard the model differently, change this and nothing else."""

    batch: Axis = ("data", "fsdp")
    tokens: Axis = "context"
    width: Axis = ("context", "fsdp")  # of weights; activations keep their width whole
    heads: Axis = "tensor"
    mlp: Axis = "tensor"
    space: Axis = ("context", "tensor", "data", "fsdp")  # a VAE's frames, see `over_frames`

    def __post_init__(self):
        axes = [f.name for f in fields(MeshShape)]
        for field in fields(self):
            names = names_of(getattr(self, field.name))
            if not set(names) <= set(axes) or len(set(names)) < len(names):
                raise BadInput(
                    f"rules.{field.name}={getattr(self, field.name)!r}: wants axes of the mesh, each once. There are "
                    f"{', '.join(axes)}."
                )

    def __call__(self, *names: str | None) -> P:
        known = {f.name for f in fields(self)}
        for name in names:
            if name is not None and name not in known:
                raise BadInput(f"unknown logical axis {name!r}: the rules know {sorted(known)}")
        return P(*(getattr(self, name) if name else None for name in names))


@dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes; one of them may be -1 and takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def resolve(self, devices: int) -> tuple[int, ...]:
        """Sizes for a number of devices. Raises `BadInput` when they do not divide."""
        sizes = [self.data, self.fsdp, self.context, self.tensor]
        if any(s < 1 and s != -1 for s in sizes):
            raise BadInput(f"mesh {self}: each axis takes at least one device (-1: those that are left)")
        fixed = int(np.prod([s for s in sizes if s != -1]))
        if sizes.count(-1) > 1:
            raise BadInput(f"mesh {self}: only one axis may be -1")
        if -1 in sizes:
            if devices % fixed:
                raise BadInput(f"mesh {self}: {devices} devices do not divide by {fixed}")
            sizes[sizes.index(-1)] = devices // fixed
        elif fixed != devices:
            raise BadInput(f"mesh {self} wants {fixed} devices, there are {devices}. Set one axis to -1.")
        return tuple(sizes)

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Of `data=2,context=4`; a data axis that is not named takes the devices that are left. Raises `BadInput`."""
        names = [f.name for f in fields(cls)]
        sizes: dict[str, int] = {}
        for part in text.split(","):
            name, _, size = (piece.strip() for piece in part.partition("="))
            if name not in names or name in sizes or not size.removeprefix("-").isdecimal():
                raise BadInput(
                    f"mesh {text!r}: give axes and how many devices each takes (-1: those that are left), each axis "
                    f"once, such as data=2,context=4. Axes: {', '.join(names)}."
                )
            sizes[name] = int(size)
        return cls(**sizes)

    def abstract(self, devices: int) -> AbstractMesh:
        """The mesh over a number of devices without any. Raises as `resolve`."""
        return AbstractMesh(self.resolve(devices), tuple(f.name for f in fields(self)))


def make_mesh(shape: MeshShape = MeshShape(), devices=None) -> Mesh:
    """A mesh with Auto axes (data, fsdp, context, tensor) over `devices` (default: all). Of several TPU slices each has
    a part of the data axis: between slices only gradients go. Raises `BadInput` when that axis does not divide. (JAX
    calls each host of GPUs a slice: there the axis is split so where it divides, and lies as asked where not.)"""
    devices = list(jax.devices() if devices is None else devices)
    names = tuple(f.name for f in fields(MeshShape))
    sizes, types = shape.resolve(len(devices)), (AxisType.Auto,) * len(names)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes[0] % slices == 0:
        inside, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
        lay = partial(mesh_utils.create_hybrid_device_mesh, inside, across, devices)
    elif slices > 1 and devices[0].platform == "tpu":
        raise BadInput(f"mesh.data={sizes[0]} does not divide over {slices} slices: each takes whole clips")
    else:
        lay = partial(mesh_utils.create_device_mesh, sizes, devices)
    try:
        laid = lay()
    except NotImplementedError:  # no axis of the mesh is whole sides of the slice: of a side of 8 it takes 4, say
        laid = lay(allow_split_physical_axes=True)
    return Mesh(laid, names, axis_types=types)


def as_mesh(given: Mesh | MeshShape | str | None) -> Mesh | None:
    """Of what a user gives. Raises `BadInput` as `MeshShape.parse` and `make_mesh`."""
    given = MeshShape.parse(given) if isinstance(given, str) else given
    return make_mesh(given) if isinstance(given, MeshShape) else given


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """Pins an activation to the mesh in force; without one (a laptop) it is the identity."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, spec)


def names_of(axis: Axis) -> tuple[str, ...]:
    """The mesh axes, from the outermost."""
    return (axis,) if isinstance(axis, str) else axis or ()


def ways(axis: Axis, mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts these mesh axes split an array."""
    return math.prod(mesh.shape[name] for name in names_of(axis))


def fits(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """Leaves an axis whole when its mesh axes do not divide it."""
    axes = (*spec, *(None,) * (len(shape) - len(spec)))
    return P(*(axis if size % ways(axis, mesh) == 0 else None for size, axis in zip(shape, axes, strict=True)))


def over_frames(shape: tuple[int, ...], rules: Rules, mesh: Mesh | AbstractMesh | None = None) -> P:
    """How frames (B, T, H, W, ...) lie on a mesh, by default on the one in force; without one `P()`.

    Clips are split over the axes of a batch where these divide them. The other axes of `space` split the side that can
    be halved more often, as far as they divide it: at every scale it is the same side, so the levels of a network lie
    alike. What does not divide the side splits time, where it divides that: the pieces of a clip that is streamed.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if mesh.empty:
        return P()
    clips = rules.batch if shape[0] % ways(rules.batch, mesh) == 0 else None
    side = 2 + (shape[3] & -shape[3] > shape[2] & -shape[2])
    parts: dict[int, list[str]] = {side: [], 1: []}
    for name in names_of(rules.space):
        if name in names_of(clips) or mesh.shape[name] == 1:
            continue
        for axis, taken in parts.items():
            if shape[axis] // ways(tuple(taken), mesh) % mesh.shape[name] == 0:
                taken.append(name)
                break
    return P(clips, tuple(parts[1]) or None, *(None,) * (side - 2), tuple(parts[side]) or None)


def shardings(state, mesh: Mesh, rules: Rules = Rules()):
    """A NamedSharding for each variable of an nnx.State, from its metadata `axes`; a stacked layer's leading axes stay
    whole. Variables without `axes` are replicated. Returns a tree with the structure of `nnx.to_pure_dict(state)`."""
    from flax import nnx

    def one(variable) -> NamedSharding:
        shape = tuple(variable.get_value().shape)
        axes = variable.get_metadata().get("axes") or (None,) * len(shape)
        spec = P(*(None,) * (len(shape) - len(axes)), *rules(*axes))
        return NamedSharding(mesh, fits(spec, shape, mesh))

    tree = jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree


def batch_part(mesh: Mesh, rules: Rules, process: int) -> tuple[int, int]:
    """Which part of every batch a process brings, and how many parts there are.

    Processes whose devices lie behind one another along the other axes (context, tensor) hold the same clips, so they
    bring the same part. Raises `BadInput` when two processes have only some of their clips in common.
    """
    places = dict(zip(mesh.axis_names, np.indices(mesh.devices.shape), strict=True))
    row = np.zeros(mesh.devices.shape, int)  # the part of the batch that each device has
    for axis in names_of(rules.batch):
        row = row * mesh.shape[axis] + places[axis]
    rows: dict[int, set[int]] = {}
    for device, number in zip(mesh.devices.flat, row.flat, strict=True):
        rows.setdefault(device.process_index, set()).add(int(number))
    parts = sorted({tuple(sorted(numbers)) for numbers in rows.values()})
    if sum(map(len, parts)) != ways(rules.batch, mesh) or len({len(part) for part in parts}) > 1:
        raise BadInput(
            f"mesh {dict(mesh.shape)}: some processes share only a part of their clips. Choose data * fsdp so that it "
            "divides over the processes, or the processes over it."
        )
    return parts.index(tuple(sorted(rows[process]))), len(parts)


def batch_sharding(mesh: Mesh, rules: Rules = Rules()) -> NamedSharding:
    """Arrays of a batch: the leading axis is split over the batch axes, the others are whole."""
    return NamedSharding(mesh, rules("batch"))
