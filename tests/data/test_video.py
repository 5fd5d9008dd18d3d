"""Video files: colours survive, tags are right, nothing half-written stays, odd input is told so."""

import re
from fractions import Fraction

import numpy as np
import pytest

from dit_video.core.errors import BadInput, MissingError
from dit_video.data.video import (
    VideoWriter,
    contact_sheet,
    frame_grid,
    read_video,
    resample_indices,
    write_video,
)

SATURATED = np.array(
    [[230, 20, 20], [20, 200, 20], [20, 20, 230], [230, 220, 20], [20, 210, 210], [220, 20, 220], [245, 130, 20],
     [235, 235, 235]], np.uint8,
)  # fmt: skip


def patches(count: int = 5, size: int = 16) -> np.ndarray:
    """Eight flat colours in two rows; the order shifts by one each frame."""
    rows = [np.roll(SATURATED, t, axis=0).reshape(2, 4, 3) for t in range(count)]
    return np.stack(rows).repeat(size, axis=1).repeat(size, axis=2)


def centres(frames: np.ndarray, size: int = 16) -> np.ndarray:
    return frames[:, size // 2 :: size, size // 2 :: size].astype(int)


@pytest.mark.parametrize("suffix", ["mp4", "webp", "gif", "png"])
def test_half_of_a_surrogate_pair_is_kept(tmp_path, suffix):
    """As in a prompt that a script gave in another encoding, or a file's name that is no UTF-8."""
    metadata = {"prompt": "a caf\udce9 circle", "notes": ["\ud83d", "ein Bär 🐻"]}
    write_video(tmp_path / f"a.{suffix}", patches(), fps=8, metadata=metadata)
    assert read_video(tmp_path / f"a.{suffix}").metadata == metadata


@pytest.mark.parametrize("suffix, tolerance", [("mp4", 4), ("webp", 6), ("gif", 0), ("GIF", 0)])
def test_saturated_colours_come_back(tmp_path, suffix, tolerance):
    frames = patches()
    write_video(tmp_path / f"a.{suffix}", frames, fps=8, metadata={"seed": 7, "prompt": "ein roter Bär 🐻"})
    back = read_video(tmp_path / f"a.{suffix}")
    assert back.frames.shape == frames.shape
    assert np.abs(centres(back.frames) - centres(frames)).max() <= tolerance
    assert back.metadata == {"seed": 7, "prompt": "ein roter Bär 🐻"}
    assert back.fps == pytest.approx(8, rel=0.02)
    np.testing.assert_allclose(back.timestamps, np.arange(5) / 8, atol=0.011)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_pictures_that_are_to_be_shown_for_no_time(tmp_path, suffix):
    """As browsers do: a tenth of a second each."""
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in patches())
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=rest, duration=0, loop=0)
    back = read_video(tmp_path / f"a.{suffix}")
    assert back.fps == pytest.approx(10)
    np.testing.assert_allclose(back.timestamps, np.arange(5) / 10, atol=1e-6)


def test_mp4_is_bt709_yuv420p_with_the_index_in_front(tmp_path):
    import av

    path = write_video(tmp_path / "a.mp4", patches(), fps=Fraction(30000, 1001))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert [int(context.colorspace), int(context.color_primaries), int(context.color_trc)] == [1, 1, 1]
        assert int(context.color_range) == 1
        assert stream.average_rate == Fraction(30000, 1001)
        luma = next(container.decode(stream)).to_ndarray()[8, 8]
    # the matrix itself, by hand: BT.601 would give about 78 for this red, BT.709 gives 66
    r, g, b = SATURATED[0] / 255.0
    assert luma == pytest.approx(16 + 219 * (0.2126 * r + 0.7152 * g + 0.0722 * b), abs=2)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_long_comment_survives(tmp_path):
    metadata = {"note": "x" * 60_000}
    write_video(tmp_path / "a.mp4", patches(), fps=8, metadata=metadata)
    assert read_video(tmp_path / "a.mp4").metadata == metadata


def test_odd_sizes_and_unknown_suffixes_are_told(tmp_path):
    with pytest.raises(BadInput, match="48x16"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 16, 47, 3), np.uint8), fps=8)
    with pytest.raises(BadInput, match="mp4"):
        write_video(tmp_path / "a.xyz", np.zeros((2, 16, 16, 3), np.uint8), fps=8)
    with pytest.raises(BadInput, match="at least one frame"):
        write_video(tmp_path / "a.mp4", np.zeros((0, 16, 16, 3), np.uint8), fps=8)
    with pytest.raises(BadInput, match="uint8"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 16, 16, 3), np.float32), fps=8)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    path = write_video(tmp_path / "a.mp4", patches(), fps=8)
    before = path.read_bytes()
    with pytest.raises(BadInput, match="one size"), VideoWriter(path, fps=8) as video:
        video.write_all([patches()[0], patches()[0, :16]])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ".png"])
