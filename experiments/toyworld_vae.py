"""The VAE on board: a small causal 3-D VAE, trained on crops of the procedural world.

    dit-video train toyworld_vae --workdir runs/vae

Its folder `runs/vae/vae` is what a denoiser's run takes with `--vae runs/vae`; the next stage starts from it with
`--init runs/vae --workdir runs/vae2 --seed 1 --data.seed 1`. `--data.seed` makes other clips, held-out ones too: their
loss is then that of another test.
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
        weights=VAEObjective(l1=0.4, l2=8.0, temporal=0.3, gradient=0.3, kl=1e-5),
        cuts=(Cut(9, 32, share=0.8), Cut(17, 0, clips=0.25, share=0.2)),
    ),
    data=Toyworld(plain=0.35),
    buckets=(Bucket(17, 64, 64, 0.5), Bucket(17, 80, 48, 0.25), Bucket(17, 48, 80, 0.25)),
    optimizer=Optimizer(kind="muon", lr=1e-3, adam_lr=1.4e-3, warmup=60, decay_part=0.8),
    steps=5000,
    batch=8,
    ema=(0.99, 0.998),
    sample_every=0,
)
