"""What a training clip is given: nothing, a first frame, a picture elsewhere, a tail, a sink.

A condition is a patch whose time is zero. Sampling meets these cases, so training draws all of them:

- *text*: nothing is known.
- *first*: slot 0, which holds the first frame alone, is known.
- *picture*: a frame elsewhere (the last one, a keyframe), encoded alone, is appended as a known latent frame with the
  rotary time of its target, `frame / stride`. In half of the cases the first frame is known too.
- *tail*: the crop starts mid-stream and its first latents are known, as when a clip is extended. With a sink, the
  clip's own first latent is carried along at its true distance.
- *window*: the crop starts mid-stream, nothing but the sink is known, as in every window of a long clip but the first.

Everything here is NumPy on the host, drawn from a generator that the caller seeds, so that a step can be replayed.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dit_video.core.errors import BadInput
from dit_video.core.types import Extra, Latent


@dataclass(frozen=True)
class Conditions:
    """Shares of the cases (normalised to one) and of dropped captions."""

    text: float = 0.45
    first: float = 0.2
    picture: float = 0.1
    tail: float = 0.1
    tail_with_sink: float = 0.1
    window: float = 0.05
    drop_caption: float = 0.1

    def split(self) -> tuple[dict[str, float], dict[str, float]]:
        """Shares of the cases without and with an extra latent frame: a batch holds one kind, so shapes stay fixed."""
        shares = {k: getattr(self, k) for k in ("text", "first", "picture", "tail", "tail_with_sink", "window")}
        if min(shares.values()) < 0 or sum(shares.values()) <= 0:
            raise BadInput(f"conditions {shares}: shares must not be negative, and one must be positive")
        plain = {k: shares[k] for k in ("text", "first", "tail")}
        extra = {k: shares[k] for k in ("picture", "tail_with_sink", "window")}
        return plain, extra

    def known(self) -> list[str]:
        """The cases in which a part of the clip is known by its time."""
        plain, extra = self.split()
        return [case for case, share in (plain | extra).items() if share and case != "text"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Samples:
    """Encoded clips on the host, before they are cut."""

    latents: np.ndarray  # (B, N, H, W, C), normalised; slot 0 holds the first frame alone
    pictures: np.ndarray  # (B, P, H, W, C), single frames of the same clips, encoded alone
    picture_frames: np.ndarray  # (B, P), their frame numbers, each >= 1
    ids: np.ndarray  # (B, S) tokens of the caption
    length: np.ndarray  # (B,)
    beside: np.ndarray | None = None  # (B, N, H, W, M), what an image-to-video model is given beside the noise
    image: np.ndarray | None = None  # (B, I, E), tokens of an image encoder


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What the denoiser's loss takes."""

    latents: Latent
    known: Bool[Array, "B T H W"]  # these positions are data at time zero and bear no loss
    ids: Int[Array, "B S"]
    length: Int[Array, "B"]
    extra: Extra | None
    beside: Float[Array, "B T H W M"] | None = None  # mask and given frames, behind the noise's channels
    image: Float[Array, "B I E"] | None = None  # tokens of an image encoder


def _draw(rng: np.random.Generator, shares: dict[str, float], n: int) -> np.ndarray:
    p = np.array(list(shares.values()), dtype=np.float64)
    return rng.choice(np.array(list(shares)), size=n, p=p / p.sum())


def assemble(
    samples: Samples,
    rng: np.random.Generator,
    mix: Conditions,
    slots: int,
    eos: int = 1,
    rows: np.random.Generator | None = None,
    stride: int = 4,
) -> Batch:
    """Cuts `slots` latent frames from each sample and decides what is known.

    A whole batch either has one extra latent frame a clip or none: that is drawn from `rng`, which is the same in every
    process of a run; what each clip gets from `rows` (None: from `rng` too), a process's own. `stride`: frames that a
    latent frame stands for. Cases that the samples cannot give (mid-stream crops of clips that are no longer than
    `slots`, pictures of a still) fall back to *text*. What is given beside the noise is that of a clip's start: for
    models that take it, *text* is the only case.
    Raises `BadInput` when the samples are shorter than `slots`.
    """
    b, n, h, w, c = samples.latents.shape
    if n < slots:
        raise BadInput(f"clips of {n} latent frames cannot give crops of {slots}: load longer clips or smaller buckets")
    plain, extra = mix.split()
    if n == slots:  # no room to start mid-stream
        plain["tail"] = extra["tail_with_sink"] = extra["window"] = 0.0
    inside = samples.picture_frames <= stride * (slots - 1)  # (B, P)
    # Processes must agree without seeing one another's clips: each has a picture in its first half (`draw_pictures`).
    each = inside.any(axis=1).all() if rows is None else inside.shape[1] > 0 and n - 1 <= 2 * (slots - 1)
    if slots == 1 or not each:
        extra["picture"] = 0.0
    if slots == 1:
        plain = {"text": 1.0}
        extra = dict.fromkeys(extra, 0.0)
    total = sum(plain.values()) + sum(extra.values())
    if total == 0:
        plain["text"] = total = 1.0
    with_extra = rng.random() < sum(extra.values()) / total
    rng = rng if rows is None else rows
    cases = _draw(rng, extra if with_extra else plain, b) if with_extra or sum(plain.values()) else np.full(b, "text")

    latents = np.empty((b, slots, h, w, c), np.float32)
    known = np.zeros((b, slots, h, w), bool)
    added = np.zeros((b, 1, h, w, c), np.float32)
    position = np.zeros((b, 1), np.float32)
    for i, case in enumerate(cases):
        start = int(rng.integers(1, n - slots + 1)) if case in ("tail", "tail_with_sink", "window") else 0
        latents[i] = samples.latents[i, start : start + slots]
        if case == "first":
            known[i, 0] = True
        if case.startswith("tail"):
            known[i, : int(rng.integers(1, min(2, slots - 1) + 1))] = True
        if case in ("tail_with_sink", "window"):
            added[i, 0], position[i, 0] = samples.latents[i, 0], -start
        if case == "picture":
            which = int(rng.choice(np.flatnonzero(inside[i])))
            added[i, 0], position[i, 0] = samples.pictures[i, which], samples.picture_frames[i, which] / stride
            known[i, 0] = rng.random() < 0.5

    ids, length = samples.ids.copy(), samples.length.copy()
    dropped = rng.random(b) < mix.drop_caption
    ids[dropped] = 0
    ids[dropped, 0] = eos
    length[dropped] = 1
    beside = None if samples.beside is None else samples.beside[:, :slots]
    return Batch(latents, known, ids, length, Extra(added, position) if with_extra else None, beside, samples.image)
