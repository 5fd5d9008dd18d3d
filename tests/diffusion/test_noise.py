"""Noise: stored values, independence of batch and length, and that it is normal."""

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.diffusion.noise import clip_noise, draw_seed, frame_noise


def test_stored_values():
    """If this fails, every seed that users wrote down gives another video."""
    stored = [
        [-0.5702505111694336, 1.9461275339126587, -0.8648582696914673],
        [-1.4074039459228516, 1.5169981718063354, -0.5931133031845093],
        [0.22348175942897797, -0.5097395777702332, -1.7509504556655884],
        [-0.21289560198783875, -0.6273595690727234, -3.059912919998169],
    ]
    got = clip_noise(7, [0, 3], 2, (1, 1, 3))
    np.testing.assert_allclose(got.reshape(4, 3), stored, atol=1e-7)
    assert got.dtype == np.float32


def test_the_recipe_by_hand():
    """Philox4x64-10 with key (seed, clip << 32 | frame), Box-Muller on neighbouring words."""
    words = np.random.Philox(key=np.array([5, (2 << 32) | 9], np.uint64)).random_raw(2)
    u, w = [int(word) // 2048 / 2**53 for word in words]
    radius = np.sqrt(-2 * np.log(1 - u))
    expected = np.float32([radius * np.cos(2 * np.pi * w), radius * np.sin(2 * np.pi * w)])
    np.testing.assert_allclose(frame_noise(5, 2, 9, (2,)), expected, rtol=1e-6)


def test_neither_batch_nor_length_matters():
    shape = (3, 5, 2)
    whole = clip_noise(1, [0, 1, 2], 6, shape)
    np.testing.assert_array_equal(clip_noise(1, [2], 6, shape)[0], whole[2])
    np.testing.assert_array_equal(clip_noise(1, [0, 1, 2], 2, shape), whole[:, :2])
    np.testing.assert_array_equal(clip_noise(1, [1], 3, shape, first=3)[0], whole[1, 3:])


def test_all_keys_give_other_numbers_and_all_are_normal():
    x = np.stack([clip_noise(seed, [0, 1], 3, (16, 16, 16)) for seed in (0, 1, 2**62)]).reshape(18, -1)
    assert np.abs(np.corrcoef(x) - np.eye(18)).max() < 0.08
    assert np.abs(x.mean()) < 0.02
    assert x.std() == pytest.approx(1, abs=0.01)
    assert (x**4).mean() == pytest.approx(3, abs=0.1)
    assert np.isfinite(x).all()


def test_an_odd_number_of_values():
    np.testing.assert_array_equal(frame_noise(0, 0, 0, (3,)), frame_noise(0, 0, 0, (4,))[:3])


def test_seeds_have_a_range():
    with pytest.raises(BadInput, match="2\\^63"):
        frame_noise(-1, 0, 0, (1,))
    assert len({draw_seed() for _ in range(20)}) == 20
