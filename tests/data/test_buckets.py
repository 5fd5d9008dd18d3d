"""Sizes of buckets that a model cannot be given are said before anything is encoded, with the nearest that it can."""

import pytest

from dit_video.core.errors import BadInput
from dit_video.data.buckets import Bucket


def test_whole_patches_of_latents():
    Bucket(121, 704, 1280).check_latents(4, 16, (1, 2, 2))
    Bucket(1, 32, 64).check_latents(4, 8, (1, 2, 4))


@pytest.mark.parametrize(
    "bucket, factor, message",
    [
        (Bucket(81, 720, 1280), 16, "height=720 of 81x720x1280 .* Nearest: 704 or 736"),
        (Bucket(81, 704, 16), 16, r"width=16 .* Nearest: 32\."),
        (Bucket(80, 480, 832), 8, "frames=80 .* Nearest: 77 or 81"),
    ],
)
def test_sizes_that_do_not_divide(bucket, factor, message):
    with pytest.raises(BadInput, match=message):
        bucket.check_latents(4, factor, (1, 2, 2))
