"""One picture from a file: PNG, JPEG, WebP, GIF."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit_video.core.errors import BadInput
from dit_video.data.video import PICTURE_SUFFIXES, STILL_SUFFIXES, UNDECODABLE, check_file


def is_still(path: Path) -> bool:
    """Whether a file is one picture: by its name, a GIF or WebP by what is in it; not one that does not decode."""
    from PIL import Image

    suffix = path.suffix.lower()
    if suffix in STILL_SUFFIXES or suffix not in PICTURE_SUFFIXES:
        return suffix in STILL_SUFFIXES
    try:
        with Image.open(path) as picture:
            return getattr(picture, "n_frames", 1) == 1
    except (*UNDECODABLE, Image.DecompressionBombError):
        return False


def upright(picture: Any) -> UInt8[np.ndarray, "H W 3"]:
    """RGB of a PIL image: a camera's EXIF orientation is followed, what is transparent is white."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def read_picture(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "H W 3"]:
    """A still, as `upright` makes it. Raises MissingError and BadInput."""
    from PIL import Image

    check_file(Path(path))
    try:
        with Image.open(path) as picture:
            return upright(picture)
    except (*UNDECODABLE, Image.DecompressionBombError) as error:
        raise BadInput(f"{path}: cannot be decoded ({error}). Use a PNG, JPEG or WebP file.") from error
