"""Optimizers: AdamW and Muon by the names of the parameters, warm-up and decay, clipping.

Muon orthogonalises the update of hidden matrices; its step is scaled to AdamW's root mean square, so one learning rate
serves both. Embeddings, heads, norms, biases and tables take AdamW.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from dit_video.core.errors import BadInput
from dit_video.train.muon import muon_axes, scale_by_muon
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
            rest = optax.adamw(
                rate(self.lr if self.adam_lr is None else self.adam_lr),
                self.b1,
                self.b2,
                self.eps,
                weight_decay=0.0,
                nesterov=True,
            )
            hidden = optax.chain(
                *scale_by_muon(lambda p: matrices(p, muon_axes), self.momentum, self.eps, self.newton_schulz),
                optax.add_decayed_weights(self.weight_decay),
                optax.scale_by_learning_rate(rate(self.lr)),
            )
            taken = lambda p: matrices(p, lambda path, x: "adam" if muon_axes(path, x) is None else "muon")  # noqa: E731
            main = optax.partition({"muon": hidden, "adam": rest}, taken)
        return optax.chain(optax.clip_by_global_norm(self.clip), main)


def matrices(params: Any, rule) -> Any:
    """`rule(path, leaf)` of every parameter; `path` is a tuple of names."""
    return jax.tree_util.tree_map_with_path(lambda path, x: rule(keys_of(path), x), params)


def decayed(path: tuple[str, ...], x: jax.Array) -> bool:
    """Weight decay takes kernels, by name: a stacked bias or norm has two axes too."""
    return path[-1] == "kernel"
