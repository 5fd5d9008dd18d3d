"""Toyworld: the denoiser and the text encoder on board, trained on the procedural world against the VAE on board.

    dit-video train toyworld --workdir runs/a

Stages of one to two hours on two CPU cores beside other work (the longest took 107 minutes); the next starts from the
weights of the last with a fresh optimizer:

    dit-video train toyworld --workdir runs/b --init runs/a --seed 1 --data.seed 1

`--data.seed` makes other clips; without it a stage sees those of the last again. The held-out clips are others too,
so their loss is that of another test.

The last two stages on board, in full (76 and 102 minutes beside other work; each time the hard motions first, alone,
then among all):

    few=still=0.3,moves=0.4,grows=0.3,shrinks=0.3
    dit-video data build toyworld B --count 24576 --seed 22 --plain 0.85 --held_out 0.01 \\
        --often $few,bounces=2,circles=3,spins=2,circle=1.5,square=1.5
    few=still=0.2,moves=0.3,grows=0.2,shrinks=0.2
    dit-video data build toyworld C --count 20480 --seed 23 --plain 0.85 --held_out 0.01 \\
        --often $few,bounces=2,circles=4,spins=2.5,circle=1.5,star=1.5
    dit-video data build toyworld S --count 8192 --seed 51 --plain 0.9 --two 0.1 --buckets 17x64x64 --held_out 0.002 \\
        --often still=0.25,moves=0,grows=0,shrinks=0,bounces=0.5,circles=2,spins=3
    dit-video data build toyworld T --count 8192 --seed 31 --plain 0.85 --buckets 33x64x64 --held_out 0.002 \\
        --often circles=2,spins=2,star=1.5
    dit-video data merge U B C S T
    c=objective.conditions; none="--$c.picture 0 --$c.tail 0 --$c.tail_with_sink 0 --$c.window 0"
    bf16="--matmul_precision bfloat16"
    hard="$bf16 --optimizer.warmup 50 --optimizer.decay_part 0.4 --$c.text 0.8 --$c.first 0.2 $none"
    all="$bf16 --$c.text 0.5 --$c.first 0.13 --$c.picture 0.09 --$c.tail 0.12 \\
        --$c.tail_with_sink 0.12"
    dit-video train toyworld --workdir hard --init board --data S --steps 800 --seed 61 $hard
    python tools/average.py board hard@0.99 between
    dit-video train toyworld --workdir last --init between --data U --steps 4000 --seed 67 $all

    dit-video data build toyworld V --count 12288 --seed 81 --plain 0.9 --buckets 17x64x64 --held_out 0.002 \\
        --often still=0.2,moves=0.4,grows=0.2,shrinks=0.2,bounces=3,circles=3,spins=2.5,star=3,square=1.5
    dit-video data merge W U V
    dit-video train toyworld --workdir hard2 --init last --data V --steps 550 --seed 83 $hard
    python tools/average.py last hard2@0.99 between2
    dit-video train toyworld --workdir last2 --init between2 --data W --steps 4600 --seed 89 $all

Stages before it learned from other clips in the same way (`experiments/LEDGER.md`); once 4096 clips of circles and
squares alone parted the two words, which were one to the denoiser (`tools/words.py` shows such pairs). Reached, of 96
plain prompts: colour 99 %, direction 93, shape 91, motion 91, all of it 84; from a given first frame motion 91.

The first stages of the weights on board were run at half the width (heads 4, ffn_dim 512, lr 2e-3), where a step takes
a third of the time; `tools/widen.py` made of them where the wide stages start. On a CPU with AMX a step takes four
fifths of the time with `--matmul_precision bfloat16`.
"""

from dit_video.data.buckets import Bucket
from dit_video.data.loader import Toyworld
from dit_video.data.pool import Pool
from dit_video.diffusion.flow import RectifiedFlow
from dit_video.models.dit import DiTConfig
from dit_video.models.text import TextConfig
from dit_video.train.conditions import Conditions
from dit_video.train.denoise import Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.optim import Optimizer
from dit_video.weights.model import Defaults

EXPERIMENT = Experiment(
    objective=Denoise(
        dit=DiTConfig(heads=8, head_dim=32, depth=6, ffn_dim=1024, text_dim=128, predicts="data", remat="dots"),
        text=TextConfig(vocab=768, width=128, heads=4, head_dim=32, ffn_dim=256, depth=2),
        # One time in thirty above .98: sampling starts there. Below .2 the VAE's decoder mends what is wrong.
        path=RectifiedFlow(shift=3.0, mean=0.1, std=1.4, least=0.2),
        conditions=Conditions(text=0.55, first=0.15, picture=0.1, tail=0.08, tail_with_sink=0.08, window=0.04),
        crops=(Crop(5, 0.85), Crop(9, 0.10), Crop(1, 0.05)),
        pool=Pool(clips=1024, reuse=8.0),
        tokenizer="board",
        defaults=Defaults(guidance=2.0),
    ),
    data=Toyworld(plain=0.75, two=0.2),
    buckets=(
        Bucket(17, 64, 64, 0.65),
        Bucket(33, 64, 64, 0.15),
        Bucket(17, 80, 48, 0.1),
        Bucket(17, 48, 80, 0.1),
    ),
    optimizer=Optimizer(kind="muon", lr=1.4e-3, adam_lr=7e-4, warmup=100, decay_part=0.6),
    steps=2600,
    batch=32,
    cores=True,
    ema=(0.99, 0.998),
    prompts=(
        "a red circle moves right",
        "a blue square moves up",
        "a yellow star spins",
        "a green triangle shrinks",
        "a white ring bounces",
        "a pink circle moves in a circle",
    ),
    sample_every=1000,
)
