"""Mesh sizes resolve against a device count; an unknown logical axis is an error; one device is a mesh too."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape, Rules, constrain, make_mesh


def test_sizes_resolve():
    assert MeshShape(fsdp=2, tensor=2).resolve(8) == (2, 2, 1, 2)
    assert MeshShape(data=1, context=4, fsdp=2).resolve(8) == (1, 2, 4, 1)


@pytest.mark.parametrize(("shape", "words"), [(MeshShape(fsdp=3), "do not divide"), (MeshShape(data=2), "wants 2")])
def test_sizes_that_do_not(shape, words):
    with pytest.raises(BadInput, match=words):
        shape.resolve(8)


def test_rules_name_the_mesh_axes():
    assert Rules()("batch", None, "heads") == P(("data", "fsdp"), None, "tensor")
    with pytest.raises(BadInput, match="unknown logical axis 'head'"):
        Rules()("head")


def test_constrain_without_a_mesh_is_the_identity():
    x = jax.numpy.arange(4.0)
    assert constrain(x, Rules()("batch")) is x
    assert make_mesh(devices=jax.devices()[:1]).size == 1
