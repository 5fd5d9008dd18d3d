"""The denoiser: a diffusion transformer over spacetime patches with the block structure of Wan (2503.20314, 4.2).

A block is self-attention over all tokens, cross-attention to the text, and an MLP. Time modulates the first and the
last (shift, scale, gate), and time is per *token*: what is known has time zero. Every size is in `DiTConfig`, so one
piece of code is the few-megabyte model on board and the public 14 B weights, with their variants: `image_dim` for
image-to-video models that look at an image encoder's tokens too, more `in_channels` for those that are given latents
beside the noise (`models.given`), `vace_layers` for those with a control branch. Reference: `transformer_wan.py` and
`transformer_wan_vace.py` of diffusers, which the parity tests compare with.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dit_video.core.errors import BadInput
from dit_video.core.mesh import Rules, constrain
from dit_video.core.types import Extra, Latent, Text, Time
from dit_video.nn.attention import BACKENDS, attention
from dit_video.nn.embeddings import gelu_tanh, per_token, sinusoid
from dit_video.nn.linear import NORMAL, SAVED, linear_layer, matmul
from dit_video.nn.norms import HeadsNorm, LayerNorm, layer_norm, rms_norm
from dit_video.nn.patches import grid_of, patchify, unpatchify
from dit_video.nn.rotary import Rotary, Stretch, frame_positions, grid_positions, halves, rotary, rotate
from dit_video.nn.splash import KEPT

TIME_SCALE = 1000.0  # the model wants time in 0..1000, everything else counts it in 0..1
MASKED = -1e30
SMALLEST_TIME = 1e-3  # that a velocity is made of data with; what is known, at zero, has none

_REMAT = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(KEPT),
    "dots": jax.checkpoint_policies.save_only_these_names(SAVED, KEPT),
}


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the denoiser; the defaults are Wan 2.1 T2V 1.3B."""

    in_channels: int = 16
    out_channels: int = 16
    heads: int = 12
    head_dim: int = 128
    depth: int = 30
    ffn_dim: int = 8960
    freq_dim: int = 256  # numbers of the sinusoid that embeds time
    text_dim: int = 4096
    text_len: int = 512  # rows that the reference pads text to
    image_dim: int | None = None  # width of an image encoder's tokens (Wan 2.1 image-to-video); None: there are none
    image_len: int | None = None  # of learnt positions for them (first and last frame); None: without
    vace_layers: tuple[
        int, ...
    ] = ()  # after which the control branch adds a hint (VACE); the branch has as many blocks
    vace_channels: int = 96  # of control latents
    patch: tuple[int, int, int] = (1, 2, 2)
    # What the head puts out. Noise has as many dimensions as a patch, data has few: a narrow model that puts out data
    # need not carry the noise through (Li and He 2025, arXiv 2511.13720). The velocity follows from it.
    predicts: str = "velocity"  # velocity | data
    eps: float = 1e-6
    cross_attn_norm: bool = True
    rope_theta: float = 1e4
    stretch: Stretch | None = None  # of time's positions, for clips longer than those of training
    dtype: str = "float32"  # of activations and matrix products; weights, norms and time are float32
    # What backward computes again: nothing, the whole block, all but attention, all but attention and matrix products.
    remat: str = "none"  # none | block | attention | dots
    attention: str = "xla"  # xla | chunked | splash (TPU) | splash_wide (v6e, tpu7x) | cudnn (NVIDIA)

    def __post_init__(self):
        if self.head_dim % 2 or self.freq_dim % 2:
            raise BadInput(f"head_dim={self.head_dim}, freq_dim={self.freq_dim}: both must be even (pairs are turned)")
        if self.remat not in _REMAT:
            raise BadInput(f"remat={self.remat!r}: choose one of {', '.join(_REMAT)}")
        if self.attention not in BACKENDS:
            raise BadInput(f"attention={self.attention!r}: choose one of {', '.join(BACKENDS)}")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise BadInput(f"dtype={self.dtype!r}: choose float32, bfloat16 or float16")
        if self.predicts not in ("velocity", "data"):
            raise BadInput(f"predicts={self.predicts!r}: choose velocity or data")
        if self.image_len and not self.image_dim:
            raise BadInput(f"image_len={self.image_len} without image_dim: there are no image tokens to place")
        if list(self.vace_layers) != sorted(set(self.vace_layers) & set(range(self.depth))):
            raise BadInput(f"vace_layers={self.vace_layers}: they must rise, from 0 to below depth={self.depth}")

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Context(NamedTuple):
    """What text and picture are to every layer. It does not depend on time: make it once a sampling run."""

    keys: Float[Array, "N B S n K"]
    values: Float[Array, "N B S n K"]
    bias: Float[Array, "B S"] | None  # added to the logits; the last row stands for all of the padding
    image_keys: Float[Array, "N B I n K"] | None = None  # of a picture's tokens
    image_values: Float[Array, "N B I n K"] | None = None
    control: "Context | None" = None  # the same for the blocks of the control branch

    def layers(self) -> "Context":
        """The arrays that have a layer axis."""
        return self._replace(bias=None, control=None)


