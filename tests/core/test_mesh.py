"""Mesh sizes resolve against a device count; an unknown logical axis is an error; one device is a mesh too."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape, Rules, batch_part, constrain, make_mesh


def test_sizes_resolve():
    assert MeshShape(fsdp=2, tensor=2).resolve(8) == (2, 2, 1, 2)
    assert MeshShape(data=1, context=4, fsdp=2).resolve(8) == (1, 2, 4, 1)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (MeshShape(fsdp=3), "do not divide"),
        (MeshShape(data=2), "wants 2"),
        (MeshShape(fsdp=0), "at least one device"),
        (MeshShape(fsdp=-2), "at least one device"),
    ],
)
def test_sizes_that_do_not(shape, words):
    with pytest.raises(BadInput, match=words):
        shape.resolve(8)


def test_rules_name_the_mesh_axes():
    assert Rules()("batch", None, "heads") == P(("data", "fsdp"), None, "tensor")
    with pytest.raises(BadInput, match="unknown logical axis 'head'"):
        Rules()("head")
    for axis in ("foo", ("data", "foo"), ("data", "data"), "data,fsdp"):
        with pytest.raises(BadInput, match=r"rules\.tokens=.*There are data, fsdp, context, tensor"):
            Rules(tokens=axis)


def test_constrain_without_a_mesh_is_the_identity():
    x = jax.numpy.arange(4.0)
    assert constrain(x, Rules()("batch")) is x
    assert make_mesh(devices=jax.devices()[:1]).size == 1


class Device(SimpleNamespace):
    __hash__ = object.__hash__


def torus(x, y):
    """Chips of v6e, wired as they are."""
    about = {"platform": "tpu", "device_kind": "TPU v6 lite", "core_on_chip": 0, "process_index": 0, "slice_index": 0}
    return [Device(id=i, coords=(i % x, i // x, 0), **about) for i in range(x * y)]


@pytest.mark.parametrize(
    "shape", [MeshShape(1, 16, 4, 1), MeshShape(1, 32, 2, 1), MeshShape(2, 32, 1, 1), MeshShape(1, 8, 8, 1)]
)
def test_a_part_of_a_side_of_the_slice(shape):
    """JAX takes whole sides only, but on v5e: 4 of 8 x 8 are half of one."""
    mesh = make_mesh(shape, torus(8, 8))
    assert mesh.devices.shape == shape.resolve(64)
    assert len({d.id for d in mesh.devices.flat}) == 64
    for line in np.moveaxis(mesh.devices, 2, 0).reshape(mesh.shape["context"], -1).T:
        places = np.array([d.coords for d in line])
        assert np.ptp(places, axis=0).sum() < 8  # neighbours: within a block or a side


def cluster(*shape, hosts, order="rows"):
    """A mesh of devices that are not here; `hosts` of equal size lie along it in this order."""
    number = np.arange(np.prod(shape)).reshape(shape, order="C" if order == "rows" else "F")
    devices = np.vectorize(lambda i: SimpleNamespace(process_index=int(i * hosts // number.size)))(number)
    names = ("data", "fsdp", "context", "tensor")
    return SimpleNamespace(devices=devices, axis_names=names, shape=dict(zip(names, shape, strict=True)))


@pytest.mark.parametrize(
    "mesh, parts",
    [
        (cluster(4, 2, 1, 1, hosts=2), [(0, 2), (1, 2)]),
        (cluster(2, 1, 4, 1, hosts=4), [(0, 2), (0, 2), (1, 2), (1, 2)]),  # context over two hosts: the same clips
        (cluster(1, 1, 8, 1, hosts=2), [(0, 1), (0, 1)]),
        (cluster(2, 2, 2, 1, hosts=2, order="columns"), [(0, 1), (0, 1)]),  # each host has half of every clip
    ],
)
def test_processes_that_hold_the_same_clips_bring_the_same_part(mesh, parts):
    assert [batch_part(mesh, Rules(), process) for process in range(len(parts))] == parts


def test_processes_that_share_some_clips_only():
    with pytest.raises(BadInput, match="share only a part of their clips"):
        batch_part(cluster(3, 1, 2, 1, hosts=2), Rules(), 0)


def test_slices_split_the_data_axis(monkeypatch):
    """Between slices only gradients go: each slice has whole parts of the batch."""
    made = {}
    monkeypatch.setattr("dit_video.core.mesh.Mesh", lambda devices, names, axis_types: made.update(devices=devices))

    def devices(platform):
        about = {"platform": platform, "device_kind": "x"}
        return [SimpleNamespace(id=i, slice_index=i // 4, process_index=i // 4, **about) for i in range(8)]

    make_mesh(MeshShape(data=-1, context=2), devices("gpu"))
    assert made["devices"].shape == (4, 1, 2, 1)
    assert [{d.slice_index for d in row.flat} for row in made["devices"]] == [{0}, {0}, {1}, {1}]
    make_mesh(MeshShape(data=1, context=-1), devices("gpu"))  # every host of GPUs is a "slice"
    assert made["devices"].shape == (1, 1, 8, 1)
    with pytest.raises(BadInput, match=r"mesh\.data=1 does not divide over 2 slices"):
        make_mesh(MeshShape(data=1, context=-1), devices("tpu"))
