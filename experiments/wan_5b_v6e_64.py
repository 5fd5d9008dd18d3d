"""Wan 2.2 TI2V 5B, fine-tuned whole at 1280x704, 121 frames, from text and from a first frame.

64 chips of v6e, v6e:8x8: the weights over all of them, a clip on each.

    dit-video data build clips gs://BUCKET/latents --model models/wan5b --buckets 121x704x1280,121x1280x704 --fps 24
    dit-video plan experiments/wan_5b_v6e_64.py
    dit-video launch wan_5b_v6e_64 --target gke --workdir gs://BUCKET/runs --image REGISTRY/dit_video \
        --mount gs://BUCKET:/bucket --init /bucket/models/wan5b --data gs://BUCKET/latents
    dit-video train experiments/wan_5b_v6e_64.py --init models/wan5b \
        --data gs://BUCKET/latents --workdir runs/wan5b

Planned with libtpu 0.0.42: 28.5 of 32 GiB, 5.9 s a step, MFU 28 %. Not run yet: see the limits in the README.
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
            dit=DiTConfig(
                in_channels=48,
                out_channels=48,
                heads=24,
                ffn_dim=14336,
                dtype="bfloat16",
                remat="attention",
                attention="splash_wide",
            ),
            text=TextConfig(dtype="bfloat16"),
            path=RectifiedFlow(shift=5.0),
            conditions=Conditions(text=0.5, first=0.5, picture=0.0, tail=0.0, tail_with_sink=0.0, window=0.0),
            crops=(Crop(31, 0.9), Crop(1, 0.1)),
            tokens=256,
        ),
        lora=None,
    ),
    data=Latents(path="latents"),
    buckets=(Bucket(121, 704, 1280, 0.6), Bucket(121, 1280, 704, 0.3), Bucket(1, 704, 1280, 0.1)),
    optimizer=Optimizer(kind="adamw", lr=1e-5, warmup=200),
    steps=10_000,
    batch=64,
    ema=(0.999,),
    checkpoint_every=500,
    eval_every=500,
    sample_every=0,
    mesh=MeshShape(data=1, fsdp=-1),
)
