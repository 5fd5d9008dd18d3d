"""Given pictures: what is read, and how it is fitted."""

import numpy as np
import pytest
from PIL import Image

from dit_video.core.errors import BadInput, MissingError
from dit_video.data.scenes import fit
from dit_video.generate.picture import fit_image, load_image


def test_images_are_read_upright_and_on_white(tmp_path):
    pixels = np.zeros((6, 4, 3), np.uint8)
    pixels[0, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    turned, source = load_image(tmp_path / "a.png")
    assert turned.shape == (4, 6, 3)
    assert (turned[0, -1] == 200).all()
    assert source == {"image": str(tmp_path / "a.png"), "height": 4, "width": 6}
    clear = Image.fromarray(np.zeros((2, 2, 4), np.uint8), "RGBA")
    assert (load_image(clear)[0] == 255).all()
    grey = Image.fromarray(np.full((2, 2), 7, np.uint8))
    assert (load_image(grey)[0] == 7).all()


def test_unreadable_images_are_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(BadInput, match=r"a\.png: cannot be decoded"):
        load_image(tmp_path / "a.png")
    for place in ("/dev/null", tmp_path):
        with pytest.raises(BadInput, match="a folder or a device, not a file"):
            load_image(place)
    with pytest.raises(MissingError, match="no such file"):
        load_image(tmp_path / "b.png")


def test_pictures_of_bombs_are_told(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadInput, match=r"a\.png: cannot be decoded"):
        load_image(tmp_path / "a.png")


def test_ways_to_fit_an_image():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :10], image[:, 30:] = 250, 120
    cropped = fit_image(image, 20, 20, "crop")
    assert (cropped == 0).all()
    padded = fit_image(image, 40, 40, "pad")
    assert (padded[:9] == 0).all()
    assert (padded[15:25, 2] == 250).all()
    stretched = fit_image(image, 20, 20, "stretch")
    assert (stretched[:, 1] > 240).all()
    assert (abs(stretched[:, 18].astype(int) - 120) < 10).all()
    np.testing.assert_array_equal(fit_image(image, 20, 40, "crop"), image)


@pytest.mark.parametrize("size", [(24, 52, 29, 73), (28, 7, 34, 68), (70, 60, 52, 84)])
def test_training_crops_as_sampling_does(size, rng):
    """Sizes whose box, computed from a scale, begins a rounding error outside of the picture."""
    h, w, height, width = size
    image = rng.integers(0, 255, (h, w, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit(image, height, width), fit_image(image, height, width, "crop"))
