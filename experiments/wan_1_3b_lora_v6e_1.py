"""LoRA for Wan 2.1 T2V 1.3B at 832x480, 81 frames, on one chip.

1 chip of v6e, v6e:1x1.

    dit-video data build clips gs://BUCKET/latents --model models/wan --buckets 81x480x832,81x832x480 --fps 16
    dit-video plan experiments/wan_1_3b_lora_v6e_1.py
    dit-video launch wan_1_3b_lora_v6e_1 --target gke --workdir gs://BUCKET/runs --image REGISTRY/dit_video \
        --mount gs://BUCKET:/bucket --init /bucket/models/wan --data gs://BUCKET/latents
    dit-video train experiments/wan_1_3b_lora_v6e_1.py --init models/wan \
        --data gs://BUCKET/latents --workdir runs/style

`experiments/wan_lora.py` is the same from a folder of clips, at 49 frames.
Planned with libtpu 0.0.42: 28.5 of 32 GiB, 3.4 s a step, MFU 18 %. Not run yet: see the limits in the README.
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
from dit_video.train.lora import FineTune, LoRA
from dit_video.train.optim import Optimizer

EXPERIMENT = Experiment(
    objective=FineTune(
        denoise=Denoise(
            dit=DiTConfig(dtype="bfloat16", remat="attention", attention="splash_wide"),
            text=TextConfig(dtype="bfloat16"),
            path=RectifiedFlow(shift=5.0),
            # Wan 2.1 knows one time for all tokens: nothing is given.
            conditions=Conditions(text=1.0, first=0.0, picture=0.0, tail=0.0, tail_with_sink=0.0, window=0.0),
            crops=(Crop(21, 0.9), Crop(1, 0.1)),
            tokens=256,
        ),
        lora=LoRA(rank=16, alpha=16.0),
    ),
    data=Latents(path="latents"),
    buckets=(Bucket(81, 480, 832, 0.6), Bucket(81, 832, 480, 0.3), Bucket(1, 480, 832, 0.1)),
    optimizer=Optimizer(kind="adamw", lr=1e-4, warmup=50, weight_decay=0.0),
    steps=2_000,
    batch=1,
    ema=(0.999,),
    checkpoint_every=500,
    eval_every=500,
    sample_every=0,
    mesh=MeshShape(),
)
