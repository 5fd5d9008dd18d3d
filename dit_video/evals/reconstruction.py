"""How much the VAE loses: clips sent through it, against themselves."""

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from dit_video.core.errors import DitVideoError, MissingError
from dit_video.core.log import Progress, log
from dit_video.data.folder import MOVING_SUFFIXES
from dit_video.data.scenes import at_rate, fit
from dit_video.data.toyworld import scene as words
from dit_video.data.video import iterate_video
from dit_video.evals import quality
from dit_video.evals.measure import measure
from dit_video.evals.prompts import suite
from dit_video.evals.references import renders
from dit_video.evals.score import mark, means

Frames = UInt8[np.ndarray, "T H W 3"]
_AT_ONCE = 4  # clips of one size through the VAE
_SIGMA, _REACH = 1.5, 3.5  # of SSIM's window, 11 pixels wide


def psnr(a: UInt8[np.ndarray, "*n 3"], b: UInt8[np.ndarray, "*n 3"]) -> float:
    """Peak signal to noise of two pictures, in dB; 99 if they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return min(99.0, 10 * np.log10(255**2 / error)) if error else 99.0


def ssim(a: UInt8[np.ndarray, "*n H W 3"], b: UInt8[np.ndarray, "*n H W 3"]) -> float:
    """Structural similarity, mean over frames and channels: Gaussian window of 1.5 pixels cut at 11, K 0.01 and 0.03
    (Wang et al. 2004, equation 13); the rim where the window hangs over is left out."""
    x, y = a.astype(np.float64), b.astype(np.float64)

    def mean(z: Float[np.ndarray, "*n H W 3"]) -> Float[np.ndarray, "*n h w 3"]:
        for axis in (-3, -2):
            z = ndimage.gaussian_filter1d(z, _SIGMA, axis=axis, truncate=_REACH)
        rim = int(_SIGMA * _REACH + 0.5)
        return z[..., rim:-rim, rim:-rim, :]

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float((((2 * mx * my + c1) * (2 * both + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def added_flicker(before: Frames, after: Frames) -> float:
    """Mean absolute change between two frames, in levels, of what was changed: 0 for an error that stays."""
    error = after.astype(np.int16) - before.astype(np.int16)
    return float(np.abs(np.diff(error, axis=0)).mean()) if len(error) > 1 else 0.0


def compression(clips: Sequence[Frames], latent_shape: Callable[[int, int, int], tuple[int, ...]]) -> dict[str, float]:
    """Bytes of the frames over those of their latents in float16, as encoded clips are kept."""
    frames = sum(clip.nbytes for clip in clips)
    latents = 2 * sum(int(np.prod(latent_shape(*clip.shape[:3]))) for clip in clips)
    return {"frames": frames, "latents": latents, "ratio": frames / latents}


def evaluate(
    reconstruct: Callable[[np.ndarray], np.ndarray],
    clips: Sequence[Frames],
    groups: Sequence[str],
    progress: Progress,
) -> tuple[dict[str, Any], list[Frames]]:
    """The report and the clips that came back.

    reconstruct: uint8 (N, T, H, W, 3) to the same, through the VAE. groups: a name for each clip; scores are split by
    it. Clips of one size are sent together, a few at a time. `reference`: what a VAE gets that loses nothing
    ("renders": the clips themselves), and each clip that came back against another of its size ("shuffled").
    """
    back: list[Any] = [None] * len(clips)
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, clip in enumerate(clips):
        sizes.setdefault(clip.shape, []).append(i)
    with progress.phase("reconstruct", steps=len(clips)) as tick:
        for own in sizes.values():
            for first in range(0, len(own), _AT_ONCE):
                some = own[first : first + _AT_ONCE]
                full = some + some[-1:] * (min(_AT_ONCE, len(own)) - len(some))  # one shape is compiled only
                for i, clip in zip(some, reconstruct(np.stack([clips[i] for i in full])), strict=False):
                    back[i] = clip
                    tick()
    numbers = _numbers(list(zip(clips, back, strict=True)))
    turned = [(clips[own[k - 1]], back[own[k]]) for own in sizes.values() if len(own) > 1 for k in range(len(own))]
    reference = {
        name: {key: round(float(np.mean(each)), 4) for key, each in _numbers(pairs).items() if each}
        for name, pairs in (("renders", [(clip, clip) for clip in clips]), ("shuffled", turned))
    }

    def scores(which: Sequence[int]) -> dict[str, Any]:
        return {name: quality.average([each[i] for i in which]) for name, each in numbers.items()}

    those = {name: [i for i, group in enumerate(groups) if group == name] for name in dict.fromkeys(groups)}
    worst = [int(i) for i in np.argsort(numbers["psnr"])]
    report = {
        "suite": "reconstruction", "count": len(clips), "scores": scores(range(len(clips))),
        "splits": {"group": {name: scores(own) for name, own in those.items()}} if len(those) > 1 else {},
        "reference": reference,
        "clips": [{"group": groups[i]} | {name: round(own[i], 4) for name, own in numbers.items()}
                  for i in range(len(clips))],
        "worst": worst[:16],
    }  # fmt: skip
    return report, back


def _numbers(pairs: Sequence[tuple[Frames, Frames]]) -> dict[str, list[float]]:
    """Of each pair of a clip and another."""
    return {
        "psnr": [psnr(a, b) for a, b in pairs],
        "psnr_first": [psnr(a[0], b[0]) for a, b in pairs],
        "ssim": [ssim(a, b) for a, b in pairs],
        "flicker_added": [added_flicker(a, b) for a, b in pairs],
    }


def evaluate_toyworld(
    reconstruct: Callable[[np.ndarray], np.ndarray],
    count: int,
    frames: int,
    height: int,
    width: int,
    fps: float,
    progress: Progress,
) -> tuple[dict[str, Any], list[Frames]]:
    """Renders of the fixed prompts of the whole world; textured backgrounds apart. `judge`: what is still read right
    in the clips that came back, the best that a model can reach which makes its clips with this VAE."""
    asked = suite(count, "world", height, width)
    with progress.phase("render"):
        clips = list(renders([one.scene for one in asked], frames, height, width))
    groups = ["textured" if one.scene.background in words.PATTERNS else "plain" for one in asked]
    report, back = evaluate(reconstruct, clips, groups, progress)
    with progress.phase("measure", steps=count) as tick:
        marks = []
        for clip, one in zip(back, asked, strict=True):
            marks.append(mark(measure(clip, fps), one))
            tick()
    return report | {"judge": means(marks)}, back


def folder_clips(
    folder: Path, count: int, frames: int, height: int, width: int, fps: float, stride: int
) -> tuple[list[Frames], list[str]]:
    """The beginnings of the first videos of a folder, by name, and their names: resampled to fps, scaled and cropped to
    the size, no more being read than that; of a shorter one as many frames (a multiple of stride, plus one) as there
    are. What does not decode is named and left out. Raises `MissingError` if nothing is left."""
    clips: list[Frames] = []
    names: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in MOVING_SUFFIXES or len(clips) == count:
            continue
        try:
            with closing(iterate_video(path)) as footage:
                shown = at_rate(((frame, time) for frame, time, *_ in footage), fps)
                clip = [fit(frame, height, width) for frame, _ in islice(shown, frames)]
        except DitVideoError as error:
            log.warning("left out: %s", error)
            continue
        if not clip:
            log.warning("left out: %s: no video frame in it", path)
            continue
        clips.append(np.stack(clip[: 1 + (len(clip) - 1) // stride * stride]))
        names.append(path.name)
    if not clips:
        raise MissingError(f"{folder} holds no videos: looked for {', '.join(MOVING_SUFFIXES)}.")
    return clips, names
