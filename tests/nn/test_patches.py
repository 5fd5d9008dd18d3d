"""Patches and back are exact inverses; a patch holds its block in order; bad sizes are named."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dit_video.core.errors import BadInput
from dit_video.nn.patches import patchify, unpatchify

size = st.integers(1, 4)


@settings(max_examples=12, deadline=None)
@given(st.tuples(size, size, size), st.tuples(size, size, size), size, st.integers(1, 2))
def test_inverses_for_every_size_that_divides(grid, patch, channels, batch):
    shape = (batch, *(g * p for g, p in zip(grid, patch, strict=True)), channels)
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    patches = patchify(x, patch)
    assert patches.shape == (batch, *grid, np.prod(patch) * channels)
    np.testing.assert_array_equal(unpatchify(patches, patch), x)


def test_a_patch_holds_its_block_in_order():
    x = jnp.arange(144.0).reshape(1, 2, 4, 6, 3)
    patches = patchify(x, (1, 2, 2))
    np.testing.assert_array_equal(patches[0, 1, 0, 2], x[0, 1, 0:2, 4:6].reshape(-1))


def test_bad_sizes_are_named_with_the_nearest():
    with pytest.raises(BadInput, match="height=5.*multiple of 2.*4 or 6"):
        patchify(jnp.zeros((1, 1, 5, 4, 3)), (1, 2, 2))
    with pytest.raises(BadInput, match="7 numbers"):
        unpatchify(jnp.zeros((1, 1, 2, 2, 7)), (1, 2, 2))
