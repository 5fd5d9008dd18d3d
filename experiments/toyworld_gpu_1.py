"""Toyworld on one GPU: a denoiser ten times as large, from random weights, on batches eight times as large.

1 GPU of 16 GB or more.

    dit-video data build toyworld latents --count 200000
    dit-video plan toyworld_gpu_1
    dit-video train toyworld_gpu_1 --workdir runs/a

`plan` without a topology asks whether it fits the GPU that is there. Attention is the plain one: there are 80 to 160
tokens a clip. Not run yet: see the limits in the README.
"""

from dataclasses import replace

from dit_video.core.config import load_experiment
from dit_video.data.latents import Latents
from dit_video.models.dit import DiTConfig
from dit_video.models.text import TextConfig

toyworld = load_experiment("toyworld")

EXPERIMENT = replace(
    toyworld,
    objective=replace(
        toyworld.objective,
        dit=DiTConfig(
            heads=8, head_dim=64, depth=12, ffn_dim=2048, text_dim=256, predicts="data", dtype="bfloat16", remat="dots"
        ),
        text=TextConfig(vocab=768, width=256, heads=4, head_dim=64, ffn_dim=512, depth=4),
    ),
    data=Latents(path="latents"),
    steps=40_000,
    batch=256,
    cores=False,
    ema=(0.999, 0.9998),
    eval_every=1000,
    sample_every=4000,
    checkpoint_every=2000,
)
