"""LoRA for Wan 2.1 I2V 14B (or another image-to-video model of the family) on a folder of your own clips and captions.

    dit-video train experiments/wan_i2v_lora.py --init models/wan-i2v --data.path clips/ --workdir runs/move
    dit-video generate "the camera turns around it" --image photo.jpg --model models/wan-i2v --lora runs/move/lora

`models/wan-i2v` is a folder in the diffusers layout. A clip's first frame is what is given of it, as channels beside
the noise and as CLIP's tokens; FLF2V is given the last frame too. Of the two denoisers of Wan 2.2 I2V A14B one is tuned
at a time, `--objective.expert 1` (near noise) or `2` (near data); the second's adapters are used with
`--lora runs/move/lora@2`. Rank, targets, bits of the frozen weights, and all of the denoiser in place of adapters: as
in wan_lora. Adapters of rank 16 on both attentions are 65.5 M parameters. Not run on an accelerator yet: the step was
traced at these sizes, and trained at small ones.
"""

from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder
from dit_video.data.pool import Pool
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
                in_channels=36,
                heads=40,
                depth=40,
                ffn_dim=13824,
                image_dim=1280,
                dtype="bfloat16",
                remat="block",
            ),
            text=TextConfig(dtype="bfloat16"),
            path=RectifiedFlow(shift=5.0),
            # Pictures are given beside the noise; no part of the latents is known.
            conditions=Conditions(text=1.0, first=0.0, picture=0.0, tail=0.0, tail_with_sink=0.0, window=0.0),
            crops=(Crop(13, 1.0),),
            pool=Pool(clips=64, reuse=8.0, pictures=0, chunk=1),
            tokens=256,
        ),
        lora=LoRA(rank=16, alpha=16.0),
        keep="int8",
    ),
    data=Folder(fps=16.0),  # as these models were trained
    buckets=(Bucket(49, 480, 832), Bucket(49, 832, 480)),
    optimizer=Optimizer(kind="adamw", lr=1e-4, warmup=50, weight_decay=0.0),
    steps=2000,
    batch=8,
    ema=(0.99,),
    checkpoint_every=200,
    sample_every=0,
)
