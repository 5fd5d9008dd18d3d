"""Pictures of a clip under way: as often as asked for, and never the end of the clip."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from dit_video.core.errors import BadInput, NonFinite
from dit_video.generate import preview as module
from dit_video.generate.preview import preview
from dit_video.models.vae import VAEConfig

PIPE = SimpleNamespace(
    programs=SimpleNamespace(on_mesh=nullcontext), params={"vae": None}, memory=None,
    model=SimpleNamespace(vae=VAEConfig()),
)  # fmt: skip
NOW = {"data": np.zeros((1, 2, 4, 4, 4), np.float32), "clips": [0]}


def test_every_so_many_steps_one_is_written(tmp_path, monkeypatch):
    grey = np.full((5, 32, 32, 3), 100, np.uint8)
    monkeypatch.setattr(module, "decode_frames", lambda *_: iter([grey]))
    show = preview([tmp_path / "new" / "a.mp4", tmp_path / "b.mp4"], 3)
    target = tmp_path / "new" / "a.preview.png"
    for step in range(3):
        assert not target.exists()
        show(PIPE, step, 500.0, NOW)
    assert (np.asarray(Image.open(target))[:32, :32] == 100).all()
    assert not (tmp_path / "b.preview.png").exists()
    show(PIPE, 2, 500.0, NOW | {"clips": [1]})
    assert (tmp_path / "b.preview.png").exists()
    with pytest.raises(BadInput, match="preview_every=0"):
        preview([tmp_path / "a.mp4"], 0)


def test_one_that_cannot_be_made_does_not_end_the_clip(tmp_path, monkeypatch, caplog):
    """Half-made latents may decode to anything, and disks fill up."""
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    for error in (NonFinite("NaN from frame 3 on"), OSError(28, "No space left on device"), full):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(module, "decode_frames", fail)
        with caplog.at_level(logging.WARNING, "dit_video"):
            assert preview([tmp_path / "a.mp4"], 1)(PIPE, 0, 500.0, NOW) is None
        assert str(error) in caplog.text
    assert not (tmp_path / "a.preview.png").exists()
