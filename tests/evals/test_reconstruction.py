"""What a VAE loses, on losses that are known."""

import numpy as np
import pytest

from dit_video.core.errors import MissingError
from dit_video.core.log import Progress
from dit_video.data.scenes import fit
from dit_video.data.video import iterate_video, read_video, write_video
from dit_video.evals import reconstruction
from dit_video.evals.reconstruction import added_flicker, compression, evaluate, folder_clips, psnr, ssim
from dit_video.models.vae import VAEConfig

QUIET = Progress(show=False)


def test_psnr():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a) == 99
    assert psnr(a, a + np.uint8(16)) == pytest.approx(20 * np.log10(255 / 16))


def test_ssim_of_known_pictures(rng):
    """Equal pictures are 1; of two flat ones only the first factor is left, by hand; and against its definition, one
    window summed point by point."""
    a = rng.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    assert ssim(a, a) == pytest.approx(1.0)
    flat = [np.full((16, 16, 3), level, np.uint8) for level in (100, 140)]
    c1 = (0.01 * 255) ** 2
    assert ssim(*flat) == pytest.approx((2 * 100 * 140 + c1) / (100**2 + 140**2 + c1))
    x, y = (rng.integers(0, 256, (11, 11, 3), dtype=np.uint8).astype(float) for _ in range(2))
    u = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = (u[:, None] * u / u.sum() ** 2)[..., None]
    mx, my = (window * x).sum((0, 1)), (window * y).sum((0, 1))
    vx, vy = (window * x * x).sum((0, 1)) - mx**2, (window * y * y).sum((0, 1)) - my**2
    both, c2 = (window * x * y).sum((0, 1)) - mx * my, (0.03 * 255) ** 2
    wanted = ((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert ssim(np.uint8(x), np.uint8(y)) == pytest.approx(wanted, abs=1e-9)


def test_an_error_that_stays_is_no_flicker(rng):
    clip = rng.integers(0, 200, (5, 8, 8, 3), dtype=np.uint8)
    assert added_flicker(clip, clip + np.uint8(9)) == 0.0
    pulse = clip + np.uint8([0, 6, 0, 6, 0])[:, None, None, None]
    assert added_flicker(clip, pulse) == 6.0


def test_evaluate_sends_sizes_together_and_keeps_the_order(rng):
    shapes = [(5, 16, 16, 3), (5, 16, 24, 3), (5, 16, 16, 3)]
    clips, sent = [rng.integers(0, 200, shape, dtype=np.uint8) for shape in shapes], []

    def darker(some):
        sent.append(some.shape)
        return some - np.minimum(some, 4)

    report, back = evaluate(darker, clips, ["a", "b", "a"], QUIET)
    assert sent == [(2, 5, 16, 16, 3), (1, 5, 16, 24, 3)]
    assert all(np.array_equal(after, darker(before)) for before, after in zip(clips, back, strict=True))
    assert report["scores"]["psnr"]["value"] == pytest.approx(20 * np.log10(255 / 4), abs=0.1)
    assert report["splits"]["group"]["b"]["psnr"]["n"] == 1
    assert report["scores"]["flicker_added"]["value"] < 0.2
    reference = report["reference"]
    assert reference["renders"] == {"psnr": 99.0, "psnr_first": 99.0, "ssim": 1.0, "flicker_added": 0.0}
    assert reference["shuffled"]["psnr"] < 15 and reference["shuffled"]["ssim"] < 0.2


def test_bytes_in_over_bytes_out():
    clips = [np.zeros(shape, np.uint8) for shape in ((17, 64, 64, 3), (5, 32, 32, 3))]
    found = compression(clips, VAEConfig(z=16).latent_shape)
    sizes = 17 * 64 * 64 * 3 + 5 * 32 * 32 * 3, 2 * 16 * (5 * 8 * 8 + 2 * 4 * 4)
    assert (found["frames"], found["latents"]) == sizes and found["ratio"] == pytest.approx(sizes[0] / sizes[1])


def test_folder_of_videos(tmp_path, rng):
    for name, count, fps in (("b.mp4", 40, 16), ("a.mp4", 7, 8)):
        write_video(tmp_path / name, rng.integers(0, 256, (count, 48, 64, 3), dtype=np.uint8), fps)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    clips, names = folder_clips(tmp_path, 10, 17, 32, 32, 8.0, 4)
    assert names == ["a.mp4", "b.mp4"]
    assert [clip.shape for clip in clips] == [(5, 32, 32, 3), (17, 32, 32, 3)]
    assert len(folder_clips(tmp_path, 1, 17, 32, 32, 8.0, 4)[0]) == 1
    (clip,) = folder_clips(tmp_path, 1, 17, 32, 32, 8.0, 4)[0]
    read = read_video(tmp_path / "a.mp4").frames
    assert (clip == np.stack([fit(frame, 32, 32) for frame in read[:5]])).all()
    with pytest.raises(MissingError, match="holds no videos"):
        folder_clips(tmp_path / "none", 1, 17, 32, 32, 8.0, 4)


def test_no_more_of_a_film_is_read_than_is_used(tmp_path, rng, monkeypatch):
    """Five frames at 8 a second of a film of 16: the ninth is the fifth, and the tenth says that it is over."""
    write_video(tmp_path / "a.mp4", rng.integers(0, 256, (90, 48, 64, 3), dtype=np.uint8), 16)
    decoded = []

    def watched(path):
        for item in iterate_video(path):
            decoded.append(item[1])
            yield item

    monkeypatch.setattr(reconstruction, "iterate_video", watched)
    (clip,), _ = folder_clips(tmp_path, 1, 5, 32, 32, 8.0, 4)
    assert clip.shape == (5, 32, 32, 3) and len(decoded) == 10
