"""Fine-tune the weights on board on a folder of your own clips and captions.

    dit-video train experiments/finetune_folder.py --data.path clips/ --workdir runs/mine

`clips/` holds `*.mp4` with a `*.txt` beside each, or a `metadata.jsonl` with `file_name` and `text`; pictures are
one-frame videos. Files are resampled to 8 frames a second (`--data.fps 16`: the run's own clips have 16 then), resized
and cropped to the nearest bucket. Videos of four seconds and more also teach how to go on from what was (`--extend`);
shorter ones cannot. A few hundred steps take minutes on two CPU cores.
"""

from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder
from dit_video.data.pool import Pool
from dit_video.diffusion.flow import RectifiedFlow
from dit_video.train.conditions import Conditions
from dit_video.train.denoise import Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.optim import Optimizer

EXPERIMENT = Experiment(
    objective=Denoise(
        path=RectifiedFlow(shift=3.0, least=0.4),
        conditions=Conditions(),
        crops=(Crop(5, 0.9), Crop(1, 0.1)),
        pool=Pool(clips=256, reuse=8.0),
    ),
    data=Folder(),
    buckets=(
        Bucket(17, 64, 64),
        Bucket(17, 80, 48),
        Bucket(17, 48, 80),
        Bucket(33, 64, 64),
        Bucket(1, 64, 64),
    ),
    optimizer=Optimizer(kind="adamw", lr=2e-4, warmup=20, decay_part=0.5),
    steps=500,
    batch=16,
    cores=True,
    ema=(0.95, 0.99),
    init="board",
    checkpoint_every=100,
    sample_every=250,
)