class Control(NamedTuple):
    """Control latents (see `models.given`) and how strong the hint of each of `vace_layers` is; one is usual."""

    latents: Float[Array, "B T H W C"]
    scale: Float[Array, "V"]


class Tokens(NamedTuple):
    """What the blocks are told about tokens."""

    modulation: Float[Array, "B k 6 D"]  # of the distinct times
    index: Int[Array, "b L"] | None  # which of them a token has
    positions: Rotary


class Projections(nnx.Module):
    """Queries, keys, values and output of an attention. Queries and keys are normalised over all heads together.
    With `image` there are keys and values of a picture's tokens as well."""

    def __init__(self, cfg: DiTConfig, *, image: bool = False, rngs: nnx.Rngs):
        D = cfg.width
        linear = partial(linear_layer, D, D, dtype=cfg.dtype, rngs=rngs)
        self.q, self.k, self.v = (linear(("width", "heads")) for _ in range(3))
        self.out = linear(("heads", "width"))
        self.norm_q, self.norm_k = HeadsNorm(D), HeadsNorm(D)
        if image:
            self.image_k, self.image_v = linear(("width", "heads")), linear(("width", "heads"))
            self.norm_image_k = HeadsNorm(D)


class Block(nnx.Module):
    """One layer. `__call__` is a step of the scan over layers."""

    def __init__(self, cfg: DiTConfig, rules: Rules, *, rngs: nnx.Rngs):
        D, linear = cfg.width, partial(linear_layer, dtype=cfg.dtype, rngs=rngs)
        self.table = nnx.Param(jax.random.normal(rngs.params(), (6, D)) * D**-0.5, axes=(None, None))
        self.attn = Projections(cfg, rngs=rngs)
        self.cross = Projections(cfg, image=cfg.image_dim is not None, rngs=rngs)
        if cfg.cross_attn_norm:
            self.norm_cross = LayerNorm(D, cfg.eps)
        self.up = linear(D, cfg.ffn_dim, ("width", "mlp"))
        self.down = linear(cfg.ffn_dim, D, ("mlp", "width"))
        self.cfg, self.rules = cfg, rules

    def split_heads(self, x: Float[Array, "B L D"], *axes: str | None) -> Float[Array, "B L n K"]:
        x = x.reshape(*x.shape[:-1], self.cfg.heads, self.cfg.head_dim)
        return constrain(x, self.rules(*axes, "heads", None))

    def self_attention(self, x: Float[Array, "B L D"], positions: Rotary) -> Float[Array, "B L D"]:
        cfg, p = self.cfg, self.attn

        def turned(linear: nnx.Linear, norm: HeadsNorm) -> Float[Array, "B L n K"]:
            kernel, bias, scale = (halves(a[...], cfg.heads) for a in (linear.kernel, linear.bias, norm.scale))
            a = rms_norm(matmul(x, kernel.astype(cfg.dtype)) + bias.astype(cfg.dtype), scale, cfg.eps)
            return rotate(self.split_heads(a, "batch", "tokens"), positions)

        v = self.split_heads(p.v(x), "batch", "tokens")
        q, k = turned(p.q, p.norm_q), turned(p.k, p.norm_k)
        out = attention(q, k, v, backend=cfg.attention, rules=self.rules)
        return p.out(out.reshape(x.shape))

    def context(self, rows: Float[Array, "B S D"], image: Float[Array, "B I D"] | None) -> Context:
        """Keys and values of this layer."""

        def heads(linear: nnx.Linear, source: Array, norm: HeadsNorm | None = None) -> Float[Array, "B S n K"]:
            a = linear(source)
            return self.split_heads(a if norm is None else rms_norm(a, norm.scale[...], self.cfg.eps), "batch", None)

        c = self.cross
        seen = Context(heads(c.k, rows, c.norm_k), heads(c.v, rows), None)
        if image is None:
            return seen
        return seen._replace(image_keys=heads(c.image_k, image, c.norm_image_k), image_values=heads(c.image_v, image))

    def cross_attention(self, x: Float[Array, "B L D"], seen: Context) -> Float[Array, "B L D"]:
        q = rms_norm(self.cross.q(x), self.cross.norm_q.scale[...], self.cfg.eps)
        q = self.split_heads(q, "batch", "tokens")
        look = partial(attention, q, backend=self.cfg.attention, rules=self.rules, keys=None)
        out = look(seen.keys, seen.values, bias=seen.bias)
        if seen.image_keys is not None:
            out = out + look(seen.image_keys, seen.image_values)
        return self.cross.out(out.reshape(x.shape))

    def mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.down(gelu_tanh(constrain(self.up(x), self.rules("batch", "tokens", "mlp"))))

    def __call__(self, x: Float[Array, "B L D"], tokens: Tokens, seen: Context) -> Float[Array, "B L D"]:
        cfg, index = self.cfg, tokens.index
        x = constrain(x, self.rules("batch", "tokens", None))
        modulation = tokens.modulation + self.table[...]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (per_token(modulation[:, :, i], index) for i in range(6))
        h = (layer_norm(x, cfg.eps) * (1 + scale_a) + shift_a).astype(cfg.dtype)
        x = (x + self.self_attention(h, tokens.positions) * gate_a).astype(x.dtype)
        h = self.norm_cross(x) if cfg.cross_attn_norm else x
        x = x + self.cross_attention(h.astype(cfg.dtype), seen)
        h = (layer_norm(x, cfg.eps) * (1 + scale_m) + shift_m).astype(cfg.dtype)
        x = (x + self.mlp(h) * gate_m).astype(x.dtype)
        return constrain(x, self.rules("batch", "tokens", None))


