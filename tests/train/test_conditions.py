"""Every case of the mixture occurs with its share, and what is known is what the case says."""

from dataclasses import replace

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.train.conditions import Conditions, Samples, assemble

ONLY = Conditions(text=0, first=0, picture=0, tail=0, tail_with_sink=0, window=0, drop_caption=0)


def samples(b=16, n=9, h=4, w=4, c=2):
    """Latents that hold their own clip and slot number, pictures that hold clip and frame number."""
    latents = np.zeros((b, n, h, w, c), np.float32)
    latents[..., 0], latents[..., 1] = np.arange(b)[:, None, None, None], np.arange(n)[None, :, None, None]
    frames = np.stack([np.full(b, 16), np.full(b, 30)], axis=1)
    pictures = np.broadcast_to(frames[:, :, None, None, None], (b, 2, h, w, c)).astype(np.float32)
    return Samples(latents, pictures, frames, np.full((b, 16), 7, np.int32), np.full(b, 9, np.int32))


def cut(slots=5, seed=0, n=9, **shares):
    return assemble(samples(n=n), np.random.default_rng(seed), replace(ONLY, **shares), slots)


def test_text_knows_nothing_and_starts_at_the_start():
    batch = cut(text=1)
    assert batch.extra is None and not batch.known.any()
    np.testing.assert_array_equal(batch.latents[0, :, 0, 0, 1], np.arange(5))


def test_first_is_slot_zero():
    batch = cut(first=1)
    assert batch.known[:, 0].all() and not batch.known[:, 1:].any() and batch.extra is None


def test_tail_starts_mid_stream_with_one_or_two_known():
    batch = cut(tail=1)
    starts = batch.latents[:, 0, 0, 0, 1]
    assert set(starts) == {1, 2, 3, 4}
    assert set(batch.known[:, :, 0, 0].sum(axis=1)) == {1, 2} and batch.known[:, 0].all()


def test_sink_is_the_clips_first_latent_at_its_distance():
    for case in ("tail_with_sink", "window"):
        batch = cut(**{case: 1})
        np.testing.assert_array_equal(batch.extra.latents[:, 0, 0, 0, 1], 0)
        np.testing.assert_array_equal(batch.extra.latents[:, 0, 0, 0, 0], np.arange(16))
        np.testing.assert_array_equal(batch.extra.position[:, 0], -batch.latents[:, 0, 0, 0, 1])
        assert batch.known.any() == (case == "tail_with_sink")


def test_picture_takes_the_time_of_its_frame_and_lies_inside():
    batch = cut(picture=1)
    np.testing.assert_array_equal(batch.extra.position, 4.0)
    np.testing.assert_array_equal(batch.extra.latents, 16)
    assert 0 < batch.known[:, 0, 0, 0].mean() < 1 and not batch.known[:, 1:].any()
    assert set(cut(slots=9, picture=1).extra.position[:, 0]) == {4.0, 7.5}


def test_what_the_samples_cannot_give_falls_back_to_text():
    assert not cut(n=5, tail=1).known.any()
    assert cut(n=5, window=1).extra is None
    still = cut(slots=1, first=1, picture=1, window=1)
    assert still.extra is None and not still.known.any()


def test_shares_and_dropped_captions():
    mix, rng, extras, firsts = Conditions(), np.random.default_rng(1), 0, 0
    dropped = []
    for _ in range(400):
        batch = assemble(samples(), rng, mix, 5)
        extras += batch.extra is not None
        dropped.append((batch.length == 1).mean())
        if batch.extra is None:
            firsts += (batch.known[:, 0, 0, 0] & (batch.latents[:, 0, 0, 0, 1] == 0)).mean()
    assert extras / 400 == pytest.approx(0.25, abs=0.06)
    assert firsts / (400 - extras) == pytest.approx(0.2 / 0.75, abs=0.05)
    assert np.mean(dropped) == pytest.approx(0.1, abs=0.02)


def test_a_dropped_caption_is_the_empty_prompt():
    batch = cut(text=1, drop_caption=1.0)
    assert (batch.length == 1).all() and (batch.ids[:, 0] == 1).all() and not batch.ids[:, 1:].any()


def test_seeded_and_bad_input():
    a, b = cut(seed=3, tail=1), cut(seed=3, tail=1)
    np.testing.assert_array_equal(a.latents, b.latents)
    with pytest.raises(BadInput, match="shorter|cannot give crops"):
        cut(slots=10, text=1)
    with pytest.raises(BadInput, match="must be positive"):
        cut(text=0)


def test_processes_agree_on_shapes_and_draw_their_rows_apart():
    """Pictures lie in the first half of a clip, so where a crop reaches no further, no process takes that case."""
    for slots in (2, 3, 5, 9):
        for seed in range(20):
            parts = []
            for process in range(2):
                rng = np.random.default_rng(seed)
                frames = np.random.default_rng((seed, process)).integers(1, 17, (16, 2))
                part = replace(samples(), picture_frames=frames)
                parts.append(assemble(part, rng, Conditions(), slots, rows=rng.spawn(2)[process]))
            assert (parts[0].extra is None) == (parts[1].extra is None)
    assert not np.array_equal(parts[0].length, parts[1].length), "captions are dropped apart"
