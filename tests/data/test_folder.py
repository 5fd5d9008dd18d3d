"""A folder of clips: captions, timestamps, buckets, and files that do not decode."""

import json
import logging

import numpy as np
import pytest

from dit_video.core.errors import BadInput, MissingError
from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder
from dit_video.data.loader import Loader
from dit_video.data.video import write_video

BUCKETS = (Bucket(9, 32, 32), Bucket(9, 48, 32), Bucket(1, 32, 32))


def ramp(frames, height, width):
    """Frame k is a plain grey that tells k."""
    return np.stack([np.full((height, width, 3), 20 + 6 * k, np.uint8) for k in range(frames)])


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(3):
        write_video(folder / f"wide{i}.mp4", ramp(33, 36, 64), fps=24)
        (folder / f"wide{i}.txt").write_text(f" a grey clip,\n number {i} ")
    write_video(folder / "tall.mp4", ramp(17, 64, 40), fps=16)
    (folder / "tall.txt").write_text("a tall one")
    write_video(folder / "still.png", ramp(1, 40, 40), fps=1)
    (folder / "still.txt").write_text("a picture")
    (folder / "broken.mp4").write_bytes(b"this is no video")
    (folder / "broken.txt").write_text("never seen")
    write_video(folder / "cut.mp4", ramp(33, 36, 64), fps=24)
    (folder / "cut.mp4").write_bytes((folder / "cut.mp4").read_bytes()[:900])
    (folder / "cut.txt").write_text("never seen either")
    return folder


def test_every_readable_file_comes_once_an_epoch_and_broken_ones_are_named(clips, caplog):
    reader = Folder(str(clips), held_out=0.0).open(BUCKETS)
    with caplog.at_level(logging.WARNING, "dit_video"):
        epochs = [[reader.load(e * 7 + i) for i in range(7)] for e in range(2)]
    seen = [sorted(s.caption for s in epoch if s) for epoch in epochs]
    wanted = sorted(["a picture", "a tall one", *(f"a grey clip, number {i}" for i in range(3))])
    assert seen == [wanted, wanted]
    assert [s and s.caption for s in epochs[0]] != [s and s.caption for s in epochs[1]]
    assert {p.name for p in reader.broken} == {"broken.mp4", "cut.mp4"}
    told = [r.getMessage() for r in caplog.records if "skipping" in r.getMessage()]
    assert len(told) == 2, "each broken file is named once"
    assert any("broken.mp4" in line for line in told)


def test_sizes_fall_into_the_nearest_bucket_and_time_is_kept(clips):
    reader = Folder(str(clips), held_out=0.0).open(BUCKETS)
    samples = {s.caption: s for s in map(reader.load, range(7)) if s}
    tall, still = samples["a tall one"], samples["a picture"]
    assert (tall.bucket, tall.arrays["frames"].shape) == (1, (9, 48, 32, 3))
    assert (still.bucket, still.arrays["frames"].shape) == (2, (1, 32, 32, 3))
    # 17 frames at 16 fps are 9 at 8 fps: every second one.
    levels = tall.arrays["frames"].mean((1, 2, 3))
    np.testing.assert_allclose(levels, 20 + 12 * np.arange(9), atol=2.5)
    # 33 frames at 24 fps hold 9 at 8 fps in many places: steps of three frames from a start between frames 0 and 8.
    levels = samples["a grey clip, number 1"].arrays["frames"].mean((1, 2, 3))
    np.testing.assert_allclose(np.diff(levels), 18, atol=3)
    starts = [Folder(str(clips), seed=s, held_out=0.0).open(BUCKETS) for s in range(4)]
    first = {
        round(float(s.arrays["frames"][0].mean())) for r in starts for s in map(r.load, range(7)) if s and s.bucket == 0
    }
    assert len(first) > 2, "stretches of a longer video start anywhere"
    pixels = reader.frames({"frames": np.array([[0, 255]], np.uint8)}, 0)
    np.testing.assert_allclose(pixels, [[-1, 1]], atol=1e-6)


@pytest.mark.parametrize("fps", [8, 24, 25, 30, 60])
def test_two_seconds_are_seventeen_frames(fps, tmp_path, caplog):
    """The last frame stands on the screen until the end; of 16 frames at 8 fps the 17th is a whole frame late."""
    write_video(tmp_path / "a.mp4", np.repeat(ramp(2, 32, 32), fps, 0), fps=fps)
    reader = Folder(str(tmp_path), held_out=0.0).open((Bucket(17, 32, 32), Bucket(1, 32, 32)))
    with caplog.at_level(logging.WARNING, "dit_video"):
        sizes = [reader.load(draw).arrays["frames"].shape[0] for draw in range(3)]
    assert sizes == ([1] * 3 if fps == 8 else [17] * 3)
    told = [r.getMessage() for r in caplog.records if "is shown as a picture" in r.getMessage()]
    assert len(told) == (fps == 8), "said once of a video, not at every draw"


