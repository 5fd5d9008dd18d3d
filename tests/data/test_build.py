"""A build: every clip once, the same bytes however often it was interrupted, and files that do not decode named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.buckets import Bucket
from dit_video.data.build import Builder, Options, folder, toyworld
from dit_video.data.folder import Folder
from dit_video.data.loader import Toyworld
from dit_video.data.scenes import Cutting
from dit_video.data.shards import Posterior, open_shard, unpack
from dit_video.data.store import Store
from dit_video.data.video import write_video

BUCKETS = (Bucket(9, 32, 32), Bucket(5, 32, 48), Bucket(1, 32, 32))
VAE = {"name": "fake", "digest": "0123456789ab", "stride": 4, "factor": 8, "z": 2}
OPTIONS = Options(Cutting(scene=0), pictures=2, chunk=3, items=4)


def means(frames):
    """Bytes (..., T, H, W, 3) to "latents" that tell what they are of: means of 8 x 8 pixels of every fourth frame."""
    z = frames[..., ::4, :, :, :2].astype(np.float32)
    *lead, h, w, c = z.shape
    return z.reshape(*lead, h // 8, 8, w // 8, 8, c).mean((-4, -2)) / 255


class Fake:
    """An encoder that counts its calls and may break down."""

    def __init__(self, breaks_at=10**9):
        self.calls, self.breaks_at = 0, breaks_at

    def __call__(self, arrays, bucket, numbers):
        self.calls += 1
        if self.calls > self.breaks_at:
            raise KeyboardInterrupt
        frames = arrays["frames"] if isinstance(arrays, dict) else self.stand_in(arrays, bucket)
        assert len(frames) == OPTIONS.chunk, "one size of chunk for one program"
        z, p = means(frames), means(np.take_along_axis(frames, numbers[:, :, None, None, None], 1)[:, :, None])[:, :, 0]
        return Posterior(z, np.full_like(z, 0.01)), Posterior(p, np.full_like(p, 0.02))

    def stand_in(self, scenes, bucket):
        """A scene as a grey of its own: no need to render it here."""
        b, grey = BUCKETS[bucket], scenes.bodies.rgb.sum((1, 2)) * 10
        return np.broadcast_to(grey[:, None, None, None, None], (len(grey), b.frames, b.height, b.width, 3))


@pytest.fixture
def films(tmp_path):
    """Seven videos, a picture, and what cannot be read; captions beside them."""
    root = tmp_path / "films"
    root.mkdir()
    for i in range(7):
        levels = np.arange(27 if i == 3 else 9) * 5 + 10 * i + 10
        write_video(
            root / f"{i}.mp4", np.stack([np.full((32, 48 if i == 5 else 32, 3), x % 250, np.uint8) for x in levels]), 8
        )
        (root / f"{i}.txt").write_text(f"film {i}")
    write_video(root / "still.png", np.full((1, 40, 40, 3), 77, np.uint8), 1)
    (root / "still.txt").write_text("a still")
    (root / "zero.mp4").write_bytes(b"")
    (root / "noise.mp4").write_bytes(b"this is no film" * 50)
    for name in ("zero", "noise"):
        (root / f"{name}.txt").write_text("unreadable")
    return root


def builder(out, source, encode=None, options=OPTIONS, workers=0, held_out=0.0, **vae):
    material = folder(Folder(str(source), held_out=held_out), BUCKETS, options.cutting, workers)
    return Builder(Store(out), material, BUCKETS, encode or Fake(), VAE | vae, options)


def content(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def records(out, manifest, part="train"):
    found = []
    for shard in manifest["parts"][part]:
        reader = open_shard(Path(out) / shard["file"])
        found += [unpack(reader.read([i])[0]) for i in range(reader.num_records())]
        assert [sum(r.bucket == b for r in found[-reader.num_records() :]) for b in range(3)] == shard["counts"]
    return found


def test_every_clip_once_with_its_latents_and_its_caption(films, tmp_path):
    manifest = builder(tmp_path / "out", films).run()
    found = records(tmp_path / "out", manifest)
    assert manifest["clips"] == {"train": 10, "held_out": 0} and len(found) == 10
    assert sorted(r.caption for r in found) == sorted(["a still", "film 3", "film 3", *(f"film {i}" for i in range(7))])
    third = sorted((r for r in found if r.caption == "film 3"), key=lambda r: r.about["start"])
    assert [r.about["start"] for r in third] == [0.0, 1.125, 2.25]
    for n, r in enumerate(third):
        levels = 40 + 5 * (9 * n + np.arange(9))
        np.testing.assert_allclose(r.clip.mean[:, 0, 0, 0], levels[::4] / 255, atol=0.02)
        np.testing.assert_allclose(r.pictures.mean[:, 0, 0, 0], levels[r.picture_frames] / 255, atol=0.02)
        np.testing.assert_allclose(r.clip.std, 0.01, rtol=1e-3)
        np.testing.assert_allclose(r.pictures.std, 0.02, rtol=1e-3)
        assert (r.picture_frames >= 1).all()
    (still,) = (r for r in found if r.caption == "a still")
    assert (still.bucket, still.clip.mean.shape, still.pictures.mean.shape) == (2, (1, 4, 4, 2), (0, 4, 4, 2))
    assert next(r.bucket for r in found if r.caption == "film 5") == 1
    assert set(manifest["broken"]) == {"zero.mp4", "noise.mp4"}
    assert all("decoded" in reason for reason in manifest["broken"].values())
    z = np.concatenate([r.clip.mean.reshape(-1, 2) for r in found]).astype(np.float64)
    np.testing.assert_allclose(manifest["latents"]["mean"], z.mean(0), rtol=1e-3)
    np.testing.assert_allclose(manifest["latents"]["std"], z.std(0), rtol=1e-3)


@pytest.mark.parametrize("breaks_at", [1, 2, 4])
def test_an_interrupted_build_goes_on_to_the_same_bytes(films, tmp_path, breaks_at):
    builder(tmp_path / "straight", films).run()
    with pytest.raises(KeyboardInterrupt):
        builder(tmp_path / "broken", films, Fake(breaks_at)).run()
    assert not (tmp_path / "broken" / "manifest.json").exists()
    rest = Fake()
    builder(tmp_path / "broken", films, rest).run()
    whole = Fake()
    builder(tmp_path / "again", films, whole).run()
    assert rest.calls <= whole.calls
    assert content(tmp_path / "broken") == content(tmp_path / "straight") == content(tmp_path / "again")
    nothing = Fake(0)
    builder(tmp_path / "broken", films, nothing).run()
    assert nothing.calls == 0, "a finished build encodes nothing"


def test_damaged_shards_are_made_anew(films, tmp_path):
    builder(tmp_path / "out", films).run()
    before = content(tmp_path / "out")
    shard = tmp_path / "out" / "train-00001.arrayrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (tmp_path / "out" / "train-00000.arrayrecord").unlink()
    (tmp_path / "out" / "train-00002.json").write_bytes(b"{")
    builder(tmp_path / "out", films).run()
    assert content(tmp_path / "out") == before


def test_new_files_are_added_and_what_is_there_stays(films, tmp_path):
    first = builder(tmp_path / "out", films).run()
    kept = {s["file"]: s["sha256"] for s in first["parts"]["train"]}
    shutil.copy(films / "0.mp4", films / "new.mp4")
    (films / "new.txt").write_text("a new one")
    second = builder(tmp_path / "out", films).run()
    assert kept.items() <= {s["file"]: s["sha256"] for s in second["parts"]["train"]}.items()
    assert [r.caption for r in records(tmp_path / "out", second)][-1] == "a new one"
    assert second["clips"]["train"] == first["clips"]["train"] + 1


def test_files_that_were_broken_are_tried_again_when_that_is_asked_for(films, tmp_path, caplog):
    first = builder(tmp_path / "out", films).run()
    assert "2 of the files are left out" in caplog.text and "are read with --retry_broken" in caplog.text
    kept = {s["file"] for s in first["parts"]["train"]}
    shutil.copy(films / "0.mp4", films / "zero.mp4")
    assert builder(tmp_path / "out", films, Fake(0)).run()["broken"] == first["broken"], "not by itself"
    second = builder(tmp_path / "out", films).run(retry_broken=True)
    assert list(second["broken"]) == ["noise.mp4"] and second["clips"]["train"] == first["clips"]["train"] + 1
    assert [r.caption for r in records(tmp_path / "out", second)].count("unreadable") == 1
    assert kept <= {s["file"] for s in second["parts"]["train"]}
    builder(tmp_path / "fresh", films).run()
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


@pytest.mark.parametrize("change", ["vae", "options", "buckets"])
def test_other_options_are_refused(films, tmp_path, change):
    builder(tmp_path / "out", films).run()
    other = builder(
        tmp_path / "out", films, options=replace(OPTIONS, pictures=1) if change == "options" else OPTIONS,
        **({"digest": "ba9876543210"} if change == "vae" else {}),
    )  # fmt: skip
    if change == "buckets":
        other.head["buckets"] = other.head["buckets"][:1]
    with pytest.raises(BadInput, match=f"another {change}"):
        other.run()
    builder(tmp_path / "out", films, name="another name of the same weights").run()


def test_held_out_files_are_in_a_part_of_their_own(films, tmp_path):
    manifest = builder(tmp_path / "out", films, held_out=0.4).run()
    sides = [{r.caption for r in records(tmp_path / "out", manifest, p)} for p in ("train", "held_out")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert manifest["clips"]["train"] + manifest["clips"]["held_out"] == 10


def test_an_object_store_gets_the_same(films, tmp_path):
    here = builder(tmp_path / "out", films).run()
    source, out = Store(f"memory://{tmp_path.name}/films"), f"memory://{tmp_path.name}/out"
    for file in films.iterdir():
        source.write(file.name, file.read_bytes())
    there = builder(out, source).run()
    assert there["parts"] == here["parts"]
    assert Store(out).read("train-00000.arrayrecord") == (tmp_path / "out" / "train-00000.arrayrecord").read_bytes()
    again = Fake(0)
    assert builder(out, source, again).run()["parts"] == here["parts"]


def test_worker_processes_make_the_same(films, tmp_path):
    one = builder(tmp_path / "one", films).run()
    many = builder(tmp_path / "many", films, workers=2).run()
    assert many["parts"] == one["parts"] and many["broken"] == one["broken"]
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_clips_whose_latents_are_not_finite_are_named(films, tmp_path):
    class Infinite(Fake):
        def __call__(self, arrays, bucket, numbers):
            clips, pictures = super().__call__(arrays, bucket, numbers)
            clips.mean[clips.mean[:, 0, 0, 0, 0] > 65 / 255] = np.inf  # film 6 begins at 70
            return clips, pictures

    manifest = builder(tmp_path / "out", films, Infinite()).run()
    assert {"6.mp4", "still.png"} <= set(manifest["broken"]) and "NaN" in manifest["broken"]["6.mp4"]
    assert not {"film 6", "a still"} & {r.caption for r in records(tmp_path / "out", manifest)}
    assert np.isfinite(manifest["latents"]["mean"]).all()


def test_filters_are_counted(films, tmp_path):
    options = replace(OPTIONS, cutting=Cutting(scene=0, min_seconds=2.0))
    manifest = builder(tmp_path / "out", films, options=options).run()
    assert manifest["dropped"] == {"too short": 6}
    assert manifest["clips"]["train"] == 4
    nothing = replace(OPTIONS, cutting=Cutting(min_side=999))
    with pytest.raises(BadInput, match="no clip could be made.*too small"):
        builder(tmp_path / "none", films, options=nothing).run()


def test_toyworld_grows_with_its_count(tmp_path):
    def build(out, count):
        material = toyworld(Toyworld(seed=3), BUCKETS[:2], count, 0.25)
        return Builder(Store(tmp_path / out), material, BUCKETS[:2], Fake(), VAE, OPTIONS).run()

    manifest = build("a", 8)
    assert manifest["clips"] == {"train": 8, "held_out": 2}
    reader = Toyworld(seed=3).open(BUCKETS[:2])
    about = json.loads((tmp_path / "a" / "train-00001.json").read_text())
    assert sorted(r["draw"] for r in about["records"]) == [4, 5, 6, 7]
    for r in about["records"]:
        sample = reader.load(r["draw"])
        assert (r["caption"], r["bucket"]) == (sample.caption, sample.bucket)
    assert build("a", 12)["clips"] == {"train": 12, "held_out": 3}
    assert build("b", 12)["clips"] == {"train": 12, "held_out": 3}
    a, b = content(tmp_path / "a"), content(tmp_path / "b")
    assert all(a[f"train-{i:05d}.arrayrecord"] == b[f"train-{i:05d}.arrayrecord"] for i in range(3))


@pytest.mark.parametrize("wrong", [{"pictures": -1}, {"chunk": 0}, {"dtype": "int8"}])
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        replace(OPTIONS, **wrong).check()
