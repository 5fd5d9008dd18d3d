"""One face over folders here and addresses: what is written is read back, whole or not at all."""

import pytest

from dit_video.core.errors import BadInput, MissingError
from dit_video.data.store import Store


@pytest.fixture(params=["path", "file", "memory"])
def store(request, tmp_path):
    found = Store(
        {"path": tmp_path / "a", "file": f"file://{tmp_path}/a", "memory": f"memory://{tmp_path.name}/a"}[request.param]
    )
    assert found.here == (request.param != "memory")
    found.make()
    return found


def test_files_are_written_listed_and_read(store, tmp_path):
    store.write("b.txt", b"bee")
    store.write("a.txt", b"ay")
    assert store.is_folder()
    assert store.names() == ["a.txt", "b.txt"]
    assert (store.read("a.txt"), store.size("a.txt"), store.size("c.txt")) == (b"ay", 2, None)
    assert store.read_all(["b.txt", "a.txt"]) == {"a.txt": b"ay", "b.txt": b"bee"}
    store.write("old/Title [b1].txt", b"see")  # as yt-dlp names files
    assert store.read_all(["old/Title [b1].txt", "a.txt"]) == {"a.txt": b"ay", "old/Title [b1].txt": b"see"}
    store.fs.rm(store.path("old"), recursive=True)
    with store.reading("b.txt") as file:
        assert file.name == "b.txt"
        assert file.read_bytes() == b"bee"
    assert file.exists() == store.here, "a copy goes"
    store.copy("b.txt", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"bee"
    with pytest.raises(MissingError, match=r"c\.txt"):
        store.read("c.txt")


def test_nothing_half_written_stays(store):
    store.write("a", b"old")
    with pytest.raises(ZeroDivisionError), store.writing("a") as file:
        file.write_bytes(b"ne" * (1 // 0))
    assert store.names() == ["a"]
    assert store.read("a") == b"old"


def test_addresses_that_cannot_be(tmp_path):
    with pytest.raises(BadInput, match="Give a path"):
        Store("nowhere://a")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot make"):
        Store(tmp_path / "file" / "in").make()


def test_a_missing_driver_is_named(monkeypatch):
    import fsspec

    def missing(*_):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingError, match=r"gs://bucket/a: Please install gcsfs"):
        Store("gs://bucket/a")
