"""Generation with Wan 2.1 T2V 14B at 1280x720, 81 frames, 50 steps with guidance; or adapters for it.

8 chips of v6e, v6e:2x4: prompt and negative prompt on 4 chips each, tokens split between the 4.

    dit-video data build clips gs://BUCKET/latents --model models/wan14b --buckets 81x720x1280,81x1280x720 --fps 16
    dit-video plan experiments/wan_14b_generate_v6e_8.py
    dit-video launch wan_14b_generate_v6e_8 --target gke --workdir gs://BUCKET/runs --image REGISTRY/dit_video \
        --mount gs://BUCKET:/bucket --init /bucket/models/wan14b --data gs://BUCKET/latents
    dit-video train experiments/wan_14b_generate_v6e_8.py --init models/wan14b \
        --data gs://BUCKET/latents --workdir runs/style14b

`dit-video plan experiments/wan_14b_generate_v6e_8.py --generate` plans for a clip, which on the chips is

    dit-video generate "a fox in the snow" --model models/wan14b --mesh data=2,context=4 \
        --height 720 --width 1280 --num_frames 81

Neither planned to the end nor run yet: see the limits in the README.
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
            dit=DiTConfig(
                heads=40, depth=40, ffn_dim=13824, dtype="bfloat16", remat="attention", attention="splash_wide"
            ),
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
    buckets=(Bucket(81, 720, 1280, 0.6), Bucket(81, 1280, 720, 0.3), Bucket(1, 720, 1280, 0.1)),
    optimizer=Optimizer(kind="adamw", lr=1e-4, warmup=50, weight_decay=0.0),
    steps=2_000,
    batch=2,
    ema=(0.999,),
    checkpoint_every=500,
    eval_every=500,
    sample_every=0,
    mesh=MeshShape(data=2, context=4),
)
