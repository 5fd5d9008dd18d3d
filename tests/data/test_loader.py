"""The loader: any place in the data is found again, every clip is used, and training never sees what is held out."""

import json

import jax
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.buckets import Bucket, deal, nearest
from dit_video.data.loader import Loader, Sample, Toyworld
from dit_video.data.toyworld.captions import ONE, TWO
from dit_video.data.toyworld.splits import is_heldout
from tests.data.toyworld.templates import speaks_in

BUCKETS = (Bucket(5, 32, 32, 0.6), Bucket(9, 32, 16, 0.4))


class Counting:
    """A reader whose clip is its own number; every `broken`th cannot be read."""

    def __init__(self, buckets=BUCKETS, broken=7, known=True):
        self.buckets, self.broken, self.known = buckets, broken, known

    def bucket(self, draw):
        return draw % len(self.buckets) if self.known else None

    def load(self, draw):
        bucket = draw % len(self.buckets)
        return (
            None
            if self.broken and draw % self.broken == 3
            else Sample(draw, bucket, f"clip {draw}", {"x": np.full(2, draw)})
        )


def take(loader, n):
    return [next(loader) for _ in range(n)]


def test_batches_are_of_one_bucket_and_use_every_clip_once():
    batches = take(Loader(Counting(), 4), 12)
    assert all(d % 2 == b.bucket for b in batches for d in b.draws)
    for b in batches:
        np.testing.assert_array_equal(b.arrays["x"], np.repeat(np.array(b.draws)[:, None], 2, 1))
        assert b.captions == tuple(f"clip {d}" for d in b.draws)
    used = sorted(d for b in batches for d in b.draws)
    readable = [d for d in range(max(used) + 1) if d % 7 != 3]
    assert len(used) == len(set(used))
    assert len(set(readable) - set(used)) < 2 * 4  # those that still wait for their bucket to fill


@pytest.mark.parametrize("after", [1, 2, 5])
def test_state_is_json_and_goes_on_with_the_same_batches(after):
    straight = take(Loader(Counting(), 4), after + 4)
    first = Loader(Counting(), 4, threads=1)
    take(first, after)
    state = json.loads(json.dumps(first.state()))
    second = Loader(Counting(), 4, threads=5)
    second.restore(state)
    assert [b.draws for b in take(second, 4)] == [b.draws for b in straight[after:]]


def test_processes_share_the_clips():
    loaders = [Loader(Counting(BUCKETS[:1]), 2, process=p, processes=2) for p in range(2)]
    draws = [{d for b in take(loader, 6) for d in b.draws} for loader in loaders]
    assert not draws[0] & draws[1]
    assert {d % 2 for d in draws[0]} == {0}
    assert {d % 2 for d in draws[1]} == {1}
    with pytest.raises(BadInput, match="2 processes and 2 buckets.*data build"):
        Loader(Counting(known=False), 2, process=0, processes=2)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_step_with_the_same_buckets(processes):
    loaders = [Loader(Counting(broken=None), 2, process=p, processes=processes) for p in range(processes)]
    steps = [take(loader, 90) for loader in loaders]
    for batches in zip(*steps, strict=True):
        assert len({b.bucket for b in batches}) == 1
    draws = [[d for b in batches for d in b.draws] for batches in steps]
    used = sorted(d for each in draws for d in each)
    assert len(set(used)) == len(used), "no clip twice"
    assert len(used) >= 0.98 * max(used)
    first, second = json.loads(json.dumps(loaders[0].state())), loaders[1].state()
    assert first == second, "one state is stored, and goes for all"
    again = Loader(Counting(broken=None), 2, process=1, processes=processes)
    again.restore(first)
    assert [b.draws for b in take(again, 5)] == [b.draws for b in take(loaders[1], 5)]
    with pytest.raises(BadInput, match=f"to {processes} processes, there are 1"):
        Loader(Counting(), 2).restore(first)


def test_a_toyworld_of_several_buckets_goes_to_several_processes():
    loaders = [Loader(Toyworld().open(BUCKETS), 2, process=p, processes=2) for p in range(2)]
    assert loaders[0].reader.load(77).bucket == loaders[0].reader.bucket(77)
    batches = list(zip(*(take(loader, 6) for loader in loaders), strict=True))
    assert all(a.bucket == b.bucket and not set(a.draws) & set(b.draws) for a, b in batches)


def test_a_toyworld_clip_is_a_function_of_seed_and_draw():
    one, two = Toyworld(seed=3).open(BUCKETS), Toyworld(seed=3).open(BUCKETS)
    a, b = one.load(1234), two.load(1234)
    assert (a.bucket, a.caption) == (b.bucket, b.caption)
    jax.tree.map(np.testing.assert_array_equal, a.arrays, b.arrays)
    assert Toyworld(seed=4).open(BUCKETS).load(1234).caption != a.caption or one.load(1235).caption != a.caption


def test_training_never_sees_what_is_held_out():
    source = Toyworld(plain=0.3, two=0.5)
    train, held = source.open(BUCKETS), source.open(BUCKETS, held_out=True)
    assert not any(is_heldout(train.scene(d, BUCKETS[0])[0]) for d in range(300))
    assert all(is_heldout(held.scene(d, BUCKETS[0])[0]) for d in range(50))


def test_training_never_speaks_in_templates_that_are_held_out():
    source, heldout = Toyworld(plain=0.3, two=0.5), (*ONE["heldout"], *TWO["heldout"])
    train, held = Loader(source.open(BUCKETS), 20), source.open(BUCKETS, held_out=True)
    assert [text for batch in take(train, 15) for text in batch.captions if speaks_in(text, heldout)] == []
    assert all(speaks_in(held.load(d).caption, heldout) for d in range(50))


def test_buckets_get_their_shares_and_frames_their_size():
    reader = Toyworld().open(BUCKETS)
    which = [reader.load(d).bucket for d in range(160)]
    assert abs(which.count(0) / 160 - 0.6) < 0.05
    clips = next(Loader(reader, 3))
    b = BUCKETS[clips.bucket]
    video = reader.frames(clips.arrays, clips.bucket)
    assert video.shape == (3, b.frames, b.height, b.width, 3)
    assert float(video.min()) >= -1
    assert float(video.max()) <= 1


def test_deal_and_nearest():
    assert deal((Bucket(share=0.5), Bucket(share=0.25), Bucket(share=0.25)), 8).count(0) == 4
    assert len(deal((Bucket(share=1), Bucket(share=1), Bucket(share=1)), 16)) == 16
    with pytest.raises(BadInput, match="shares"):
        deal((Bucket(share=-1), Bucket()), 4)
    buckets = (Bucket(17, 64, 64), Bucket(33, 64, 64), Bucket(17, 80, 48), Bucket(1, 64, 64))
    assert nearest(buckets, 100, 480, 480) == 1  # the longest that it fills
    assert nearest(buckets, 20, 480, 480) == 0
    assert nearest(buckets, 20, 1920, 1080) == 2
    assert nearest(buckets, 3, 100, 100) == 3
    assert nearest(buckets[:1], 5, 64, 64) is None
