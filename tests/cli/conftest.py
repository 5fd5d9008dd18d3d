"""A model in a folder, and an empty folder to work in."""

import pytest

from dit_video.cli import generate
from dit_video.weights.folder import save_model


@pytest.fixture(scope="session")
def model(tiny, tmp_path_factory):
    """The path of a model in miniature."""
    return str(save_model(tiny, tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, and no compile cache outside of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "prepare_jax", lambda device: None)
    return tmp_path
