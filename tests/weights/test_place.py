"""Weights on devices: in fewer bits, in the host's memory, over a mesh; one at a time."""

import runpy
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape, Rules, make_mesh, shardings
from dit_video.core.types import Text, Time
from dit_video.nn.leaves import Int8, OnHost, to_int8
from dit_video.weights.model import abstract
from dit_video.weights.names import Stored, flatten
from dit_video.weights.place import place

DIT = runpy.run_path(str(Path(__file__).parents[1] / "miniature.py"))["DIT"]


def matrices(params):
    return {path for path in flatten(params) if path.startswith("blocks/") and path.endswith("kernel")}


@pytest.fixture(scope="module")
def velocity():
    graph, _ = nnx.split(abstract(DIT), nnx.Param)
    x, text = jnp.ones((1, 2, 4, 4, 4)), Text(jnp.ones((1, 3, 24)), jnp.array([3]))
    return jax.jit(lambda params: nnx.merge(graph, params)(x, Time(jnp.full((1, 1), 0.5), None), text))


def test_eight_bits(rng):
    weight = rng.standard_normal((2, 64, 5)).astype(np.float32) * np.array([1e-3, 1, 10, 0, 5], np.float32)
    small = to_int8(weight)
    assert (small.values.dtype, small.scale.shape, small.shape) == (np.int8, (2, 1, 5), (2, 64, 5))
    step = np.abs(weight).max(1, keepdims=True) / 127
    assert (np.abs(np.asarray(small[...]) - weight) <= step / 2 + 1e-7).all()


def test_in_eight_bits_the_velocity_is_nearly_the_same(tiny, velocity):
    small = place(tiny.params["dit"], keep="int8")
    assert {path for path, leaf in flatten(small).items() if isinstance(leaf, Int8)} == matrices(small)
    exact = np.asarray(velocity(tiny.params["dit"]))
    assert 1e-5 < np.linalg.norm(velocity(small) - exact) / np.linalg.norm(exact) < 0.02
    with pytest.raises(BadInput, match="keep='int4'"):
        place(tiny.params["dit"], keep="int4")


@pytest.mark.parametrize("keep, kind", [("float32", OnHost), ("int8", Int8)])
def test_from_the_hosts_memory_the_velocity_is_the_same(tiny, velocity, keep, kind):
    away = place(tiny.params["dit"], keep=keep, offload=True)
    assert {path for path, leaf in flatten(away).items() if isinstance(leaf, kind)} == matrices(away)
    leaf = away["blocks"]["up"]["kernel"]
    assert (leaf.values if keep == "int8" else leaf).array.sharding.memory_kind == "pinned_host"
    np.testing.assert_array_equal(velocity(away), velocity(place(tiny.params["dit"], keep=keep)))


def test_over_a_mesh(tiny):
    mesh = make_mesh(MeshShape(data=1, fsdp=2, tensor=2, context=2))
    where = shardings(nnx.split(abstract(DIT), nnx.Param)[1], mesh, Rules())
    up = place(tiny.params["dit"], where, "int8")["blocks"]["up"]["kernel"]
    assert up.values.addressable_shards[0].data.shape == (2, 8, 24)
    np.testing.assert_array_equal(up.values, place(tiny.params["dit"], keep="int8")["blocks"]["up"]["kernel"].values)


def test_layers_of_a_file_become_eight_bits_one_at_a_time():
    """The stack as it is stored, four times the bytes, is never in memory."""
    layers = np.random.default_rng(0).standard_normal((32, 128, 128)).astype(np.float32)
    pieces = {(i,): layers[i].copy for i in range(len(layers))}
    stored = Stored("", layers.shape, layers.dtype, pieces, "a file")

    def kept():
        return place({"blocks": {"up": {"kernel": stored}}}, keep="int8")["blocks"]["up"]["kernel"]

    kept()  # what JAX makes once is not counted
    tracemalloc.start()
    small = kept()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert layers.nbytes / 4 < peak < layers.nbytes / 2
    whole = to_int8(layers)
    np.testing.assert_array_equal(small.values, whole.values)
    np.testing.assert_array_equal(small.scale, whole.scale)


def test_stored_arrays_are_read_once_cast_and_let_go():
    reads = []

    def piece(at):
        reads.append(at)
        return np.full((3, 4), at[0], np.float32)

    pieces = {(i,): lambda i=i: piece((i,)) for i in range(2)}
    stored = Stored("blocks/up/kernel", (2, 3, 4), np.dtype(np.float32), pieces, "a file")
    placed = place({"blocks": {"up": {"kernel": stored}}}, keep="bfloat16")["blocks"]["up"]["kernel"]
    assert reads == [(0,), (1,)]
    assert (placed.dtype, placed.shape) == (jnp.bfloat16, (2, 3, 4))
    np.testing.assert_array_equal(placed[1], 1)
