"""A trained denoiser twice as wide that does what it did (Net2Net: Chen, Goodfellow and Shlens 2016, arXiv 1511.05641).

    python tools/widen.py MODEL OUT
    dit-video train toyworld --init OUT --objective.dit.heads 8 --objective.dit.ffn_dim 1024 ...

Every feature is there twice, and what reads it takes half of each. Norms see the same mean and variance. Where a pair
is read, noise is added to the one weight and taken from the other: nothing changes while the two are equal, but each of
them gets another gradient, and they part.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dit_video.core.errors import BadInput
from dit_video.models.dit import DiTConfig

NOISE = 0.3  # of a kernel's standard deviation


def wider(cfg: DiTConfig) -> DiTConfig:
    """Twice the heads and twice the hidden width."""
    if cfg.image_dim or cfg.vace_layers:
        raise BadInput("only denoisers without image encoder and control branch are widened")
    return replace(cfg, heads=2 * cfg.heads, ffn_dim=2 * cfg.ffn_dim)


def widen(params: dict[str, Any], shapes: dict[str, Any], rng: np.random.Generator, path: tuple[str, ...] = ()) -> Any:
    """`params` of a denoiser in the `shapes` of the wider one. Axes that are larger there are doubled."""
    if isinstance(params, dict):
        return {k: widen(v, shapes[k], rng, (*path, k)) for k, v in sorted(params.items())}
    new = np.asarray(params, np.float32)
    for axis, (old, size) in enumerate(zip(new.shape, shapes.shape, strict=True)):
        if size == old:
            continue
        parts = 6 if path[0] == "time_proj" and axis == new.ndim - 1 else 1  # six modulations behind one another
        split = (*new.shape[:axis], parts, old // parts, *new.shape[axis + 1 :])
        new = np.concatenate([new.reshape(split)] * 2, axis + 1).reshape(
            *new.shape[:axis], size, *new.shape[axis + 1 :]
        )
    if path[-1] == "kernel" and new.shape[-2] != params.shape[-2]:
        half = new.shape[-2] // 2
        noise = rng.normal(0, NOISE * new.std(), (*new.shape[:-2], half, new.shape[-1])).astype(np.float32)
        new = (new + np.concatenate([noise, -noise], -2)) / 2
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder, or `board`")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from flax import nnx

    from dit_video.models.dit import DiT
    from dit_video.weights.folder import open_model, save_model

    model = open_model(None if args.model == "board" else args.model)
    cfg = wider(model.dit)
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0))), nnx.Param))
    dit = widen(model.params["dit"], shapes, np.random.default_rng(args.seed))
    save_model(replace(model, dit=cfg, params={**model.params, "dit": dit}, name=""), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
