"""Wan 2.1 T2V 1.3B from scratch at 832x480, 81 frames: every condition that sampling may meet is trained.

64 chips of v6e, v6e:8x8: the weights over all of them, a clip on each.

    dit-video data build clips gs://BUCKET/latents --model models/wan --buckets 81x480x832,81x832x480 --fps 16
    dit-video plan experiments/wan_1_3b_v6e_64.py
    dit-video launch wan_1_3b_v6e_64 --target gke --workdir gs://BUCKET/runs --image REGISTRY/dit_video \
        --mount gs://BUCKET:/bucket --init /bucket/models/wan --data gs://BUCKET/latents
    dit-video train experiments/wan_1_3b_v6e_64.py --init models/wan \
        --data gs://BUCKET/latents --workdir runs/wan

Text encoder and VAE are those of `models/wan` (diffusers layout).
Planned with libtpu 0.0.42: 20.8 of 32 GiB, 4.2 s a step, MFU 24 %. Not run yet: see the limits in the README.
"""

from dit_video.core.mesh import MeshShape
from dit_video.data.buckets import Bucket
from dit_video.data.latents import Latents
from dit_video.diffusion.flow import RectifiedFlow
from dit_video.models.dit import DiTConfig
from dit_video.models.text import TextConfig
from dit_video.train.conditions import Conditions
from dit_video.train.denoise import Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.lora import FineTune
from dit_video.train.optim import Optimizer

EXPERIMENT = Experiment(
    objective=FineTune(
        denoise=Denoise(
            dit=DiTConfig(dtype="bfloat16", remat="attention", attention="splash_wide"),
            text=TextConfig(dtype="bfloat16"),
            path=RectifiedFlow(shift=8.0),
            conditions=Conditions(),
            crops=(Crop(21, 0.9), Crop(1, 0.1)),
            tokens=256,
        ),
        lora=None,
        scratch=True,
    ),
    data=Latents(path="latents"),
    buckets=(Bucket(81, 480, 832, 0.6), Bucket(81, 832, 480, 0.3), Bucket(1, 480, 832, 0.1)),
    optimizer=Optimizer(kind="muon", lr=1e-3, adam_lr=3e-4, warmup=1000),
    steps=100_000,
    batch=64,
    ema=(0.999,),
    checkpoint_every=500,
    eval_every=500,
    sample_every=0,
    mesh=MeshShape(data=1, fsdp=-1),
)