def test_a_full_disk_is_told_and_left_clean(tmp_path, suffix):
    """The system's own refusal, at a limit of file size: what a full disk is to a program."""
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(BadInput, match=rf"a{suffix} cannot be written: File too large. Make room, or choose"):
            write_video(tmp_path / f"a{suffix}", noise, fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_streaming_equals_writing_at_once(tmp_path):
    frames = patches(9)
    write_video(tmp_path / "a.mp4", frames, fps=8)
    with VideoWriter(tmp_path / "b.mp4", fps=8) as video:
        for frame in frames:
            video.write(frame)
    np.testing.assert_array_equal(read_video(tmp_path / "a.mp4").frames, read_video(tmp_path / "b.mp4").frames)


def test_half_of_a_matroska_file_is_warned_of(tmp_path, caplog):
    import av

    frames = np.random.default_rng(0).integers(0, 255, (48, 32, 32, 3)).astype(np.uint8)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in [*frames, None]:
            picture = None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")
            for packet in stream.encode(picture and picture.reformat(format="yuv420p")):
                container.mux(packet)
    whole = (tmp_path / "a.mkv").read_bytes()
    assert len(read_video(tmp_path / "a.mkv").frames) == 48 and caplog.text == ""
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) // 2])
    assert 15 < len(read_video(tmp_path / "b.mkv").frames) < 33
    assert re.search(r"b\.mkv: ends at [23]\.\d s and says 6\.0\. Did it break off", caplog.text)


def test_read_a_window(tmp_path):
    frames = np.arange(24, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3) * 10
    write_video(tmp_path / "a.mp4", frames, fps=8)
    window = read_video(tmp_path / "a.mp4", start=1.0, max_frames=4)
    np.testing.assert_allclose(window.timestamps, [1.0, 1.125, 1.25, 1.375], atol=1e-3)
    np.testing.assert_allclose(window.frames.mean((1, 2, 3)), [80, 90, 100, 110], atol=2)
    with pytest.raises(BadInput, match="no video frame"):
        read_video(tmp_path / "a.mp4", start=9.0)


def test_files_that_are_not_videos(tmp_path):
    with pytest.raises(MissingError, match="no such file"):
        read_video(tmp_path / "nothing.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "text.gif").write_text("not a picture")
    for name in ("text.mp4", "text.gif"):
        with pytest.raises(BadInput, match="cannot be decoded"):
            read_video(tmp_path / name)


def test_resampling_follows_timestamps():
    even = np.arange(10) / 10
    np.testing.assert_array_equal(resample_indices(even, 10), np.arange(10))
    np.testing.assert_array_equal(resample_indices(even, 5), [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(resample_indices(even, 20, count=6), [0, 0, 1, 1, 2, 2])
    # a variable rate: a frame stays on screen until the next begins
    np.testing.assert_array_equal(resample_indices(np.array([0.0, 0.1, 0.5, 0.6]), 10), [0, 1, 1, 1, 1, 2, 3])
    rounded = np.round(np.arange(30) * 1001 / 30000, 3)
    np.testing.assert_array_equal(resample_indices(rounded, 30000 / 1001), np.arange(30))


def test_sheets():
    frames = patches(7)
    sheet = frame_grid(frames, columns=4, gap=2)
    assert sheet.shape == (2 * 32 + 2, 4 * 64 + 6, 3)
    np.testing.assert_array_equal(sheet[34:, 66:130], frames[5])
    assert (sheet[34:, 198:] == 255).all()
    two = contact_sheet([frames, frames[:1]], columns=2, frames_per_clip=3, gap=0)
    assert two.shape == (32, 6 * 64, 3)
    np.testing.assert_array_equal(two[:, 64:128], frames[3])


@pytest.mark.parametrize("name", ["a.png", "a.PNG"])
def test_png_is_a_sheet_with_the_metadata(tmp_path, name):
    frames = patches(4)
    write_video(tmp_path / name, frames, fps=8, metadata={"seed": 1})
    back = read_video(tmp_path / name)
    np.testing.assert_array_equal(back.frames[0], frame_grid(frames))
    assert back.metadata == {"seed": 1}
