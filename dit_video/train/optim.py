"""Optimizers: AdamW and Muon by the names of the parameters, warm-up and decay, clipping.

Muon (Jordan et al. 2024) orthogonalises the update of hidden matrices; its step is scaled to AdamW's root mean square
(arXiv 2502.16982), so one learning rate serves both. Embeddings, heads, norms, biases and tables take AdamW.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from dit_video.core.errors import BadInput
from dit_video.weights.names import keys_of


@dataclass(frozen=True)
class Optimizer:
    """AdamW, or Muon for hidden matrices with AdamW for the rest.

    The learning rate rises over `warmup` steps, holds, and falls over the last `decay_part` of the run to zero.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    adam_lr: float | None = None  # with Muon: of what AdamW takes; None: `lr`
    warmup: int = 100  # steps
    decay: Literal["none", "linear", "cosine"] = "linear"
    decay_part: float = 0.5
    weight_decay: float = 0.01  # of matrices only, times the learning rate
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.95  # Muon's
    newton_schulz: int = 5  # iterations of Muon's orthogonalisation
    clip: float = 1.0  # global norm of the gradient; inf: as it is

    def __post_init__(self) -> None:
        words = {"kind": ("adamw", "muon"), "decay": ("none", "linear", "cosine")}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise BadInput(f"optimizer.{name}={getattr(self, name)!r}: choose one of {', '.join(known)}")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                off = "inf leaves gradients as they are" if name == "clip" else "nothing would be learnt"
                raise BadInput(f"optimizer.{name}={getattr(self, name)}: must be above 0 ({off})")
        if self.warmup < 0:
            raise BadInput(f"optimizer.warmup={self.warmup}: a number of steps, or 0")

    def schedule(self, steps: int) -> optax.Schedule:
        """Factor in [0, 1] on the learning rates, at each step of a run of `steps`. Raises `BadInput` when warm-up
        and decay do not fit."""
        if not 0 <= self.decay_part <= 1:
            raise BadInput(f"optimizer.decay_part={self.decay_part}: a part of the run, 0 to 1")
        warmup = min(self.warmup, steps)
        decay = 0 if self.decay == "none" else min(round(steps * self.decay_part), steps - warmup)
        parts = [optax.linear_schedule(1 / max(warmup, 1), 1.0, max(warmup - 1, 1)), optax.constant_schedule(1.0)]
        ends = [warmup]
        if decay > 0:
            # The last step still moves: the zero lies one step beyond the run.
            falling = (
                optax.linear_schedule(1.0, 0.0, decay)
                if self.decay == "linear"
                else optax.cosine_decay_schedule(1.0, decay)
            )
            parts, ends = [*parts, falling], [*ends, steps - decay]
        return optax.join_schedules(parts, ends)

    def build(self, steps: int) -> optax.GradientTransformation:
        """The whole chain. Clipping acts on the global norm, before either optimizer sees a gradient."""
        factor = self.schedule(steps)
        rate = lambda lr: lambda step: lr * factor(step)  # noqa: E731
        if self.kind == "adamw":
            main = optax.adamw(
                rate(self.lr),
                self.b1,
                self.b2,
                self.eps,
                weight_decay=self.weight_decay,
                mask=lambda p: matrices(p, decayed),
            )
        else:
            main = optax.contrib.muon(
                rate(self.lr),
                ns_steps=self.newton_schulz,
                beta=self.momentum,
                eps=self.eps,
                weight_decay=self.weight_decay,
                adam_b1=self.b1,
                adam_b2=self.b2,
                adam_weight_decay=0.0,
                adam_learning_rate=rate(self.lr if self.adam_lr is None else self.adam_lr),
                muon_weight_dimension_numbers=lambda p: matrices(p, muon_axes),
                consistent_rms=0.2,
            )
        return optax.chain(optax.clip_by_global_norm(self.clip), main)


def matrices(params: Any, rule) -> Any:
    """`rule(path, leaf)` of every parameter; `path` is a tuple of names."""
    return jax.tree_util.tree_map_with_path(lambda path, x: rule(keys_of(path), x), params)


def decayed(path: tuple[str, ...], x: jax.Array) -> bool:
    """Weight decay takes kernels, by name: a stacked bias or norm has two axes too."""
    return path[-1] == "kernel"


def muon_axes(path: tuple[str, ...], x: jax.Array) -> MuonDimensionNumbers | None:
    """Which axes of a hidden matrix are in and out. A kernel in stacked `blocks` is a matrix a layer (the first axis);
    a convolution's is one from all of (space, time, channels in) to channels out. None leaves the parameter to AdamW:
    embeddings, heads, what takes in time and text, biases, norms, tables."""
    if path[-1] == "kernel" and x.ndim == 3 and "blocks" in path:
        return MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    if path[-1] == "kernel" and x.ndim in (4, 5):
        return MuonDimensionNumbers(reduction_axis=tuple(range(x.ndim - 1)), output_axis=x.ndim - 1)
    return None
