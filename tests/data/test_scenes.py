"""Files to clips: scenes, rates, rotation, buckets, filters; real files, also the ones that lie."""

from fractions import Fraction

import av
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.buckets import Bucket
from dit_video.data.scenes import Cut, Cutting, Dropped, at_rate, cut_file, fit, scenes
from dit_video.data.still import read_picture
from dit_video.data.video import read_video, resample_indices, write_video

BUCKETS = (Bucket(9, 32, 32), Bucket(5, 32, 32), Bucket(9, 48, 32), Bucket(1, 32, 32))


def grey(levels, height=32, width=32):
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


def write_times(path, frames, milliseconds):
    """A file whose frames begin at these times: a variable rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for frame, time in zip(frames, milliseconds, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = int(time), Fraction(1, 1000)
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def turn(path, quarter_turns):
    """Writes a rotation into the display matrix of an MP4's track, as a phone does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(x.to_bytes(4, "big", signed=True) for x in matrix)
    path.write_bytes(data)


def clips(path, buckets=BUCKETS, **cutting):
    return list(cut_file(path, buckets, Cutting(**cutting)))


def levels(cut):
    return cut.frames.mean((1, 2, 3))


def test_at_rate_picks_what_resample_indices_picks(rng):
    for _ in range(50):
        times = np.round(np.cumsum(rng.uniform(0.001, 0.3, rng.integers(1, 40))) + rng.uniform(0, 2), 3)
        fps = float(rng.choice([5, 8, 16, 24, 30]))
        frames = [np.full((1, 1, 3), i, np.uint8) for i in range(len(times))]
        picked = [int(frame[0, 0, 0]) for frame, _ in at_rate(zip(frames, times, strict=True), fps)]
        assert picked == resample_indices(times, fps).tolist()


def test_variable_rate_keeps_its_speed(tmp_path):
    times = [0, 40, 80, 500, 540, 1000, 1010, 1020, 1400]
    shown = 20 + 20 * np.arange(9)
    path = write_times(tmp_path / "vfr.mp4", grey(shown), times)
    (cut,) = clips(path, scene=0)
    wanted = [shown[max(i for i, t in enumerate(times) if t <= 125 * k + 1)] for k in range(9)]
    assert cut.bucket == 0
    np.testing.assert_allclose(levels(cut), wanted, atol=3)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_rotation_is_followed(tmp_path, quarter_turns):
    lying = np.zeros((9, 32, 64, 3), np.uint8)
    lying[:, :16, :32] = 255  # white at the left of the top
    path = write_video(tmp_path / "phone.mp4", lying, 8)
    turn(path, quarter_turns)
    upright = np.rot90(lying[0], -quarter_turns)  # a display turns clockwise
    seen = read_video(path).frames[0]
    assert seen.shape == upright.shape
    assert np.abs(seen.astype(int) - upright).mean() < 8
    (cut,) = clips(path)
    assert cut.bucket == (0 if quarter_turns == 2 else 2), "the bucket is that of the upright size"


def test_a_pictures_exif_orientation_is_followed(tmp_path):
    from PIL import Image

    picture = Image.fromarray(np.dstack([np.tile(np.arange(0, 200, 4, np.uint8), (30, 1))] * 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (50, 30, 3)
    Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA").save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png") == 255).all(), "as a picture that is given to a model"
    (cut,) = clips(tmp_path / "turned.jpg")
    assert (cut.bucket, cut.frames.shape) == (3, (1, 32, 32, 3))
    assert clips(tmp_path / "turned.jpg", BUCKETS[:2]) == [Dropped("a still, and no bucket has one frame")]


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_a_still_in_a_file_that_could_move(tmp_path, suffix):
    from PIL import Image

    Image.fromarray(grey([90])[0]).save(tmp_path / f"a.{suffix}")
    (still,) = cut_file(tmp_path / f"a.{suffix}", (Bucket(1, 32, 32), Bucket(9, 32, 32)), Cutting())
    assert isinstance(still, Cut) and (still.bucket, still.frames.shape) == (0, (1, 32, 32, 3))


def moving(count, background, start=0, step=1):
    """A white square that moves over a background."""
    frames = np.full((count, 64, 64, 3), background, np.uint8)
    for k in range(count):
        x = (start + step * k) % 44
        frames[k, 20:40, x : x + 20] = 255
    return frames


