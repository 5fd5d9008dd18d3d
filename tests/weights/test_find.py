"""Files that were fetched are compared with the checksums that the Hub names them by."""

import hashlib
import sys
from types import SimpleNamespace

import pytest

from dit_video.core.errors import BadInput, MissingError
from dit_video.weights.find import find_model, verify_download, verify_files


@pytest.fixture
def snapshot(tmp_path):
    """A model as the Hub's cache has it: links to files that are called by their SHA-256, or another hash."""
    folder = tmp_path / "snapshots" / "main"
    (folder / "vae").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for path, data, name in (
        ("vae/model.safetensors", b"weights", hashlib.sha256(b"weights").hexdigest()),
        ("model_index.json", b"{}", "a" * 40),
    ):
        (tmp_path / "blobs" / name).write_bytes(data)
        (folder / path).symlink_to(tmp_path / "blobs" / name)
    return folder


def test_what_is_on_board_is_small_enough_to_be_carried():
    size = sum(file.stat().st_size for file in find_model(None).rglob("*") if file.is_file())
    assert 2**20 < size < 25 * 2**20


def test_a_download_is_whole_or_named(snapshot):
    assert verify_download(snapshot) == 1
    blob = (snapshot / "vae/model.safetensors").resolve()
    blob.write_bytes(b"weighty")
    with pytest.raises(BadInput, match=r"vae/model\.safetensors not as written \(SHA-256 differs from the Hub's\)"):
        verify_download(snapshot)
    blob.unlink()
    with pytest.raises(MissingError, match=r"vae/model\.safetensors missing"):
        verify_download(snapshot)


def test_a_download_is_known_by_the_hubs_names(snapshot):
    """Nothing is read for it; a file that is no link of the Hub's makes the folder one of unknown origin."""
    known = verify_files(snapshot)
    assert len(known) == 12
    (snapshot / "vae/model.safetensors").resolve().write_bytes(b"")
    assert verify_files(snapshot) == known
    (snapshot / "text").mkdir()
    (snapshot / "text/model.safetensors").write_bytes(b"of mine")
    assert verify_files(snapshot) == ""


def test_a_name_of_the_hub_without_its_client_or_a_network(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingError, match="no folder 'someone/wan' here.*pip install huggingface_hub"):
        find_model("someone/wan")

    def unreachable(name, allow_patterns):
        assert name == "someone/wan"
        assert "*/*.safetensors" in allow_patterns
        raise OSError("cannot reach huggingface.co\nand much more")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=unreachable))
    with pytest.raises(MissingError, match="the Hugging Face Hub did not give it: cannot reach huggingface.co$"):
        find_model("someone/wan")
    (tmp_path / "model_index.json").write_text("{}")
    fetched = SimpleNamespace(snapshot_download=lambda name, allow_patterns: str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", fetched)
    assert find_model("someone/wan") == tmp_path
