"""Starting noise, made on the host and keyed by (seed, clip, latent frame).

Frame f of clip i is a function of (seed, i, f) and the frame's shape alone: not of the batch, the length, the mesh or
the accelerator. So a longer clip starts as the shorter one does, and long noise can be made piece by piece.

The recipe, to be repeated anywhere: Philox4x64-10 with the two-word key `(seed, clip << 32 | frame)` and counter 0,
as in `numpy.random.Philox`; its 64-bit words in order, each as u = (word >> 11) / 2^53; pairs (u, w) of neighbours
give `sqrt(-2 log(1 - u)) * cos(2 pi w)`, then the same with sin (Box-Muller), in float64, rounded to float32, in
(H, W, C) order. NumPy promises the words for ever, unlike `Generator.standard_normal`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dit_video.core.errors import BadInput

MAX_SEED = 2**63 - 1


def check_seed(seed: int) -> int:
    """Raises BadInput for what is no whole number from 0 to 2^63-1."""
    if not isinstance(seed, (int, np.integer)):
        raise BadInput(f"seed={seed!r} must be one whole number; of several clips each has its own noise of it.")
    if not 0 <= seed <= MAX_SEED:
        raise BadInput(f"seed={seed} must lie in 0..2^63-1.")
    return int(seed)


def frame_noise(seed: int, clip: int, frame: int, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Standard normal numbers of one latent frame, float32 of `shape`."""
    check_seed(seed)
    if not (0 <= clip < 2**32 and 0 <= frame < 2**32):
        raise BadInput(f"clip={clip} and frame={frame} must lie in 0..2^32-1.")
    philox = np.random.Philox(key=np.array([seed, clip << 32 | frame], np.uint64))
    count = int(np.prod(shape))
    words = philox.random_raw(count + count % 2)
    uniform = (words >> np.uint64(11)) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[0::2])), 2 * np.pi * uniform[1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal.reshape(-1)[:count].astype(np.float32).reshape(shape)


def clip_noise(
    seed: int, clips: Sequence[int], frames: int, shape: tuple[int, int, int], first: int = 0
) -> Float[np.ndarray, "B T H W C"]:
    """Noise of several clips: frames `first` .. `first + frames - 1`, each of `shape` (H, W, C)."""
    return np.stack([np.stack([frame_noise(seed, i, first + f, shape) for f in range(frames)]) for i in clips])


def draw_seed() -> int:
    """A fresh seed, short enough to be typed again."""
    return int(np.random.SeedSequence().generate_state(1)[0])
