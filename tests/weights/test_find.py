"""Files that were fetched are compared with the checksums that the Hub names them by."""

import hashlib

import pytest

from dit_video.core.errors import BadInput, MissingError
from dit_video.weights.find import verify_download


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


def test_a_download_is_whole_or_named(snapshot):
    assert verify_download(snapshot) == 1
    blob = (snapshot / "vae/model.safetensors").resolve()
    blob.write_bytes(b"weighty")
    with pytest.raises(BadInput, match=r"vae/model\.safetensors not as written \(SHA-256 differs from the Hub's\)"):
        verify_download(snapshot)
    blob.unlink()
    with pytest.raises(MissingError, match=r"vae/model\.safetensors missing"):
        verify_download(snapshot)
