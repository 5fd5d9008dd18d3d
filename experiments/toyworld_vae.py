"""The VAE on board: a small causal 3-D VAE, trained on crops of the procedural world; below stands its last stage.

    dit-video train toyworld_vae --workdir runs/vae --init runs/vae2 --seed 2 --data.seed 2

Its folder `runs/vae/vae` is what a denoiser's run takes with `--vae runs/vae`. `--data.seed` makes other clips,
held-out ones too: their loss is then that of another test. The stages before it, from random weights:

    w=objective.weights; plain="--$w.equivariance 0 --$w.jitter 0"
    first="train toyworld_vae --workdir runs/vae1 --batch 8 $plain --$w.kl 1e-5"
    first="$first --optimizer.lr 1e-3 --optimizer.adam_lr 1.4e-3"
    dit-video $first --steps 1600 --$w.l1 1 --$w.l2 2 --$w.temporal 0.5 --$w.gradient 0.5
    dit-video $first --steps 2263
    dit-video train toyworld_vae --workdir runs/vae2 --init runs/vae1 --seed 1 --data.seed 1 --steps 10000 $plain

On two CPU cores beside other work the last two took 49 and 46 minutes. Reached: 31.3 dB on 64 held-out whole clips
(their first frames 32.3, the worst clip 25.1), after 28.8 and 31.1 dB at the end of the stages before
(`experiments/LEDGER.md`). Their seeds were not kept, nor the learning rates of the last: `lr` is that of the stage
before it, `adam_lr` in proportion.
"""

from dit_video.data.buckets import Bucket
from dit_video.data.loader import Toyworld
from dit_video.models.vae import VAEConfig
from dit_video.train.experiment import Experiment
from dit_video.train.optim import Optimizer
from dit_video.train.vae import Cut, Reconstruct, VAEObjective

EXPERIMENT = Experiment(
    objective=Reconstruct(
        vae=VAEConfig(base=16, decoder_base=16, mult=(1, 2, 4), res_blocks=1, temporal=(True, True), patch=2),
        weights=VAEObjective(l1=0.4, l2=8.0, temporal=0.3, gradient=0.3, kl=3e-4, equivariance=0.4, jitter=0.08),
        cuts=(Cut(9, 32, share=0.8), Cut(17, 0, clips=0.25, share=0.2)),
    ),
    data=Toyworld(plain=0.35),
    buckets=(Bucket(17, 64, 64, 0.5), Bucket(17, 80, 48, 0.25), Bucket(17, 48, 80, 0.25)),
    optimizer=Optimizer(kind="muon", lr=8e-4, adam_lr=1.1e-3, warmup=60, decay_part=0.8),
    steps=8000,
    batch=4,
    ema=(0.99, 0.998),
    sample_every=0,
)