class ImageTokens(nnx.Module):
    """An image encoder's tokens to the width of the blocks. Reference: `WanImageEmbedding`."""

    def __init__(self, cfg: DiTConfig, *, rngs: nnx.Rngs):
        E, linear = cfg.image_dim, partial(linear_layer, dtype=cfg.dtype, rngs=rngs)
        if cfg.image_len:
            self.positions = nnx.Param(jnp.zeros((cfg.image_len, E)), axes=(None, None))
        self.norm_in, self.norm_out = LayerNorm(E, 1e-5), LayerNorm(cfg.width, 1e-5)  # an eps of their own
        self.up, self.down = linear(E, E, (None, "width")), linear(E, cfg.width, ("width", None))
        self.cfg = cfg

    def __call__(self, image: Float[Array, "B I E"]) -> Float[Array, "B I D"]:
        dtype = self.cfg.dtype
        if self.cfg.image_len:
            image = image + self.positions[...]
        h = jax.nn.gelu(self.up(self.norm_in(image).astype(dtype)), approximate=False)
        return self.norm_out(self.down(h)).astype(dtype)


class ControlBlock(nnx.Module):
    """A layer of the control branch: a block, and the way from it to a hint. Reference: `WanVACETransformerBlock`."""

    def __init__(self, cfg: DiTConfig, rules: Rules, *, rngs: nnx.Rngs):
        self.block = Block(cfg, rules, rngs=rngs)
        # zero, so that a branch put on a trained model changes nothing at first
        self.out = linear_layer(
            cfg.width, cfg.width, ("width", None), init=nnx.initializers.zeros, dtype=cfg.dtype, rngs=rngs
        )


