"""One face over folders here and addresses: what is written is read back, whole or not at all."""

import errno
import hashlib
from pathlib import Path

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


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A store that is no folder here, with a file in it; nobody waits between two tries."""
    monkeypatch.setattr("dit_video.data.store.PAUSES", (0.0, 0.0))
    store = Store(f"memory://{tmp_path.name}/far")
    store.write("a", b"whole")
    return store


def answering(monkeypatch, store, *answers):
    """A store whose `get_file` raises or gives these, one a call, and then what is there; which are left."""
    whole, left = store.fs.get_file, list(answers)

    def get(path, to):
        answer = left.pop(0) if left else None
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            whole(path, to)
        else:
            Path(to).write_bytes(answer)

    monkeypatch.setattr(store.fs, "get_file", get)
    return left


class DriverError(Exception):
    """Some drivers have kinds of their own."""


def test_a_file_that_does_not_come_whole_is_asked_for_again(far, tmp_path, monkeypatch, caplog):
    left = answering(monkeypatch, far, ConnectionResetError("reset by peer"), b"who")
    far.copy("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"whole" and not left
    assert "a cannot be fetched: reset by peer. Trying again" in caplog.text
    assert "3 bytes came of 5. Trying again" in caplog.text
    left[:] = [b"while", DriverError("503")]
    far.copy("a", tmp_path / "a", hashlib.sha256(b"whole").hexdigest())
    assert (tmp_path / "a").read_bytes() == b"whole" and not left


def test_a_file_that_stays_away_or_damaged_is_an_error(far, tmp_path, monkeypatch):
    left = answering(monkeypatch, far, *[DriverError("503")] * 4)
    with pytest.raises(OSError, match="far/a cannot be fetched: 503"):
        far.copy("a", tmp_path / "a")
    assert len(left) == 1, "three tries"
    left[:] = [b"who"] * 3
    with pytest.raises(BadInput, match="far/a is damaged: 3 bytes came of 5"):
        far.copy("a", tmp_path / "a")
    with pytest.raises(BadInput, match="far/a is damaged: its SHA-256 is another"):
        far.copy("a", tmp_path / "a", "0" * 64)
    left[:] = [FileNotFoundError(), ZeroDivisionError()]
    with pytest.raises(MissingError, match="no such file"):
        far.copy("a", tmp_path / "a")
    left[:] = [OSError(errno.ENOSPC, "No space left on device"), ZeroDivisionError()]
    with pytest.raises(OSError, match="No space left"):
        far.copy("a", tmp_path / "a")
    assert len(left) == 1, "no second try"


def test_the_index_of_a_model_goes_first_and_comes_just_before_the_last(store, tmp_path, monkeypatch):
    local = tmp_path / "local"
    for name in ("model_index.json", "manifest.json", "vae/config.json", "z.txt"):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_text(name)
        store.write(name, b"old")
    store.write("stale", b"old")
    put, sent = Store.writing, []

    def see(self, name):
        sent.append((name, {"model_index.json", "manifest.json", "stale"} & set(self.names())))
        return put(self, name)

    monkeypatch.setattr(Store, "writing", see)
    store.send(local, "model_index.json", "manifest.json")
    assert sent == [
        ("vae/config.json", {"stale"}), ("z.txt", {"stale"}),
        ("model_index.json", set()), ("manifest.json", {"model_index.json"}),
    ]  # fmt: skip
    assert store.read("model_index.json") == b"model_index.json" and "stale" not in store.names()


def test_a_file_that_was_replaced_has_another_version(store):
    store.write("a", b"one")
    first = store.version("a")
    assert first and store.version("a") == first
    store.write("a", b"two")
    assert store.version("a") != first
