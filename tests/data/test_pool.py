"""The pool: made from (seed, number) alone, used to the last clip, and found again after a resume."""

import json

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.buckets import Bucket
from dit_video.data.loader import Sample
from dit_video.data.pool import Pool, PoolStream, draw_pictures

BUCKETS = (Bucket(9, 32, 32), Bucket(1, 32, 32))


class Counting:
    """A reader whose clip is its own number; three quarters are of the first bucket; every eleventh is broken."""

    def __init__(self, broken=11, buckets=BUCKETS, known=True):
        self.broken, self.buckets, self.known = broken, buckets, known

    def bucket(self, draw):
        return int(draw % 4 == 3) % len(self.buckets) if self.known else None

    def load(self, draw):
        bucket = int(draw % 4 == 3) % len(self.buckets)
        return (
            None if draw % self.broken == self.broken - 6 else Sample(draw, bucket, str(draw), {"n": np.float32(draw)})
        )


def encode(arrays, bucket, numbers):
    """Latents that tell which clip and picture they are."""
    n = arrays["n"]
    slots = 1 + (BUCKETS[bucket].frames - 1) // 4
    assert len(n) == 5, "one chunk size for one program"
    latents = np.broadcast_to(n[:, None, None, None, None], (len(n), slots, 2, 2, 1)).astype(np.float32)
    pictures = (n[:, None] * 100 + numbers)[..., None, None, None] * np.ones((2, 2, 1), np.float32)
    return latents, pictures.astype(np.float32)


def tokenize(captions):
    return np.array([[int(c), 1] for c in captions], np.int32), np.full(len(captions), 2, np.int32)


def stream(seed=0, reuse=2.0, broken=11, clips=24, batch=4, buckets=BUCKETS, known=True, **more):
    return PoolStream(Counting(broken, buckets, known), encode, tokenize, Pool(clips, reuse, 2, 5), batch, seed, **more)


def summary(item):
    bucket, clips, rng = item
    return bucket, clips.ids[:, 0].tolist(), clips.picture_frames.tolist(), rng.integers(1 << 30)


def test_every_clip_is_used_about_reuse_times():
    s, uses = stream(reuse=3.0), []
    while s.pool == 0:
        item = next(s)
        if s.pool == 0:
            uses += summary(item)[1]
            assert len({*item[1].ids[:, 0].tolist()}) >= 1
            assert set(item[1].latents[:, 0, 0, 0, 0].astype(int)) == set(item[1].ids[:, 0].tolist())
    readable = [d for d in range(24) if d % 11 != 5]
    assert sorted(set(uses)) == readable
    counts = [uses.count(d) for d in readable]
    assert min(counts) >= 3
    assert max(counts) <= 5  # the last batch of a bucket is filled up


def test_what_belongs_together_stays_together():
    _, clips, _ = next(s for s in stream() if s[0] == 0)
    number = clips.ids[:, 0]
    np.testing.assert_array_equal(clips.pictures[..., 0, 0, 0], number[:, None] * 100 + clips.picture_frames)
    assert clips.latents.shape == (4, 3, 2, 2, 1)


def test_a_resumed_stream_makes_the_pool_again_and_goes_on():
    straight = stream(seed=7)
    items = [summary(next(straight)) for _ in range(40)]
    first = stream(seed=7)
    for _ in range(23):
        next(first)
    second = stream(seed=7)
    second.restore(json.loads(json.dumps(first.state())))
    assert [summary(next(second)) for _ in range(17)] == items[23:]


def test_work_on_a_pool_is_told_of_and_can_be_ended():
    class Ended(Exception):
        pass

    told = []
    next(stream(beat=lambda: told.append(None)))
    readable = len([d for d in range(24) if d % 11 != 5])
    assert len(told) > readable, "each clip that was read, each chunk that was encoded"

    def end():
        raise Ended

    with pytest.raises(Ended):
        next(stream(beat=end))


def test_seed_and_pool_change_the_order_and_batches_have_their_own_generators():
    a, b = ([summary(next(s)) for s in [stream(seed=seed)] for _ in range(6)] for seed in (0, 1))
    assert [x[1] for x in a] != [x[1] for x in b]
    assert len({x[3] for x in a}) == 6


def test_processes_hold_different_clips():
    parts = [stream(clips=32, broken=10**9, process=p, processes=2, buckets=BUCKETS[:1]) for p in range(2)]
    used = [{n for _ in range(8) for n in summary(next(s))[1]} for s in parts]
    assert used == [set(range(p, 32, 2)) for p in range(2)]
    with pytest.raises(BadInput, match="2 processes and 2 buckets.*data build"):
        stream(clips=32, process=0, processes=2, known=False)


def test_processes_step_with_the_same_buckets_and_generators():
    parts = [stream(clips=40, broken=10**9, batch=2, process=p, processes=2) for p in range(2)]
    items = [[next(s) for _ in range(60)] for s in parts]
    assert {bucket for bucket, _, _ in items[0]} == {0, 1}
    for (bucket, a, rng), (other, b, gen) in zip(*items, strict=True):
        assert bucket == other and not set(a.ids[:, 0]) & set(b.ids[:, 0])
        assert rng.integers(1 << 30) == gen.integers(1 << 30), "what shapes depend on is drawn alike"
    state = json.loads(json.dumps(parts[0].state()))
    assert state == parts[1].state()
    with pytest.raises(BadInput, match="to 2 processes, there are 1.*data build"):
        stream(clips=40).restore(state)
    with pytest.raises(BadInput, match="other data"):
        stream(clips=40).restore({"used": {}})


def test_processes_step_alike_though_one_could_not_read_all():
    """Clips that only one of them lost: as many batches of each bucket in the same order all the same."""
    parts = [stream(clips=40, broken=broken, batch=2, process=p, processes=2) for p, broken in enumerate((7, 10**9))]
    items = [[next(s) for _ in range(120)] for s in parts]
    assert [bucket for bucket, _, _ in items[0]] == [bucket for bucket, _, _ in items[1]]
    assert parts[0].state() == parts[1].state() and parts[0].pool > 0
    assert len({int(n) for _, clips, _ in items[0][:20] for n in clips.ids[:, 0]}) < 20, "some were lost"


def test_pictures_are_frames_that_a_short_crop_has():
    numbers = draw_pictures(np.random.default_rng(0), 500, 2, 33)
    assert numbers.min() >= 1
    assert numbers[:, 0].max() == 16
    assert numbers[:, 1].max() == 32
    assert 0.25 < (numbers[:, 1] == 32).mean() < 0.45  # the last frame, which is often what is given
    assert draw_pictures(np.random.default_rng(0), 3, 2, 1).shape == (3, 0)


def test_bad_settings_and_bad_data_are_named():
    with pytest.raises(BadInput, match="pool.clips=4"):
        stream(clips=4, batch=16)
    with pytest.raises(BadInput, match="processes"):
        stream(clips=25, processes=2)
    unreadable = stream()
    unreadable.reader.load = lambda draw: None
    with pytest.raises(BadInput, match="none of 24 clips"):
        next(unreadable)
    broken = stream()
    broken.encode = lambda *a: (encode(*a)[0] * np.nan, encode(*a)[1])
    with pytest.raises(BadInput, match="NaN"):
        next(broken)
