"""Windows on velocities whose answer is known: they cover, they sum to one, and known slots go along."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.core.types import Time
from dit_video.diffusion.known import known
from dit_video.diffusion.sample import scan
from dit_video.diffusion.schedule import Schedule
from dit_video.diffusion.solvers import SOLVERS
from dit_video.diffusion.windows import blended, layout, noise_order

FRAME = (2, 2, 3)


def arrays(slots, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((2, slots, *FRAME)), jnp.float32)


def gaussian(x, time, memory):
    """Towards data N(0.7, 0.4^2), each number alone: windows cannot change it."""
    t = time.field(x.shape)
    return -0.7 + (t - (1 - t) * 0.16) / ((1 - t) ** 2 * 0.16 + t**2) * (x - (1 - t) * 0.7), memory


def mixing(x, time, memory):
    """Every slot sees every other: what a window shows matters."""
    return jnp.tanh(x + x.mean(1, keepdims=True)) * time.field(x.shape), memory


def sampled(velocity, x, solver, memory=()):
    instants = Schedule(6, 3.0).instants()
    return jax.jit(lambda x: scan(velocity, SOLVERS[solver], x, instants, memory).x)(x)


def windowed(velocity_of, windows):
    """One velocity of the whole clip, as the sampler blends it; `velocity_of(i)` is that of window i. The memory is a
    tuple of theirs."""
    count = len(windows.starts)

    def velocity(x, t, memory):
        memories = list(memory) if memory else [()] * count

        def one(i):
            places = windows.places(i)
            time = Time(t.values, None if t.index is None else t.index[:, places])
            v, memories[i] = velocity_of(i)(x[:, places], time, memories[i])
            return v

        pieces = [v for _, v in blended(map(one, range(count)), windows)]
        return jnp.concatenate(pieces, axis=1), (tuple(memories) if memory else memory)

    return velocity


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize(
    "slots, length, overlap", [(21, 5, 2), (22, 5, 2), (23, 5, 4), (9, 9, 0), (6, 5, 1), (4, 9, 3)]
)
def test_weights_cover_every_slot_and_sum_to_one(slots, length, overlap, ring):
    windows = layout(slots, length, overlap, ring)
    total = np.zeros(slots)
    for i, weights in enumerate(windows.weights()):
        assert (weights > 0).all()
        total[windows.places(i)] += weights
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)
    assert (len(windows.starts) > 1) == (ring or slots > length)


def test_neighbours_share_what_they_were_told_to():
    assert layout(17, 5, 2).starts == (0, 3, 6, 9, 12)
    assert layout(18, 5, 2).starts == (0, 3, 6, 9, 12, 13)
    with pytest.raises(BadInput, match="Use 0 to 4"):
        layout(17, 5, 5)


@pytest.mark.parametrize("solver", ["unipc", "heun"])
@pytest.mark.parametrize("ring", [False, True])
def test_windows_leave_what_does_not_look_around_alone(solver, ring):
    x = arrays(14)
    many = windowed(lambda i: gaussian, layout(14, 5, 2, ring))
    np.testing.assert_allclose(sampled(many, x, solver), sampled(gaussian, x, solver), atol=2e-5)


def test_each_window_has_its_own_velocity_and_memory():
    """Slots of one window only have its velocity; where two meet it goes over from one to the other."""

    def constant(i):
        return lambda x, t, memory: (jnp.full_like(x, float(i)), memory + 1)

    windows = layout(8, 5, 2)
    v, memory = windowed(constant, windows)(arrays(8), Time(jnp.ones((2, 1))), (0, 10))
    assert memory == (1, 11)
    np.testing.assert_allclose(v[0, :, 0, 0, 0], [0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1], atol=1e-6)


def test_known_slots_are_cut_with_their_window():
    """An index of times goes along: slot 4 is known, whichever window sees it."""
    clean, mask = arrays(8, 1), jnp.zeros((2, 8, 2, 2), bool).at[:, 4].set(True)

    def seen(x, time, memory):
        return jnp.where(time.field(x.shape) == 0, 100.0, 0.0) + 0 * x, memory

    v, _ = known(windowed(lambda i: seen, layout(8, 5, 2)), clean, mask)(arrays(8), Time(jnp.ones((2, 1))), ())
    assert not np.asarray(v).any()
    places = np.asarray(windowed(lambda i: seen, layout(8, 5, 2))(
        clean, Time(jnp.array([[1.0, 0.0]] * 2), mask.astype(jnp.int32)), ())[0])  # fmt: skip
    np.testing.assert_allclose(places[:, 4], 100, rtol=1e-6)
    assert not places[:, [3, 5]].any()


def test_a_ring_does_not_know_where_it_begins():
    """Turning the noise by a whole window's stride turns the result."""
    x, windows = arrays(12), layout(12, 5, 2, ring=True)
    assert windows.starts == (0, 3, 6, 9)
    field = windowed(lambda i: mixing, windows)
    turned = sampled(field, jnp.roll(x, 3, axis=1), "unipc")
    np.testing.assert_allclose(turned, jnp.roll(sampled(field, x, "unipc"), 3, axis=1), atol=1e-5)
    # a clip that is not a ring does
    open_ended = windowed(lambda i: mixing, layout(12, 5, 2))
    difference = sampled(open_ended, jnp.roll(x, 3, axis=1), "unipc") - jnp.roll(sampled(open_ended, x, "unipc"), 3, 1)
    assert np.abs(difference).max() > 0.05


def test_pieces_come_as_soon_as_they_are_complete():
    """On NumPy arrays, one window in memory: the same numbers, and what comes out is not looked at again."""
    windows, x = layout(18, 5, 2), np.asarray(arrays(18))
    whole = mixing_windows = [np.asarray(mixing(jnp.asarray(x[:, windows.places(i)]), Time(jnp.ones((2, 1))), ())[0])
                              for i in range(len(windows.starts))]  # fmt: skip
    seen = []

    def one_by_one():
        for i, v in enumerate(mixing_windows):
            seen.append(i)
            yield v

    out, done = [], 0
    for start, piece in blended(one_by_one(), windows):
        assert isinstance(piece, np.ndarray)
        assert start == done == windows.starts[seen[-1]]
        done += piece.shape[1]
        out.append(piece)
    assert done == 18
    want = np.zeros_like(x)
    for i, v in enumerate(whole):
        want[:, windows.places(i)] += v * windows.weights()[i][:, None, None, None]
    np.testing.assert_allclose(np.concatenate(out, 1), want, atol=1e-6)


def test_noise_is_fresh_shared_or_shuffled():
    np.testing.assert_array_equal(noise_order(7, 3, "fresh", 0), np.arange(7))
    np.testing.assert_array_equal(noise_order(7, 3, "shared", 0), [0, 1, 2, 0, 1, 2, 0])
    order = noise_order(60, 12, "rescheduled", 5)
    np.testing.assert_array_equal(np.sort(order.reshape(5, 12), 1), np.tile(np.arange(12), (5, 1)))
    np.testing.assert_array_equal(order[:12], np.arange(12))
    assert len({tuple(run) for run in order.reshape(5, 12)}) == 5
    np.testing.assert_array_equal(order, noise_order(60, 12, "rescheduled", 5))
    with pytest.raises(BadInput, match="fresh, shared or rescheduled"):
        noise_order(7, 3, "old", 0)
