"""`dit-video decode`: the frames that `generate` made of the same latents, and what is told of other files."""

import json
import types
from dataclasses import replace

import numpy as np
import pytest

from dit_video.cli.decode import is_of_another
from dit_video.cli.main import main
from dit_video.data.video import read_video
from dit_video.generate.clip import frames_sha256

PROMPT = "a red circle moves right"
pytestmark = pytest.mark.usefixtures("here")


def test_a_long_clip_is_streamed_and_decoded_again(model, here, capsys):
    """13 frames chunk after chunk: the file's metadata, its JSON and its latents agree; decoding gives the same frames;
    a preview lies beside it."""
    argv = ["generate", PROMPT, "--model", model, "--num_frames", "13", "--long", "extend", "--seed", "3", "--json"]
    argv += ["--output", "a.mp4", "--save_latents", "--preview_every", "2"]
    assert main(argv) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["frames"] == 13
    meta = json.loads((here / "a.json").read_text())
    footage = read_video(here / "a.mp4")
    assert footage.metadata == meta
    assert footage.frames.shape == (13, 32, 32, 3)
    assert meta["long"]["mode"] == "extend"
    assert (here / "a.preview.png").is_file()
    assert main(["decode", "a.latents.npz", "--output", "b.mp4"]) == 0
    assert capsys.readouterr().out.strip() == "b.mp4"
    again = json.loads((here / "b.json").read_text())
    assert again["frames_sha256"] == meta["frames_sha256"]
    # Under load x264 does not write the same file of the same frames each time (LEDGER): near, not equal.
    assert np.abs(read_video(here / "b.mp4").frames.astype(int) - footage.frames).mean() < 3


@pytest.mark.parametrize(
    "argv, code, message",
    [
        (["none.npz"], 3, "no such file"),
        (["text.npz"], 2, "not a NAME.latents.npz"),
        (["short.npz"], 2, "metadata says 9"),
        (["good.npz"], 2, "exists"),
        (["good.npz", "--output", "a.avi"], 2, "Use one of .mp4"),
    ],
)
def test_bad_input(here, capsys, argv, code, message):
    (here / "text.npz").write_text("no latents")
    latents = np.zeros((3, 4, 4, 4), np.float32)
    np.savez(here / "short.npz", latents=latents, metadata=np.array(json.dumps({"strips": [[9, 0, 0]]})))
    np.savez(here / "good.npz", latents=latents, metadata=np.array("{}"))
    (here / "good.mp4").write_text("older")
    assert main(["decode", *argv]) == code
    assert message in capsys.readouterr().err


def test_latents_of_another_kind_of_vae(model, here, capsys):
    np.savez(here / "wide.npz", latents=np.zeros((3, 4, 4, 5), np.float32), metadata=np.array("{}"))
    assert main(["decode", "wide.npz", "--model", model]) == 2
    assert "latents of 5 channels, and the VAE of" in capsys.readouterr().err
    assert not list(here.glob("wide.[mj]*"))


def test_memory_is_counted_for_the_vae_alone(model, tiny, here, capsys, monkeypatch):
    """No denoiser comes, so none is kept room for; with --tile nothing is counted. What another model or dtype has done
    is told."""
    from dit_video.generate import held, pipeline
    from dit_video.generate.decode import piece_bytes

    monkeypatch.setattr(held, "LARGE", 1)
    room = piece_bytes(replace(tiny.vae, conv="folded"), 4, 4)
    monkeypatch.setattr(pipeline, "free_memory", lambda device: room)
    made = {"model": {"name": "another", "hash": "0123456789ab"}, "dtype": "bfloat16"}
    np.savez(here / "a.latents.npz", latents=np.zeros((2, 4, 4, 4), np.float32), metadata=np.array(json.dumps(made)))
    line = ["decode", "a.latents.npz", "--model", model]
    decoded = lambda: json.loads((here / "a.json").read_text())["decoded"]  # noqa: E731
    assert main(line) == 0
    assert (decoded()["slots"], decoded()["tiles"], decoded()["dtype"]) == (4, None, "float32")
    assert decoded()["model"]["hash"] not in ("", "0123456789ab")
    monkeypatch.setattr(pipeline, "free_memory", lambda device: 0)
    assert main([*line, "--force"]) == main([*line, "--force", "--tile", "0"]) == 2
    assert "0 are free" in (told := capsys.readouterr().err) and "tiles of 0x0 latents" in told
    assert main([*line, "--force", "--tile", "3", "--overlap", "1"]) == 0
    assert decoded()["tiles"] == [3, 3, 1]


def test_latents_are_held_against_the_vae_alone(monkeypatch):
    """A released model's other weights are tens of gigabytes, which decoding does not need."""
    monkeypatch.setattr("dit_video.generate.pipeline.digest_of", lambda model: pytest.fail("all weights are read"))
    here = types.SimpleNamespace(vae_hash="a" * 12, model=types.SimpleNamespace(digest="b" * 12))
    assert not is_of_another(here, {"model": {"hash": "c" * 12, "vae": "a" * 12}, "lora": ["x"]})
    assert is_of_another(here, {"model": {"hash": "b" * 12, "vae": "c" * 12}})
    # of an older version
    assert is_of_another(here, {"model": {"hash": "c" * 12}})
    assert not is_of_another(here, {"model": {"hash": "c" * 12}, "lora": ["x"]})
    here.model.digest = ""
    assert not is_of_another(here, {"model": {"hash": "c" * 12}})
    assert not is_of_another(here, {})


def test_the_hash_is_of_all_frames():
    """As the stream counts it and as a whole array."""
    import hashlib

    frames = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3), np.uint8)
    total = hashlib.sha256()
    for frame in frames:
        total.update(frame)
    assert total.hexdigest() == frames_sha256(frames)
