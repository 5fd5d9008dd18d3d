"""A small frozen network whose features say how alike two sets of clips are, where the judge's words do not reach.

Nine frames at 32x32 pixels; three convolutions in space and two in time, all of random weights; then one layer of 40
features, fitted once to name what is in renders (`tools/fit_features.py`). It has never seen a generated clip, and it
stays as it is.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

FRAMES, SIDE, FEATURES = 9, 32, 40
_CHANNELS = (3, 16, 32, 48)
_AT_ONCE = 32

Weights = Mapping[str, Float[Array, "..."]]


def convolutions(seed: int = 20261) -> dict[str, Float[np.ndarray, "..."]]:
    """Random weights of the convolutions, He et al. 2015."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return np.float32(rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1])))

    weights = {f"space{i}": draw(3, 3, _CHANNELS[i], _CHANNELS[i + 1]) for i in range(3)}
    weights |= {f"time{i}": draw(3, 48, 48) for i in range(2)}
    return weights | {f"{name}_bias": 0.2 * draw(w.shape[-1], 1)[:, 0] for name, w in weights.items()}


def pooled(weights: Weights, clips: Float[Array, "B 9 32 32 3"]) -> Float[Array, "B 768"]:
    """What the convolutions see in clips with pixels in [-1, 1]: mean and largest value of each channel in the quarters
    of the picture, in both halves of the time."""
    count = len(clips)
    x = clips.reshape(-1, SIDE, SIDE, 3)
    for i in range(3):
        x = jax.lax.conv_general_dilated(
            x, weights[f"space{i}"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + weights[f"space{i}_bias"])
    x = x.reshape(count, FRAMES, 4, 4, 48).transpose(0, 2, 3, 1, 4).reshape(-1, FRAMES, 48)
    for i in range(2):
        x = jax.lax.conv_general_dilated(
            x, weights[f"time{i}"], (1 + i,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        x = jax.nn.relu(x + weights[f"time{i}_bias"])
    x = x.reshape(count, 2, 2, 2, 2, -1, 48)
    early, late = x[..., :3, :], x[..., 2:, :]
    parts = [own(half, axis=(2, 4, 5)) for half in (early, late) for own in (jnp.mean, jnp.max)]
    return jnp.concatenate(parts, -1).reshape(count, -1)


@cache
def frozen() -> dict[str, np.ndarray]:
    """The weights that the package carries."""
    with np.load(files("dit_video.evals").joinpath("features.npz")) as stored:
        return {name: stored[name].astype(np.float32) for name in stored.files}


@jax.jit
def _features(weights: Weights, clips: UInt8[Array, "B T H W 3"]) -> Float[Array, "B 40"]:
    small = jax.image.resize(clips / 127.5 - 1, (len(clips), FRAMES, SIDE, SIDE, 3), "linear")
    return (pooled(weights, small) - weights["middle"]) @ weights["out"]


def features(clips: Sequence[UInt8[np.ndarray, "T H W 3"]]) -> Float[np.ndarray, "N 40"]:
    """Of clips of any length and size."""
    out = []
    for clip in clips:
        chosen = np.round(np.linspace(0, len(clip) - 1, FRAMES)).astype(int)
        out.append(clip[chosen])
    parts = [np.zeros((0, FEATURES), np.float32)]
    for first in range(0, len(out), _AT_ONCE):
        some = out[first : first + _AT_ONCE]
        full = some + some[-1:] * (min(_AT_ONCE, len(out)) - len(some))  # one shape is compiled only
        parts.append(np.asarray(_features(frozen(), np.stack(full)))[: len(some)])
    return np.concatenate(parts)
