"""LoRA for Wan 2.1 T2V 1.3B (or another text-to-video model of the family) on a folder of your own clips and captions.

    dit-video train experiments/wan_lora.py --init models/wan --data.path clips/ --workdir runs/style
    dit-video generate "a fox, in that style" --model models/wan --lora runs/style/lora

`models/wan` is a folder in the diffusers layout. Rank and targets: `--objective.lora.rank 32 --objective.lora.targets
attn,cross,up,down`; `--objective.keep int8` keeps the frozen weights in eight bits. Adapters of rank 16 on both
attentions are 11.8 M parameters; with `--objective.lora none` all of the denoiser learns. Of the two of Wan 2.2 T2V
A14B one is tuned at a time, `--objective.expert 1` (near noise) or `2` (near data); the second's adapters are used with
`--lora runs/style/lora@2`. Not run on an accelerator yet: the step was traced at these sizes, and trained at small
ones. TI2V 5B learns to go on from a first frame too, with `--objective.denoise.conditions.text 0.5
--objective.denoise.conditions.first 0.5 --data.fps 24`. For image-to-video models: wan_i2v_lora. For the weights on
board: lora_folder.
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
            dit=DiTConfig(dtype="bfloat16", remat="block"),
            text=TextConfig(dtype="bfloat16"),
            path=RectifiedFlow(shift=5.0),
            # Wan 2.1 knows one time for all tokens: nothing is given.
            conditions=Conditions(text=1.0, first=0.0, picture=0.0, tail=0.0, tail_with_sink=0.0, window=0.0),
            crops=(Crop(13, 0.9), Crop(1, 0.1)),
            pool=Pool(clips=64, reuse=8.0, pictures=0, chunk=1),
            tokens=256,
        ),
        lora=LoRA(rank=16, alpha=16.0),
    ),
    data=Folder(fps=16.0),  # as Wan 2.1 was trained; TI2V 5B of Wan 2.2: 24
    buckets=(Bucket(49, 480, 832), Bucket(49, 832, 480), Bucket(1, 480, 832)),
    optimizer=Optimizer(kind="adamw", lr=1e-4, warmup=50, weight_decay=0.0),
    steps=2000,
    batch=8,
    ema=(0.99,),
    checkpoint_every=200,
    sample_every=0,
)
