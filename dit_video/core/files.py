"""Files on disk: written whole or not at all, and their checksums."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit_video.core.errors import BadInput


def cache_folder(name: str) -> Path:
    """The user's folder for what can be made or fetched again (XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dit_video" / name


def json_text(data: Any, indent: int | None = None) -> str:
    """JSON as people read it, which any encoding of Unicode can write: half of a surrogate pair (a file name that is no
    UTF-8, a cut emoji) becomes its escape, from which it is read again."""
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def sha256(path: Path) -> str:
    """Hex digits of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around what writes `path`. Raises BadInput where the system refuses: a full disk, a folder that is gone."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise BadInput(f"{path} cannot be written: {why}. Make room, or choose another place.") from error


def beside(path: Path) -> Path:
    """The name that `path` has until it is whole. Its suffix stays last: libraries tell the format from it."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the name `path` when the block ends and is gone after an exception.

    Raises as `writing`.
    """
    partial = beside(path)
    try:
        with writing(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
