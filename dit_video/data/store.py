"""Files by path or by address (`gs://`, `s3://`, `memory://`): a small face over fsspec.

A file appears whole or not at all: here by renaming, in an object store because a put is one piece.
"""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path

from dit_video.core.errors import BadInput, MissingError
from dit_video.core.files import sha256
from dit_video.core.log import log

PAUSES = (1.0, 5.0, 30.0)  # seconds before a file is asked for again
FULL = (errno.ENOSPC, errno.EDQUOT)
# What stores call a version of a file, the surest first.
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether this is gs://..., s3://... and not a path."""
    return "://" in str(path)


class Store:
    """A folder, here or in an object store.

    Raises `MissingError` when the driver of an address is not installed, `BadInput` for an address of no known kind.
    """

    def __init__(self, root: str | os.PathLike[str]):
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        self.address = str(root)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            raise MissingError(f"{self.address}: {error}") from None
        except ValueError as error:
            raise BadInput(f"{self.address}: {error}. Give a path, gs://... or s3://...") from None
        self.here = isinstance(self.fs, LocalFileSystem)

    def __str__(self) -> str:
        return self.address

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def is_folder(self) -> bool:
        return self.fs.isdir(self.root)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when it is not there."""
        try:
            return int(self.fs.info(self.path(name))["size"])
        except FileNotFoundError:
            return None

    def version(self, name: str) -> str:
        """What the store says of a file's version, another once it was replaced; "" where it says nothing."""
        about = self.fs.info(self.path(name))
        return next((f"{key} {about[key]}" for key in VERSIONS if about.get(key)), "")

    def names(self) -> list[str]:
        """Every file below, sorted, relative to the folder."""
        root = self.root.strip("/")
        return sorted(found.strip("/")[len(root) :].lstrip("/") for found in self.fs.find(self.root))

    def read(self, name: str) -> bytes:
        """Raises `MissingError` when there is no such file."""
        try:
            return self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            raise MissingError(f"{self.address}/{name}: no such file") from None

    def read_all(self, names: list[str]) -> dict[str, bytes]:
        """Many small files at once."""
        plain = {name: self.path(name) for name in names if not has_magic(self.path(name))}  # others were patterns
        found = self.fs.cat([*plain.values()]) if plain else {}
        return {n: found[self.fs._strip_protocol(plain[n])] if n in plain else self.read(n) for n in names}

    def fetch(self, to: Path, names: Sequence[str]) -> None:
        """Files below, into the folder `to`, which appears whole or not at all. Raises `BadInput` where it cannot be
        written, for what the store's driver reports, and for a name that leads out of the folder."""
        partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
        try:
            for name in names:
                if ".." in name.split("/"):
                    raise BadInput(f"{self.address}: the name {name!r} leads out of its folder. Nothing was fetched.")
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                self.copy(name, partial / name)
            try:
                partial.rename(to)
            except OSError:
                if not to.is_dir():  # else another process was first, with the same
                    raise
        except OSError as error:
            raise BadInput(f"{self.address} cannot be copied to {to}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def send(self, folder: Path, *last: str) -> None:
        """Puts every file of a folder here, those named `last` after all others and in that order: where the last one
        stands, all do. Old files of these names go first: what is sent in part, over another, lacks them. Other old
        files that are not in that folder go before these names come. Raises `BadInput` for what the driver reports."""
        found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        try:
            old = self.names()
            self._remove(name for name in last if name in old)
            self._put(folder, (name for name in found if name not in last))
            self._remove(set(old) - {*found, *last})
            self._put(folder, (name for name in last if name in found))
        except OSError as error:
            raise BadInput(f"{self.address} cannot be written: {error.strerror or error}") from None

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.fs.rm_file(self.path(name))

    def _put(self, folder: Path, names: Iterable[str]) -> None:
        for name in names:
            with self.writing(name) as file:
                shutil.copyfile(folder / name, file)

    def make(self) -> None:
        """The folder, if it is not there. Raises `BadInput` when it cannot be made or written."""
        try:
            self.fs.makedirs(self.root, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{self.address}: cannot make this folder ({error.strerror or error})") from None
        if self.here and not os.access(self.root, os.W_OK | os.X_OK):
            raise BadInput(f"{self.address}: cannot write here")

    def write(self, name: str, data: bytes) -> None:
        with self.writing(name) as file:
            file.write_bytes(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A file here to write into; at the end it takes its name and place. Nothing stays after an exception."""
        if self.here:
            os.makedirs(self.root, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.root if self.here else None))
        try:
            yield folder / "file"
            if self.here:
                Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / "file", self.path(name))
            else:
                self.fs.put_file(str(folder / "file"), self.path(name))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """The file here: itself, or a copy that goes at the end. Raises `MissingError`."""
        if self.here:
            yield Path(self.path(name))
            return
        with tempfile.TemporaryDirectory(prefix="dit_video-") as folder:
            copy = Path(folder) / Path(name).name
            self.copy(name, copy)
            yield copy

    def copy(self, name: str, to: Path, digest: str | None = None) -> None:
        """Fetches a file; after each of PAUSES again, where the store does not give it or what came is not the whole.
        `digest`: the SHA-256 that it must have.

        Raises `MissingError` when there is no such file, `BadInput` for one whose size or SHA-256 stays wrong, and
        `OSError` when the store does not give it, or there is no room here.
        """
        for pause in (*(() if self.here else PAUSES), None):
            try:
                self.fs.get_file(self.path(name), str(to))
                wrong = self._wrong(name, to, digest)
                if not wrong:
                    return
                failure: Exception = BadInput(f"{self.address}/{name} is damaged: {wrong}")
            except FileNotFoundError:
                raise MissingError(f"{self.address}/{name}: no such file") from None
            except Exception as error:  # drivers have kinds of their own, and those of what they stand on
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                failure = OSError(f"{self.address}/{name} cannot be fetched: {error or type(error).__name__}")
                failure.__cause__ = error
            if pause is None:
                raise failure
            log.warning("%s. Trying again in %g s", failure, pause)
            time.sleep(pause)
            self.fs.invalidate_cache()  # of sizes, too

    def _wrong(self, name: str, copy: Path, digest: str | None) -> str:
        """What is wrong with a copy; "" for nothing."""
        if digest is not None:
            return "" if sha256(copy) == digest else "its SHA-256 is another"
        there, came = self.fs.info(self.path(name)).get("size"), copy.stat().st_size
        return "" if there in (None, came) else f"{came} bytes came of {there}"
