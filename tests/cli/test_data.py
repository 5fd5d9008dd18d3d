"""`dit-video data toyworld`: files that can be read back, the same for the same seed, and errors before any work."""

import json

import numpy as np
import pytest

from dit_video.cli.main import main
from dit_video.data.toyworld.motion import pack
from dit_video.data.toyworld.render import render_batch, to_uint8
from dit_video.data.toyworld.scene import from_json
from dit_video.data.video import read_video

SMALL = ["--num_frames", "5", "--height", "32", "--width", "48"]


def test_writes_clips_captions_and_scenes(tmp_path, capsys):
    out = tmp_path / "clips"
    assert main(["data", "toyworld", str(out), "--count", "3", "--seed", "4", "--json", *SMALL]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["path"], said["count"], said["num_frames"], said["fps"]) == (str(out), 3, 5, 8.0)
    assert sorted(p.name for p in out.iterdir()) == [f"{i:06d}.{s}" for i in range(3) for s in ("json", "mp4", "txt")]
    scenes = [from_json((out / f"{i:06d}.json").read_text()) for i in range(3)]
    rendered = to_uint8(render_batch(pack(scenes), 5, 32, 48))
    for i, want in enumerate(rendered):
        clip = read_video(out / f"{i:06d}.mp4")
        assert clip.frames.shape == (5, 32, 48, 3) and clip.fps == 8
        assert np.abs(clip.frames.astype(int) - want).mean() < 4  # chroma is halved; the picture is the scene's
        assert clip.metadata["caption"] == (out / f"{i:06d}.txt").read_text().strip()


def test_a_clip_depends_on_seed_and_number_only(tmp_path):
    for name, count, seed in (("a", 3, 1), ("b", 2, 1), ("c", 2, 2)):
        assert main(["data", "toyworld", str(tmp_path / name), "--count", str(count), "--seed", str(seed), *SMALL]) == 0
    scene = {name: (tmp_path / name / "000001.json").read_text() for name in "abc"}
    assert scene["a"] == scene["b"] != scene["c"]


@pytest.mark.parametrize(
    "flags, why",
    [
        (["--count", "0"], "count=0"),
        (["--count", "1", "--width", "47"], "must be even"),
        (["--count", "1", "--num-frames", "0"], "num_frames=0"),
        (["--count", "1", "--plain", "2"], "share"),
        ([], "--count"),
    ],
)
def test_bad_numbers(tmp_path, capsys, flags, why):
    assert main(["data", "toyworld", str(tmp_path / "x"), *flags]) == 2
    assert why in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.mp4"))


def test_does_not_write_over_clips(tmp_path, capsys):
    line = ["data", "toyworld", str(tmp_path), "--count", "1", *SMALL]
    assert main(line) == 0
    assert main(line) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*line, "--force"]) == 0


def test_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["data", "toyworld", str(tmp_path / "file" / "in"), "--count", "1"]) == 2
    assert "cannot make this folder" in capsys.readouterr().err
