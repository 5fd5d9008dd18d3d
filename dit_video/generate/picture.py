"""Given pictures: read upright, on white where they are transparent, and brought to the clip's size."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from dit_video.core.errors import BadInput
from dit_video.data.scenes import fit
from dit_video.data.still import read_picture, upright

Resize = Literal["crop", "pad", "stretch"]
RESIZES = ("crop", "pad", "stretch")


def load_image(image: Any) -> tuple[UInt8[np.ndarray, "H W 3"], dict[str, Any]]:
    """Pixels of a path, a PIL image, or a uint8 array (H, W, 3), upright and on white where it is transparent.

    Raises MissingError for a file that is not there, BadInput for what is no picture."""
    from PIL import Image

    source: dict[str, Any] = {"image": "given"}
    if isinstance(image, (str, os.PathLike)):
        source["image"] = str(Path(image))
        image = read_picture(image)
    if isinstance(image, Image.Image):
        image = upright(image)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise BadInput(f"An image must be a path, a PIL image, or uint8 (H, W, 3); got {image.dtype} {image.shape}.")
    source["height"], source["width"] = image.shape[:2]
    return image, source


def fit_image(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int, resize: Resize, ground: str = "black"
) -> UInt8[np.ndarray, "H W 3"]:
    """The image at the clip's size: `crop` what sticks out (centred), `pad` with the `ground` colour, or `stretch`."""
    from PIL import Image, ImageOps

    if resize not in RESIZES:
        raise BadInput(f"resize={resize!r} is unknown. Use {', '.join(RESIZES)}.")
    if image.shape[:2] == (height, width):
        return image
    if resize == "crop":
        return fit(image, height, width)
    picture, size = Image.fromarray(image), (width, height)
    if resize == "pad":
        picture = ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=ground)
    else:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)