class ControlBranch(nnx.Module):
    """Control latents to tokens, and blocks whose outputs are added to the denoiser's (VACE, 2503.07598, 3.3)."""

    def __init__(self, cfg: DiTConfig, rules: Rules, *, rngs: nnx.Rngs):
        D, linear = cfg.width, partial(linear_layer, dtype=cfg.dtype, rngs=rngs)
        self.patch = linear(math.prod(cfg.patch) * cfg.vace_channels, D, (None, "width"))
        self.into = linear(D, D, ("width", None))
        self.blocks = nnx.vmap(lambda r: ControlBlock(cfg, rules, rngs=r))(rngs.split(len(cfg.vace_layers)))
        self.cfg = cfg

    def enter(self, latents: Latent, h: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The branch's tokens before its first block. Control latents may be fewer frames than the denoiser's."""
        cfg = self.cfg
        if latents.shape[-1] != cfg.vace_channels:
            raise BadInput(f"control latents of {latents.shape[-1]} channels: this model takes {cfg.vace_channels}")
        tokens = patchify(latents, cfg.patch)
        tokens = self.patch(tokens.reshape(h.shape[0], -1, tokens.shape[-1]).astype(cfg.dtype))
        if tokens.shape[1] > h.shape[1]:
            raise BadInput(f"control of {tokens.shape[1]} tokens for a latent of {h.shape[1]}: it may not be larger")
        return self.into(jnp.pad(tokens, ((0, 0), (0, h.shape[1] - tokens.shape[1]), (0, 0)))) + h


class DiT(nnx.Module):
    """The denoiser. Made for training from scratch: the head starts at zero, and so does the velocity.

    Weights are float32; blocks are one module whose weights have a leading layer axis, run by `lax.scan`, so that
    compile time does not know the depth. Every weight carries logical axes as metadata `axes`.
    """

    def __init__(self, cfg: DiTConfig, rules: Rules = Rules(), *, rngs: nnx.Rngs):
        D, positions = cfg.width, math.prod(cfg.patch)
        linear = partial(linear_layer, rngs=rngs)
        self.patch = linear(positions * cfg.in_channels, D, (None, "width"), dtype=cfg.dtype)
        self.time_in = linear(cfg.freq_dim, D, (None, "width"), init=NORMAL, dtype="float32")
        self.time_out = linear(D, D, ("width", None), init=NORMAL, dtype="float32")
        self.time_proj = linear(D, 6 * D, ("width", None), dtype="float32")
        self.text_in = linear(cfg.text_dim, D, (None, "width"), dtype=cfg.dtype)
        self.text_out = linear(D, D, ("width", None), dtype=cfg.dtype)
        self.blocks = nnx.vmap(lambda r: Block(cfg, rules, rngs=r))(rngs.split(cfg.depth))
        self.table = nnx.Param(jax.random.normal(rngs.params(), (2, D)) * D**-0.5, axes=(None, None))
        zeros = nnx.initializers.zeros
        self.head = linear(D, positions * cfg.out_channels, ("width", None), init=zeros, dtype=cfg.dtype)
        if cfg.image_dim:
            self.image = ImageTokens(cfg, rngs=rngs)
        if cfg.vace_layers:
            self.control = ControlBranch(cfg, rules, rngs=rngs)
        self.cfg, self.rules = cfg, rules

    def context(self, text: Text, image: Float[Array, "B I E"] | None = None) -> Context:
        """Keys and values of the text, and of an image encoder's tokens, in every layer.

        The reference pads text to `text_len` rows of zeros and masks nothing. Those rows are all one key and one value,
        so one row with log(how many) added to its logit gives the same result. image: for models with `image_dim`; the
        tokens of two pictures (first and last frame) stand behind one another. Raises `BadInput` on more rows than
        `text_len` or another width than `text_dim`, and where `image` is missing, too much or of another size.
        """
        cfg = self.cfg
        B, S, E = text.rows.shape
        if cfg.text_dim != E or cfg.text_len < S:
            raise BadInput(f"text of {S} rows x {E}: this model takes up to {cfg.text_len} rows x {cfg.text_dim}")
        if (image is None) == bool(cfg.image_dim):
            raise BadInput("this model wants the tokens of an image encoder" if image is None else "image: this model "
                           "has no place for the tokens of an image encoder")  # fmt: skip
        if image is not None and image.shape[1:] != (cfg.image_len or image.shape[1], cfg.image_dim):
            raise BadInput(f"image of {image.shape[1]} x {image.shape[2]}: this model takes "
                           f"{cfg.image_len or 'any number of'} tokens x {cfg.image_dim}")  # fmt: skip
        rows = jnp.concatenate([text.rows, jnp.zeros((B, 1, E), text.rows.dtype)], 1).astype(cfg.dtype)
        rows = self.text_out(gelu_tanh(self.text_in(rows)))
        pads = (cfg.text_len - text.length)[:, None].astype(jnp.float32)
        real = jnp.where(jnp.arange(S) < text.length[:, None], 0.0, MASKED)
        bias = jnp.concatenate([real, jnp.where(pads > 0, jnp.log(jnp.maximum(pads, 1.0)), MASKED)], 1)
        image = None if image is None else self.image(image)

        def each(blocks: nnx.Module, get=lambda layer: layer) -> Context:
            graph, layers = nnx.split(blocks)
            one = lambda _, weights: (None, get(nnx.merge(graph, weights)).context(rows, image))  # noqa: E731
            return jax.lax.scan(one, None, layers)[1]._replace(bias=bias)

        seen = each(self.blocks)
        return seen._replace(control=each(self.control.blocks, lambda layer: layer.block)) if cfg.vace_layers else seen

    def times(self, time: Time, grid: tuple[int, int, int], extra: int) -> tuple[Array, Array | None]:
        """The distinct times (B, K), and which of them each token takes (b, L); tokens of extra frames take zero."""
        B, (t, h, w), (pt, ph, pw) = time.values.shape[0], grid, self.cfg.patch
        if time.index is None:
            values, index = time.values[:, :1], None
        else:
            if time.index.shape[1:] != (t * pt, h * ph, w * pw):
                raise BadInput(
                    f"time for {time.index.shape[1:]} positions, but the latent has {(t * pt, h * ph, w * pw)}"
                )
            values, index = time.values, time.index[:, ::pt, ::ph, ::pw].reshape(B, -1)
        if extra:
            index = jnp.zeros((1, t * h * w), jnp.int32) if index is None else index
            last = jnp.full((index.shape[0], extra * h * w), values.shape[1], index.dtype)
            values = jnp.concatenate([values, jnp.zeros((B, 1), values.dtype)], 1)
            index = jnp.concatenate([index, last], 1)
        return values.astype(jnp.float32), index

    def __call__(
        self, x: Latent, time: Time, text: Text | Context, extra: Extra | None = None, *,
        image: Float[Array, "B I E"] | None = None, control: Control | None = None,
    ) -> Float[Array, "B T H W V"]:  # fmt: skip
        """The velocity (noise - data) at x, of the shape and dtype of `x` (with `out_channels`).

        x: normalised latents (B, T, H, W, C), any T, H, W that the patch divides. time: flow time 0 (data) .. 1
        (noise); a patch takes the time of its first position. text: an encoded prompt, or its `context`. extra: known
        latent frames that join as tokens at their own rotary time and have no output. image: as `context` takes it, if
        `text` is not a context already. control: for models with `vace_layers`.
        Raises `BadInput` on shapes that do not fit, and where `control` is missing or too much.
        """
        cfg = self.cfg
        grid = grid_of(x.shape, cfg.patch)
        if x.shape[-1] != cfg.in_channels:
            raise BadInput(f"latents of {x.shape[-1]} channels: this model takes {cfg.in_channels}")
        if (control is None) == bool(cfg.vace_layers):
            raise BadInput("this model wants control latents" if control is None else "control: this model has no "
                           "place for control latents")  # fmt: skip
        context = text if isinstance(text, Context) else self.context(text, image)
        B, L = x.shape[0], grid[0] * grid[1] * grid[2]
        frames = 0 if extra is None else extra.latents.shape[1]

        tokens = patchify(x, cfg.patch).reshape(B, L, -1)
        where = grid_positions(grid)
        if frames:
            if cfg.patch[0] != 1 or extra.latents.shape[2:] != x.shape[2:]:
                raise BadInput(
                    f"extra frames {extra.latents.shape[2:]} for latents {x.shape[2:]} and patch {cfg.patch}: "
                    "height, width and channels must agree, and a patch must be one frame long"
                )
            known = patchify(extra.latents, cfg.patch).reshape(B, frames * grid[1] * grid[2], -1)
            tokens = jnp.concatenate([tokens, known.astype(tokens.dtype)], 1)
            where = jnp.broadcast_to(where, (B, L, 3))
            where = jnp.concatenate([where, frame_positions(extra.position, grid[1:])], 1)
        positions = rotary(where, cfg.head_dim, cfg.rope_theta, cfg.stretch)

        values, index = self.times(time, grid, frames)
        embedded = self.time_out(nnx.silu(self.time_in(sinusoid(values * TIME_SCALE, cfg.freq_dim))))
        modulation = self.time_proj(nnx.silu(embedded)).reshape(*values.shape, 6, cfg.width)

        h = constrain(self.patch(tokens.astype(cfg.dtype)), self.rules("batch", "tokens", None))
        h = self.run(h, Tokens(modulation, index, positions), context, control)[:, :L]

        index = None if index is None else index[:, :L]
        shift, scale = (per_token(embedded + self.table[i], index) for i in range(2))
        h = (layer_norm(h, cfg.eps) * (1 + scale) + shift).astype(cfg.dtype)
        out = unpatchify(self.head(h).astype(x.dtype).reshape(B, *grid, -1), cfg.patch)
        if cfg.predicts == "velocity":
            return out
        t = jnp.maximum(time.field(x.shape), SMALLEST_TIME).astype(x.dtype)
        return (x[..., : cfg.out_channels] - out) / t

    def run(self, x, tokens: Tokens, context: Context, control: Control | None) -> Float[Array, "B L D"]:
        graph, layers = nnx.split(self.blocks)
        hint, c, places = None, None, None
        if control is not None:
            hint, c = self.hints(tokens, context.control, control.scale), self.control.enter(control.latents, x)
            places = np.full(self.cfg.depth, -1)
            places[list(self.cfg.vace_layers)] = np.arange(len(self.cfg.vace_layers))

        def layer(carry, xs):
            x, c = carry
            weights, seen, place = xs
            x = nnx.merge(graph, weights)(x, tokens, seen._replace(bias=context.bias))
            return (x, c) if hint is None else hint(x, c, place), None

        if self.cfg.remat != "none":
            layer = jax.checkpoint(layer, policy=_REMAT[self.cfg.remat], prevent_cse=False)
        return jax.lax.scan(layer, (x, c), (layers, context.layers(), places))[0][0]

    def hints(self, tokens: Tokens, context: Context, scale: Float[Array, "V"]):
        """(x, c, place) -> (x with the hint of the control branch's block at that place added, c after that block);
        both as they were where `place` is negative. The branch runs beside the blocks, so one hint is held at a time,
        where the reference makes all of them first."""
        graph, layers = nnx.split(self.control.blocks)

        def add(x, c, place):
            weights, seen = jax.tree.map(lambda a: a[place], (layers, context.layers()))
            layer = nnx.merge(graph, weights)
            c = layer.block(c, tokens, seen._replace(bias=context.bias))
            return (x + layer.out(c) * scale[place]).astype(x.dtype), c

        return lambda x, c, place: jax.lax.cond(place < 0, lambda x, c, _: (x, c), add, x, c, place)


def flops(cfg: DiTConfig, grid: tuple[int, int, int], text_rows: int, extra: int = 0, image_rows: int = 0) -> float:
    """Model FLOPs of one forward pass of one clip: two for each multiply-add of the matrix products, nothing else.

    grid: frames, height and width of the latent (before patching); text_rows: rows of text as stored (one pad row is
    added); extra: appended latent frames; image_rows: tokens of an image encoder. Training costs three times as much
    (remat is not model FLOPs).
    """
    t, h, w = (size // stride for size, stride in zip(grid, cfg.patch, strict=True))
    D, F, S = cfg.width, cfg.ffn_dim, text_rows + 1 + image_rows
    out = t * h * w
    L = out + extra * h * w
    positions = math.prod(cfg.patch)
    token = 4 * D * D + 2 * D * F + 2 * D * D  # self-attention, MLP, queries and output of cross-attention
    layer = L * token + 2 * L * L * D + 2 * L * S * D + 2 * S * D * D
    ends = L * D * positions * cfg.in_channels + out * D * positions * cfg.out_channels
    times = cfg.freq_dim * D + D * D + 6 * D * D
    text = (text_rows + 1) * (cfg.text_dim * D + D * D)
    image = image_rows * (cfg.image_dim**2 + cfg.image_dim * D) if cfg.image_dim else 0
    hints = len(cfg.vace_layers)
    control = out * D * positions * cfg.vace_channels + L * D * D + hints * (layer + L * D * D) if hints else 0
    return 2.0 * (cfg.depth * layer + ends + times + text + image + control)
