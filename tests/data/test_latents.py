"""Encoded clips as a source: a step is a function of shards, seed and step on any number of hosts; damage is named."""

import json
import logging
import os

import numpy as np
import pytest

from dit_video.core.config import from_dict, to_dict
from dit_video.core.errors import BadInput, MissingError
from dit_video.core.files import sha256
from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder
from dit_video.data.latents import EncodedStream, Latents, source_at
from dit_video.data.loader import NoHeldOut, Toyworld
from dit_video.data.shards import FORMAT, Posterior, Record, open_shard, pack, write_json, write_shard
from dit_video.data.store import Store

BUCKETS = (Bucket(9, 32, 32), Bucket(1, 32, 32))
COUNTS = ((7, 2), (5, 3))  # clips of each bucket in each shard
STD = 0.25


def write(store, counts=COUNTS, part="train"):
    """Shards whose clip tells by its mean in which bucket and which place it is; the manifest's entries."""
    entries, place = [], 0
    for number, of_bucket in enumerate(counts):
        packed, captions = [], []
        for bucket, n in enumerate(of_bucket):
            for _ in range(n):
                mean = np.full((3 if bucket == 0 else 1, 4, 4, 2), 100 * bucket + place, np.float32)
                frames = np.array([2, 8] if bucket == 0 else [], np.int32)
                alone = np.stack([mean[0] + 0.5] * 2) if bucket == 0 else mean[:0]
                pictures = Posterior(alone, np.full_like(alone, STD))
                captions.append(f"{part} {place}")
                packed.append(
                    pack(
                        Record(bucket, captions[-1], Posterior(mean, np.full_like(mean, STD)), pictures, frames, {}),
                        "float32",
                    )
                )
                place += 1
        name = f"{part}-{number:05d}"
        with store.writing(f"{name}.arrayrecord") as file:
            write_shard(file, packed)
            entry = {"file": f"{name}.arrayrecord", "sha256": sha256(file), "bytes": file.stat().st_size}
        write_json(store, f"{name}.json", {"records": [{"caption": c} for c in captions]})
        entries.append(entry | {"counts": list(of_bucket)})
    return entries


@pytest.fixture
def built(tmp_path):
    store = Store(tmp_path / "latents")
    store.make()
    manifest = {
        "format": FORMAT,
        "vae": {"name": "board", "digest": "0123456789ab"},
        "buckets": [{"frames": b.frames, "height": b.height, "width": b.width} for b in BUCKETS],
        "parts": {"train": write(store), "held_out": write(store, ((3, 0),), "held_out")},
    }
    write_json(store, "manifest.json", manifest)
    return tmp_path / "latents"


def stream(path, batch=4, seed=0, process=0, processes=1, held_out=False, threads=2, **source):
    reader = Latents(str(path), **source).open(BUCKETS, held_out)

    def tokenize(captions):
        return np.array([[int(c.split()[1])] for c in captions], np.int32), np.ones(len(captions), np.int32)

    return EncodedStream(reader, lambda z: z / 2, tokenize, batch, seed, process, processes, threads)


def take(s, n):
    """Batches as (bucket, clips, a number from the batch's generator)."""
    return [(bucket, clips, int(rng.integers(1 << 30))) for bucket, clips, rng in (next(s) for _ in range(n))]


def same(a, b):
    assert [(bucket, number) for bucket, _, number in a] == [(bucket, number) for bucket, _, number in b]
    for (_, x, _), (_, y, _) in zip(a, b, strict=True):
        for u, v in zip(x, y, strict=True):
            np.testing.assert_array_equal(u, v)


def test_no_held_out_clips_are_no_fault_of_those_to_train_on(built):
    manifest = json.loads((built / "manifest.json").read_text())
    only_stills = manifest["parts"] | {"held_out": [manifest["parts"]["held_out"][0] | {"counts": [0, 3]}]}
    for parts, why in (
        (manifest["parts"] | {"held_out": []}, "has no held-out clips"),
        (only_stills, "has held-out clips of 1x32x32 alone"),
    ):
        (built / "manifest.json").write_text(json.dumps(manifest | {"parts": parts}))
        assert Latents(str(built)).open(BUCKETS[:1]).total == 12
        with pytest.raises(NoHeldOut, match=why):
            Latents(str(built)).open(BUCKETS[:1], held_out=True)
    with pytest.raises(BadInput, match="holds clips of 9x32x32, 1x32x32, and the experiment's buckets are none"):
        Latents(str(built)).open((Bucket(5, 32, 32),))


def test_the_rate_is_that_of_the_clips_that_were_encoded(built):
    def rate(source):
        manifest = json.loads((built / "manifest.json").read_text())
        (built / "manifest.json").write_text(json.dumps(manifest | {"source": source}))
        return Latents(str(built)).fps

    mine, toyworld = to_dict(Folder("clips", fps=16.0)), to_dict(Toyworld())
    assert (rate(mine), rate(toyworld)) == (16.0, 8.0)
    assert (rate({"merged": [mine, mine]}), rate({"merged": [mine, toyworld]})) == (16.0, None)
    assert Latents(str(built / "nowhere")).fps is None


