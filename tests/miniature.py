"""A whole model in miniature, with random weights: the real path, in seconds."""

import jax
import numpy as np
from flax import nnx

from dit_video.models import tokenizer
from dit_video.models.dit import DiTConfig
from dit_video.models.text import TextConfig
from dit_video.models.vae import VAEConfig
from dit_video.weights.model import Defaults, Model, abstract

DIT = DiTConfig(
    in_channels=4, out_channels=4, heads=2, head_dim=16, depth=2, ffn_dim=48, freq_dim=16, text_dim=24, text_len=32
)
VAE = VAEConfig(base=4, z=4, mult=(1, 2, 2), temporal=(True, True), res_blocks=1, patch=2)
TEXT = TextConfig(vocab=120, width=24, heads=2, head_dim=12, ffn_dim=32, depth=1)
CONFIGS = {"dit": DIT, "vae": VAE, "text": TEXT}
CAPTIONS = [
    f"a {c} {s} moves {d}"
    for c in ("red", "green", "blue")
    for s in ("circle", "star")
    for d in ("left", "right", "up")
]


def random_weights(cfg, seed):
    """All weights random, the ones that training starts at zero too, so that every path matters."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        scale = leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.1
        centre = 1.0 if "scale" in name or "gamma" in name else 0.0
        return (centre + scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map_with_path(draw, nnx.to_pure_dict(nnx.state(abstract(cfg), nnx.Param)))


def miniature() -> Model:
    params = {part: random_weights(cfg, seed) for seed, (part, cfg) in enumerate(CONFIGS.items())}
    words = tokenizer.train(CAPTIONS * 3, 120)
    defaults = Defaults(
        height=32, width=32, num_frames=5, max_frames=9, steps=3, guidance=2.0, sizes=((32, 32), (48, 32), (32, 48))
    )
    scheduler = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0}
    return Model(**CONFIGS, params=params, tokenizer=words, scheduler=scheduler, defaults=defaults, name="tiny")
