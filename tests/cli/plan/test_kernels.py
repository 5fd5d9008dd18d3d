"""Costs of the splash kernels, read from their Mosaic programs as JAX lowers them for a TPU on any machine."""

import re

import jax
import jax.numpy as jnp
import pytest

from dit_video.cli.plan.kernels import read_kernel
from dit_video.nn.splash import splash

HEADS, LENGTH, WIDTH = 2, 1000, 128
COVERED = 1024  # two tiles of 512 queries, one of 1024 keys


@pytest.fixture(scope="module")
def kernels():
    """Forward and fused backward, of one clip of two heads, wide or not."""
    x = jax.ShapeDtypeStruct((1, LENGTH, HEADS, WIDTH), jnp.bfloat16)

    def calls(wide):
        def loss(q, k, v):
            return jnp.sum(splash(q, k, v, None, 0.1, wide=wide).astype(jnp.float32))

        low = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x).lower(lowering_platforms=("tpu",))
        text = low.as_text().replace("\\22", '"')
        return re.findall(r"@tpu_custom_call.*", text)

    return {wide: calls(wide) for wide in (False, True)}


def test_products_are_those_of_attention(kernels):
    """Two forward, five backward, of 2 * L * S * K each for each head."""
    pair = 2 * HEADS * COVERED**2 * WIDTH
    forward, backward = (read_kernel(call, 128) for call in kernels[False])
    assert (forward.flops, backward.flops) == (2 * pair, 5 * pair)
    assert (forward.padded, backward.padded) == (forward.flops, backward.flops)
    assert "fwd" in forward.name and "dkv" in backward.name


def test_units_of_256_are_half_empty_at_heads_of_128(kernels):
    forward, backward = (read_kernel(call, 256) for call in kernels[False])
    assert (forward.padded, backward.padded) == (2 * forward.flops, 2 * backward.flops)


def test_masking_by_one_more_number_saves_comparisons_and_costs_wide_units_nothing(kernels):
    for narrow, wide in zip(*kernels.values(), strict=True):
        narrow, wide = read_kernel(narrow, 256), read_kernel(wide, 256)
        assert wide.vector <= narrow.vector - 0.9 * HEADS * COVERED**2  # less than two a pair: rows are wider
        assert wide.padded == narrow.padded
    assert read_kernel(kernels[True][0], 128).padded > read_kernel(kernels[False][0], 128).padded


def test_softmax_is_counted(kernels):
    """For each pair of query and key: mask (2), maximum, difference, exponential, sum; and the rescaled result."""
    forward = read_kernel(kernels[False][0], 128)
    assert 6 < forward.vector / (HEADS * COVERED**2) < 9


def test_cores_share_mapped_heads(kernels):
    assert all(read_kernel(call, 128).shared for call in kernels[False])


def test_blocks_are_fetched_when_their_place_changes(kernels):
    """Queries and results once, keys and values once for each tile of queries."""
    forward = read_kernel(kernels[False][0], 128)
    block = HEADS * COVERED * WIDTH * 2
    assert forward.bytes >= 2 * block + 2 * 2 * block
    assert forward.bytes < 14 * block  # log-sum-exps and segments are 128 wide, too


def test_a_call_without_a_program():
    with pytest.raises(ValueError, match="without its program"):
        read_kernel('custom_call_target="tpu_custom_call"', 128)
