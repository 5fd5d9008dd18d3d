"""Files by path or by address (`gs://`, `s3://`, `memory://`): a small face over fsspec.

A file appears whole or not at all: here by renaming, in an object store because a put is one piece.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dit_video.core.errors import BadInput, MissingError


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
        if not names:
            return {}
        found = self.fs.cat([self.path(name) for name in names])
        return {name: found[self.fs._strip_protocol(self.path(name))] for name in names}

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
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.root if self.here else None))
        try:
            yield folder / "file"
            if self.here:
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

    def copy(self, name: str, to: Path) -> None:
        """Fetches a file. Raises `MissingError`."""
        try:
            self.fs.get_file(self.path(name), str(to))
        except FileNotFoundError:
            raise MissingError(f"{self.address}/{name}: no such file") from None
