"""Fits the last layer of the small network of `dit_video.evals.features` and stores its weights.

    python tools/fit_features.py   # dit_video/evals/features.npz; under a minute on one core

Ridge regression from what random convolutions see in renders to the words of their scenes; the 40 directions in which
these predictions differ most are the features. They are never fitted again: numbers of different days could not be
compared.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.render import pack, render_at
from dit_video.data.toyworld.scene import Scene
from dit_video.data.toyworld.splits import sample_scene
from dit_video.evals.features import FEATURES, FRAMES, SIDE, convolutions, pooled

OUT = Path(__file__).resolve().parents[1] / "dit_video" / "evals" / "features.npz"
TIMES = np.float32(np.linspace(0, 2, FRAMES))  # of 17 frames at 8 a second
SCENES, BATCH = 4096, 64
RIDGES = (300.0, 1000.0, 3000.0, 10000.0)  # of standardised numbers; the one that predicts best is taken

WORDS = (
    *words.SHAPES, *(f"{colour} object" for colour in words.COLOURS), *words.SIZES, *words.MOTIONS,
    *(f"moves {direction}" for direction in words.DIRECTIONS), *words.BACKGROUNDS,
    *(f"light {light}" for light in words.LIGHTS), *(f"camera {camera}" for camera in words.CAMERAS), "2 objects",
)  # fmt: skip


def labels(scene: Scene) -> np.ndarray:
    """What there is, as zeros and ones: each word of the world, anywhere in the clip."""
    have = {scene.background, f"light {scene.light}", f"camera {scene.camera}", f"{len(scene.bodies)} objects"}
    for body in scene.bodies:
        have |= {body.shape, f"{body.colour} object", body.size, body.motion, f"moves {body.direction}"}
    return np.float64([word in have for word in WORDS])


def main() -> None:
    rng = np.random.default_rng(20261)
    scenes = [sample_scene(rng, "any", plain=0.15, two=0.35) for _ in range(SCENES)]
    weights = convolutions()

    @jax.jit
    def see(some):
        return pooled(weights, jax.vmap(lambda scene: render_at(scene, jnp.asarray(TIMES), SIDE, SIDE))(some))

    seen = np.concatenate([np.asarray(see(pack(scenes[i : i + BATCH]))) for i in range(0, SCENES, BATCH)])
    known = np.stack([labels(scene) for scene in scenes])
    x, y = seen.astype(np.float64), known / known.std(0)
    middle, scale = x.mean(0), x.std(0) + 1e-6
    x, y = (x - middle) / scale, y - y.mean(0)
    fit, rest = slice(0, SCENES * 4 // 5), slice(SCENES * 4 // 5, SCENES)
    square, across = x[fit].T @ x[fit], x[fit].T @ y[fit]
    tried = [np.linalg.solve(square + ridge * np.eye(x.shape[1]), across) for ridge in RIDGES]
    errors = [((x[rest] @ ways - y[rest]) ** 2).mean(0) for ways in tried]
    best = int(np.argmin([error.mean() for error in errors]))
    ways, explained = tried[best], 1 - errors[best] / (y[rest] ** 2).mean(0)
    print(f"ridge {RIDGES[best]:g}; share of the variance of each word that is explained in scenes not fitted:")
    print(", ".join(f"{word} {share:.2f}" for word, share in zip(WORDS, explained, strict=True)))
    predicted = x @ ways
    _, _, axes = np.linalg.svd(predicted - predicted.mean(0), full_matrices=False)
    out = ways @ axes[:FEATURES].T
    out = out / (x @ out).std(0) / scale[:, None]
    stored = weights | {"middle": middle, "out": out}
    np.savez_compressed(OUT, **{name: np.float32(value) for name, value in stored.items()})
    print(f"{OUT}: {OUT.stat().st_size / 1024:.0f} KiB, {out.shape[1]} features")


if __name__ == "__main__":
    main()
