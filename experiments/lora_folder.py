"""LoRA for the weights on board, on a folder of your own clips and captions: adapters of a megabyte.

    dit-video train experiments/lora_folder.py --data.path clips/ --workdir runs/style
    dit-video generate "a red circle moves right" --lora runs/style/lora

`clips/` as in finetune_folder. The denoiser and the text encoder stay as they are.
"""

from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder
from dit_video.data.pool import Pool
from dit_video.diffusion.flow import RectifiedFlow
from dit_video.train.conditions import Conditions
from dit_video.train.denoise import Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.lora import FineTune, LoRA
from dit_video.train.optim import Optimizer

EXPERIMENT = Experiment(
    objective=FineTune(
        denoise=Denoise(
            path=RectifiedFlow(shift=3.0, least=0.4),
            conditions=Conditions(),
            crops=(Crop(5, 0.9), Crop(1, 0.1)),
            pool=Pool(clips=256, reuse=8.0),
        ),
        lora=LoRA(rank=8, alpha=8.0, targets=("attn", "cross", "up", "down")),
        keep="float32",
    ),
    data=Folder(),
    buckets=(Bucket(17, 64, 64), Bucket(17, 80, 48), Bucket(17, 48, 80), Bucket(33, 64, 64), Bucket(1, 64, 64)),
    optimizer=Optimizer(kind="adamw", lr=1e-3, warmup=20, weight_decay=0.0),
    steps=500,
    batch=16,
    ema=(0.95, 0.99),
    init="board",
    checkpoint_every=100,
    sample_every=250,
)