def test_scenes_are_cut_where_the_picture_changes_and_not_by_fast_motion(tmp_path):
    parts = [moving(30, (20, 20, 90)), moving(24, (150, 40, 20)), moving(27, (10, 120, 10), step=11)]
    path = write_video(tmp_path / "three.mp4", np.concatenate(parts), 24)
    frames = [(frame, i / 24) for i, frame in enumerate(read_video(path).frames)]
    numbers = [number for number, _, _ in scenes(frames, 24.0)]
    assert [numbers.index(n) for n in (0, 1, 2)] == [0, 30, 54]
    assert max(numbers) == 2
    cuts = clips(path)
    assert [(c.scene, c.start, len(c.frames)) for c in cuts] == [(0, 0.0, 9), (1, 1.25, 5), (2, 2.25, 9)]
    for cut, colour in zip(cuts, ((20, 20, 90), (150, 40, 20), (10, 120, 10)), strict=True):
        assert np.abs(cut.frames[:, 0, 0].astype(int) - colour).max() < 12, "a clip lies in one scene"
    assert {c.scene for c in clips(path, scene=0)} == {0}


def test_shaking_pictures_are_one_scene(rng):
    noise = [(rng.integers(0, 2, (8, 8, 1)).repeat(3, 2).repeat(8, 0).repeat(8, 1) * 255).astype(np.uint8)
             for _ in range(30)]  # fmt: skip
    numbers = [n for n, _, _ in scenes([(frame, i / 8) for i, frame in enumerate(noise)], 24.0)]
    assert max(numbers) <= 1, "changes that are all large are no cuts, but for the first, which nothing went before"


def test_a_long_scene_gives_clips_one_after_the_other_and_its_rest_a_shorter_one(tmp_path):
    path = write_video(tmp_path / "long.mp4", grey(range(10, 10 + 4 * 26, 4)), 8)
    cuts = clips(path)
    assert [(c.bucket, c.start) for c in cuts] == [(0, 0.0), (0, 1.125), (1, 2.25)]
    np.testing.assert_allclose(np.concatenate([levels(c) for c in cuts]), 10 + 4 * np.arange(23), atol=3)


def test_filters_say_what_they_took_out(tmp_path):
    still = write_video(tmp_path / "still.mp4", grey([90] * 9), 8)
    lively = write_video(tmp_path / "lively.mp4", grey([0, 200] * 5, 64, 48), 8)
    short = write_video(tmp_path / "short.mp4", grey([1, 9, 17]), 8)
    assert clips(still, min_motion=0.5) == [Dropped("too little motion")]
    assert clips(lively, scene=0, max_motion=50) == [Dropped("too much motion")]
    assert clips(lively, min_side=50) == [Dropped("too small")]
    assert clips(short) == [Dropped("too short")]
    assert clips(still, min_seconds=1.5) == [Dropped("too short")]
    assert [type(c) for c in clips(still, min_seconds=1.0)] == [Cut]
    (cut,) = clips(lively, scene=0, min_motion=50)
    assert cut.motion == pytest.approx(200, abs=6)
    assert clips(still, BUCKETS[3:]) == [Dropped("too short")], "stills are not made of videos"


@pytest.mark.parametrize("content", [b"", b"no video at all" * 99])
def test_what_does_not_decode_is_an_error(tmp_path, content):
    for name in ("a.mp4", "a.png"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="decode"):
            clips(tmp_path / name)


def test_a_file_that_breaks_off_gives_what_decodes_and_then_the_error(tmp_path):
    """In the middle of a frame and between two."""
    frames = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3)).astype(np.uint8)
    path = write_video(tmp_path / "cut.mp4", frames, 8)
    data = path.read_bytes()
    with av.open(str(path)) as container:
        between = container.streams.video[0].index_entries[30].pos
    assert len(list(cut_file(path, BUCKETS, Cutting(scene=0)))) == 7
    for at in (len(data) // 2, between, len(data) - 100):
        path.write_bytes(data[:at])
        got = []
        with pytest.raises(BadInput, match=rf"breaks off after .* {at} bytes of at least"):
            got.extend(cut_file(path, BUCKETS, Cutting(scene=0)))
        assert (1 <= len(got) <= 3) if at <= between else len(got) == 6
        assert np.abs(got[0].frames.astype(int) - np.stack([fit(f, 32, 32) for f in frames[:9]])).mean() < 12


@pytest.mark.parametrize(
    "wrong, why",
    [({"fps": 0}, "fps"), ({"min_side": -1}, "min_side"), ({"min_motion": 9, "max_motion": 3}, "max_motion")],
)
def test_numbers_that_cannot_be(wrong, why):
    with pytest.raises(BadInput, match=why):
        Cutting(**wrong).check()


def test_fit_covers_and_crops_the_middle():
    frame = np.zeros((20, 60, 3), np.uint8)
    frame[:, 20:40] = 255
    square = fit(frame, 10, 10)
    assert square.shape == (10, 10, 3)
    assert square[:, 1:-1].min() > 250
    assert fit(frame, 20, 60) is frame
