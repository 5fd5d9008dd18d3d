"""Rotary positions: the split of Wan, the precision of angles, the order of positions, only distances matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.nn.rotary import Stretch, frame_positions, frequencies, grid_positions, halves, rotary, rotate, split


def angles(positions, dim, theta=1e4):
    """The same in float64."""
    parts = [positions[..., n : n + 1] * theta ** -(np.arange(0, d, 2) / d) for n, d in enumerate(split(dim)) if d]
    return np.concatenate(parts, -1)


def test_split_is_wan():
    assert split(128) == (44, 42, 42)
    for dim in range(6, 200, 2):
        t, h, w = split(dim)
        assert t + h + w == dim
        assert t % 2 == h % 2 == 0
        assert h == w == 2 * (dim // 6)


def test_float32_angles_hold_to_1024_positions():
    steps = np.arange(-1024 * 4, 1024 * 4 + 1) / 4
    positions = np.stack([steps, steps[::-1], np.abs(steps)], -1)[None]
    table = jax.jit(lambda p: rotary(p, 128))(jnp.asarray(positions, jnp.float32))
    want = angles(positions, 128)
    assert np.abs(table.cos - np.cos(want)).max() < 2e-6
    assert np.abs(table.sin - np.sin(want)).max() < 2e-6


def test_grid_positions_are_in_the_order_of_patches():
    p = np.asarray(grid_positions((2, 3, 4)))[0]
    assert p.shape == (24, 3)
    np.testing.assert_array_equal(p[0], [0, 0, 0])
    np.testing.assert_array_equal(p[5], [0, 1, 1])
    np.testing.assert_array_equal(p[23], [1, 2, 3])


def test_frames_stand_at_any_time():
    p = np.asarray(frame_positions(jnp.asarray([[4.0], [-7.25]]), (2, 2)))
    np.testing.assert_array_equal(p[1], [[-7.25, 0, 0], [-7.25, 0, 1], [-7.25, 1, 0], [-7.25, 1, 1]])
    np.testing.assert_array_equal(p[0, :, 0], 4.0)


@pytest.mark.parametrize("dim", [8, 12, 32])
def test_logits_are_those_of_adjacent_pairs(dim):
    """`halves` on the weights and `rotate` on the activations give the logits of rotated adjacent pairs."""
    rng = np.random.default_rng(0)
    heads, L = 3, 10
    q, k = rng.standard_normal((2, 1, L, heads * dim))
    positions = rng.integers(0, 40, (1, L, 3)) / 4
    phase = np.exp(1j * angles(positions, dim))[:, :, None]
    a, b = ((x.reshape(1, L, heads, dim // 2, 2) @ [1, 1j]) * phase for x in (q, k))
    want = np.einsum("blnk,bsnk->bnls", a, b.conj()).real
    table = rotary(jnp.asarray(positions, jnp.float32), dim)
    ours = [rotate(halves(jnp.asarray(x, jnp.float32), heads).reshape(1, L, heads, dim), table) for x in (q, k)]
    np.testing.assert_allclose(jnp.einsum("blnk,bsnk->bnls", *ours), want, atol=2e-4)


def test_only_distances_matter():
    rng = np.random.default_rng(1)
    q, k = jnp.asarray(rng.standard_normal((2, 1, 6, 2, 12)), jnp.float32)
    p = jnp.asarray(rng.integers(0, 9, (1, 6, 3)), jnp.float32)
    logits = [
        jnp.einsum("blnk,bsnk->bnls", rotate(q, rotary(p + d, 12)), rotate(k, rotary(p + d, 12))) for d in (0.0, 5.25)
    ]
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_riflex_lowers_the_one_frequency_that_repeats():
    """Wan's 44 numbers of time: a model of 21 slots repeats with the component whose period is nearest to 21."""
    f = frequencies(44, 1e4)
    got = Stretch("riflex", 21, 42)(f)
    (changed,) = np.flatnonzero(got != f)
    assert changed == np.argmin(np.abs(2 * np.pi / f - 21))
    assert 2 * np.pi / got[changed] == pytest.approx(42 / 0.9)


def test_ntk_keeps_the_highest_and_divides_the_lowest_frequency():
    f = frequencies(44, 1e4)
    got = Stretch("ntk", 21, 84)(f)
    assert got[0] == f[0]
    assert got[-1] == pytest.approx(f[-1] / 4)
    assert (np.diff(got / f) < 0).all()
    # the same as a larger theta
    np.testing.assert_allclose(got, frequencies(44, 1e4 * 4 ** (44 / 42)), rtol=1e-12)


@pytest.mark.parametrize("method", ["riflex", "ntk"])
def test_stretching_turns_time_alone(method):
    p = jnp.asarray([[[3.0, 2.0, 1.0], [7.0, 5.0, 4.0]]])
    plain, changed = rotary(p, 32), rotary(p, 32, 1e4, Stretch(method, 9, 36))
    time = split(32)[0] // 2
    assert np.abs(plain.cos - changed.cos)[..., :time].max() > 0.01
    np.testing.assert_array_equal(plain.cos[..., time:], changed.cos[..., time:])
    same = rotary(p, 32, 1e4, Stretch("ntk", 9, 9))
    np.testing.assert_array_equal(plain.sin, same.sin)


def test_a_stretch_that_cannot_be_is_told():
    with pytest.raises(BadInput, match="riflex or ntk"):
        Stretch("yarn", 9, 18)
    with pytest.raises(BadInput, match="no more than the 9"):
        Stretch("ntk", 9, 5)
