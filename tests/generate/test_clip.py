"""Clips and their files: names, metadata, and nothing overwritten."""

import json

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.generate.clip import Clip, check_free, frames_sha256, output_paths, slug

FRAMES = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
META = {"prompt": "ein roter Bär", "seed": 7, "frames_sha256": frames_sha256(FRAMES)}


def test_a_clip_and_its_json_and_latents(tmp_path):
    latents = np.arange(8, dtype=np.float32).reshape(2, 1, 1, 4)
    path = Clip(FRAMES, 8.0, META, latents).save(tmp_path / "new" / "a.mp4", latents=True)
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.json", "a.latents.npz", "a.mp4"]
    assert json.loads((path.parent / "a.json").read_text()) == META
    back = Clip.load(path)
    assert (back.metadata, back.fps, back.frames.shape) == (META, 8.0, FRAMES.shape)
    with np.load(path.parent / "a.latents.npz") as saved:
        np.testing.assert_array_equal(saved["latents"], latents)
        assert json.loads(str(saved["metadata"])) == META


def test_nothing_is_overwritten_without_force(tmp_path):
    clip = Clip(FRAMES, 8.0, META)
    path = clip.save(tmp_path / "a.gif")
    with pytest.raises(BadInput, match="--force"):
        clip.save(path)
    path.unlink()
    with pytest.raises(BadInput, match=r"a\.json exists"):
        clip.save(path)
    assert clip.save(path, force=True).is_file()


def test_latents_that_were_kept_are_not_overwritten_by_another_clip(tmp_path):
    """They may be all that is left of hours of sampling."""
    (tmp_path / "a.latents.npz").write_text("kept")
    with pytest.raises(BadInput, match=r"a\.latents\.npz exists.*--force"):
        output_paths(tmp_path / "a.mp4", ["a"], 7, force=False)
    check_free(tmp_path / "a.mp4", False, latents=False)  # what decodes them writes beside them


def test_the_hash_is_of_the_raw_bytes():
    import hashlib

    assert frames_sha256(FRAMES) == hashlib.sha256(FRAMES.tobytes()).hexdigest()
    assert frames_sha256(FRAMES[::-1]) != frames_sha256(FRAMES)


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("A red ball!", "a-red-ball"),
        ("ein Bär, 2×", "ein-bär-2"),
        ("***", "clip"),
        ("../../etc", "etc"),
        ("a" * 90, "a" * 40),
    ],
)
def test_slugs(prompt, expected):
    assert slug(prompt) == expected


def test_paths_made_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (path,) = output_paths(None, ["a red ball"], 7, force=False)
    assert path.parent.name == "outputs"
    assert path.name.endswith("_a-red-ball_s7.mp4")
    two = output_paths("folder/x", ["a", "b"], 7, force=False)
    assert [p.name[-11:] for p in two] == ["_a_s7_0.mp4", "_b_s7_1.mp4"]
    assert (tmp_path / "folder" / "x").is_dir()
    assert [p.name for p in output_paths("c.gif", ["a", "b"], 7, force=False)] == ["c_0.gif", "c_1.gif"]
    assert list((tmp_path / "outputs").iterdir()) == []


def test_outputs_that_cannot_be(tmp_path):
    with pytest.raises(BadInput, match="mp4"):
        output_paths(tmp_path / "a.avi", ["a"], 7, force=False)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="cannot write"):
        output_paths(tmp_path / "file" / "a.mp4", ["a"], 7, force=False)
    (tmp_path / "b.mp4").write_text("older")
    with pytest.raises(BadInput, match=r"b\.mp4 exists"):
        output_paths(tmp_path / "b.mp4", ["a"], 7, force=False)
    assert output_paths(tmp_path / "b.mp4", ["a"], 7, force=True) == [tmp_path / "b.mp4"]