def test_what_stands_on_the_screen_for_seconds(tmp_path, monkeypatch):
    """Frames at 0, 2, 4 and 6 s: from 3.5 s on the second is seen, then the third."""
    times = [0.0, 2.0, 4.0, 6.0]

    def slow(path, *, start=0.0):
        for k, time in enumerate(times):
            if time >= start:
                yield np.full((32, 32, 3), 50 * k, np.uint8), time, 0.5, {}

    class At:
        uniform = staticmethod(lambda low, high: 3.5)

    (tmp_path / "a.mp4").write_bytes(b"read by a stand-in")
    monkeypatch.setattr("dit_video.data.folder.iterate_video", slow)
    reader = Folder(str(tmp_path), held_out=0.0).open(BUCKETS)
    _, frames = reader._read(tmp_path / "a.mp4", At())
    assert frames[:, 0, 0, 0].tolist() == [50] * 4 + [100] * 5


def test_it_makes_batches(clips):
    loader = Loader(Folder(str(clips), held_out=0.0).open(BUCKETS), 2)
    batches = [next(loader) for _ in range(6)]
    assert {b.bucket for b in batches} == {0, 1, 2}
    assert all(b.arrays["frames"].shape[0] == 2 for b in batches)


def test_a_folder_of_which_nothing_can_be_used_is_an_error_and_no_endless_search(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"no video")
    with pytest.raises(BadInput, match="none of the 2 clips.*cannot be decoded"):
        next(Loader(Folder(str(tmp_path), held_out=0.0).open(BUCKETS), 1))


def test_held_out_files_stay_out(clips):
    source = Folder(str(clips), held_out=0.3)
    train, held = source.open(BUCKETS), source.open(BUCKETS, held_out=True)
    assert {c[0] for c in train.clips}.isdisjoint(c[0] for c in held.clips)
    assert (len(train.clips), len(held.clips)) == (5, 2)
    almost = Folder(str(clips), held_out=0.99)
    assert [len(almost.open(BUCKETS, held_out=held).clips) for held in (False, True)] == [1, 6]
    with pytest.raises(BadInput, match="0 to less than 1"):
        Folder(str(clips), held_out=1.0).open(BUCKETS)


def test_metadata_jsonl(tmp_path):
    write_video(tmp_path / "a.mp4", ramp(9, 32, 32), fps=8)
    rows = [{"file_name": "a.mp4", "text": "from the table"}, {"file_name": "gone.mp4", "text": "not there"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    reader = Folder(str(tmp_path), held_out=0.0).open(BUCKETS)
    captions = [s.caption for s in map(reader.load, range(4)) if s]
    assert captions == ["from the table"] * 2
    assert [p.name for p in reader.broken] == ["gone.mp4"]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4"}\n')
    with pytest.raises(BadInput, match="line 1"):
        Folder(str(tmp_path)).open(BUCKETS)
    (tmp_path / "metadata.jsonl").write_bytes(b'\n{"file_name": "a.mp4", "text": "caf\xe9"}\n')
    with pytest.raises(BadInput, match="line 2.*UnicodeDecodeError"):
        Folder(str(tmp_path)).open(BUCKETS)
    for row in ({"file_name": "a.mp4", "text": ["x"]}, {"file_name": None, "text": "x"}):
        (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
        with pytest.raises(BadInput, match="line 1.*words are wanted"):
            Folder(str(tmp_path)).open(BUCKETS)


def test_a_line_of_metadata_without_a_caption(tmp_path, caplog):
    write_video(tmp_path / "a.mp4", ramp(9, 32, 32), fps=8)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": null}\n')
    reader = Folder(str(tmp_path), held_out=0.0).open(BUCKETS)
    assert "1 of 1 clips of metadata.jsonl have no caption: a.mp4" in caplog.text
    assert reader.load(0).caption == ""


def test_a_folder_without_clips(tmp_path):
    with pytest.raises(MissingError, match="no such folder"):
        Folder(str(tmp_path / "nothing")).open(BUCKETS)
    with pytest.raises(MissingError, match="no clips"):
        Folder(str(tmp_path)).open(BUCKETS)