def test_what_is_read_is_what_was_written(built):
    bucket, clips, _ = next(stream(built, noise=0.0))
    assert bucket == 0 and clips.latents.shape == (4, 3, 4, 4, 2) and clips.pictures.shape == (4, 2, 4, 4, 2)
    number = clips.ids[:, 0]
    np.testing.assert_allclose(clips.latents[:, 0, 0, 0, 0] * 2, number)  # halved: normalised
    np.testing.assert_allclose(clips.pictures[:, :, 0, 0, 0] * 2, number[:, None] + [0.5, 0.5])
    np.testing.assert_array_equal(clips.picture_frames, [[2, 8]] * 4)


def test_every_clip_comes_equally_often_and_buckets_in_their_proportion(built):
    items = take(stream(built), 17 * 4)
    used = {0: [], 1: []}
    for bucket, clips, _ in items:
        used[bucket] += clips.ids[:, 0].tolist()
    for bucket, places in ((0, [*range(7), *range(9, 14)]), (1, [7, 8, 14, 15, 16])):
        counts = [used[bucket].count(p) for p in places]
        assert sum(counts) == len(used[bucket]) and max(counts) - min(counts) <= 1
        assert len(used[bucket]) == pytest.approx(4 * 17 * 4 * len(places) / 17, abs=4)
    first, second = used[0][:12], used[0][12:24]
    assert sorted(first) == sorted(second) and first != second, "a new order every epoch"


def test_noise_is_new_every_time_and_of_the_posteriors_size(built):
    seen = {}
    for bucket, clips, _ in take(stream(built), 60):
        for z, number in zip(clips.latents, clips.ids[:, 0], strict=True):
            seen.setdefault((bucket, int(number)), []).append(2 * z - 100 * bucket - number)
    noise = np.concatenate([np.ravel(z) for zs in seen.values() for z in zs])
    assert abs(noise.mean()) < 0.01 and noise.std() == pytest.approx(STD, rel=0.03)
    for zs in seen.values():
        assert len({z.tobytes() for z in zs}) == len(zs)


@pytest.mark.parametrize("processes", [2, 4])
def test_hosts_take_their_rows_of_the_same_batch(built, processes):
    whole = take(stream(built, batch=4), 12)
    parts = [take(stream(built, 4 // processes, process=p, processes=processes), 12) for p in range(processes)]
    for step, hosts in zip(whole, zip(*parts, strict=True), strict=True):
        assert {(bucket, number) for bucket, _, number in hosts} == {(step[0], step[2])}
        fields = zip(*(h[1] for h in hosts), strict=True)
        joined = [None if x[0] is None else np.concatenate(x) for x in fields]
        same([(step[0], joined, step[2])], [step])


@pytest.mark.parametrize("after", [1, 5, 9])
def test_it_goes_on_with_the_same_batches_on_other_hosts_and_threads(built, after):
    straight = take(stream(built), 14)
    first = stream(built, threads=1)
    take(first, after)
    state = json.loads(json.dumps(first.state()))
    second = stream(built, threads=3)
    second.restore(state)
    same(take(second, 14 - after), straight[after:])
    half = stream(built, batch=2, process=1, processes=2)
    half.restore(state)
    np.testing.assert_array_equal(next(half)[1].latents, straight[after][1].latents[2:])


def test_seeds_change_the_order_and_the_noise(built):
    assert len({str(next(stream(built, seed=s))[1].ids) for s in range(4)}) > 1
    one, two = (Latents(str(built), seed=s).open(BUCKETS).load(3) for s in (0, 1))
    assert one.caption == two.caption
    assert not np.array_equal(one.arrays["latents"], two.arrays["latents"])


def test_the_state_of_other_data_is_refused(built):
    for state in ({"pool": 3, "batch": 1}, {"used": {"7": 4}}):
        with pytest.raises(BadInput, match="other data"):
            stream(built).restore(state)


def test_another_vae_is_refused_saying_what_to_do(built):
    reader = Latents(str(built)).open(BUCKETS)
    reader.check_vae("0123456789ab", "runs/vae")
    with pytest.raises(BadInput, match=r"0123456789ab \(board\).*ffff \(runs/vae\).*--vae board.*--model runs/vae"):
        reader.check_vae("ffff", "runs/vae")


def test_clips_of_other_buckets_are_left_out_and_said(built, caplog):
    with caplog.at_level(logging.WARNING, "dit_video"):
        reader = Latents(str(built)).open((Bucket(17, 64, 64), Bucket(1, 32, 32)))
    assert "12 clips are of no bucket" in caplog.text
    assert reader.total == 5 and reader.load(0).bucket == 1
    with pytest.raises(BadInput, match="9x32x32, 1x32x32"):
        Latents(str(built)).open((Bucket(17, 64, 64),))


def test_held_out_clips_and_captions(built):
    held = stream(built, held_out=True, batch=3)
    assert sorted(next(held)[1].ids[:, 0].tolist()) == [0, 1, 2]
    texts = Latents(str(built)).open(BUCKETS).captions(40)
    assert len(texts) == 40 and {"held_out 1", "train 16"} <= set(texts)


def unreadable(shard):
    reader, found = open_shard(shard), set()
    for i in range(reader.num_records()):
        try:
            reader.read([i])
        except RuntimeError:
            found.add(i)
    return found


def damage(shard, count):
    """Flips bytes until so many records of the shard's first bucket cannot be read, and no other; which they are."""
    for place in range(100, shard.stat().st_size, 61):
        before = shard.read_bytes()
        shard.write_bytes(before[:place] + bytes([before[place] ^ 0x55]) + before[place + 1 :])
        found = unreadable(shard)
        if len(found) > count or not found <= set(range(COUNTS[0][0])):
            shard.write_bytes(before)
        elif len(found) == count:
            return found
    raise AssertionError("no such place")


def test_damaged_clips_are_named_and_others_take_their_place(built, caplog):
    shard = built / "train-00000.arrayrecord"
    (lost,) = damage(shard, 1)
    with caplog.at_level(logging.WARNING, "dit_video"):
        items = take(stream(built), 17)
    assert caplog.text.count(f"train-00000.arrayrecord, record {lost}: ") == 1, "named once"
    assert all(len(clips.ids) == 4 for _, clips, _ in items)
    assert not any(bucket == 0 and lost in clips.ids for bucket, clips, _ in items)
    damage(shard, 2)
    with pytest.raises(BadInput, match="2 damaged clips"):
        take(stream(built), 17)


def test_a_bucket_whose_clips_are_all_damaged_is_an_end(built, monkeypatch):
    found = stream(built)
    monkeypatch.setattr(found.reader, "load", lambda draw: None)
    with pytest.raises(BadInput, match="every clip of bucket 0 of .* is damaged"):
        next(found)


@pytest.mark.parametrize("how", ["short", "gone"])
def test_a_missing_or_short_shard_is_found_before_the_first_step(built, how):
    shard = built / "train-00001.arrayrecord"
    if how == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(BadInput, match="is missing|has 100 bytes"):
        Latents(str(built)).open(BUCKETS)


def test_shards_of_an_object_store_are_copied_once_and_checked(built, tmp_path, monkeypatch):
    there = Store(f"memory://{tmp_path.name}/latents")
    for file in built.iterdir():
        there.write(file.name, file.read_bytes())
    cache = tmp_path / "cache"
    same(take(stream(str(there), cache=str(cache)), 8), take(stream(built), 8))
    assert len(list(cache.iterdir())) == 2
    for name in ("train-00000.arrayrecord", "train-00001.arrayrecord"):
        there.write(name, b"x" * there.size(name))
    same(take(stream(str(there), cache=str(cache)), 8), take(stream(built), 8))
    monkeypatch.setattr("dit_video.data.store.PAUSES", ())
    with pytest.raises(BadInput, match="SHA-256.* Run `dit-video data build` again"):
        next(stream(str(there), cache=str(tmp_path / "other")))
    assert not list((tmp_path / "other").iterdir())


def test_a_transfer_that_was_cut_off_is_made_again(built, tmp_path, monkeypatch, caplog):
    there = Store(f"memory://{tmp_path.name}/latents")
    for file in built.iterdir():
        there.write(file.name, file.read_bytes())
    whole, cut = there.fs.get_file, []

    def get(path, to):
        whole(path, to)
        if path not in cut:
            cut.append(path)
            os.truncate(to, 1000)

    monkeypatch.setattr(there.fs, "get_file", get)
    monkeypatch.setattr("dit_video.data.store.PAUSES", (0.0,))
    same(take(stream(str(there), cache=str(tmp_path / "cache")), 8), take(stream(built), 8))
    assert len(cut) == 2 and caplog.text.count("Trying again") == 2


def test_latents_are_no_pixels_and_nothing_is_not_latents(built, tmp_path):
    with pytest.raises(BadInput, match="train a VAE on toyworld"):
        Latents(str(built)).open(BUCKETS).frames({}, 0)
    with pytest.raises(MissingError, match="data build"):
        Latents(str(tmp_path)).open(BUCKETS)
    assert from_dict(to_dict(Latents("a", noise=0.5))) == Latents("a", noise=0.5)
    assert source_at(str(built)) == Latents(str(built))
    assert source_at(str(tmp_path)) == Folder(str(tmp_path))
