"""The denoiser: a diffusion transformer over spacetime patches with the block structure of Wan (2503.20314, 4.2).

A block is self-attention over all tokens, cross-attention to the text, and an MLP. Time modulates the first and the
last (shift, scale, gate), and time is per *token*: what is known has time zero. Every size is in `DiTConfig`, so one
piece of code is the few-megabyte model on board and the public 14 B weights. Reference: `transformer_wan.py` of
diffusers, which the parity tests compare with.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dit_video.core.errors import BadInput
from dit_video.core.mesh import Rules, constrain
from dit_video.core.types import Extra, Latent, Text, Time
from dit_video.nn.attention import BACKENDS, attention
from dit_video.nn.embeddings import gelu_tanh, per_token, sinusoid
from dit_video.nn.linear import SAVED, linear_dot, matmul
from dit_video.nn.norms import layer_norm, rms_norm
from dit_video.nn.patches import grid_of, patchify, unpatchify
from dit_video.nn.rotary import Rotary, Stretch, frame_positions, grid_positions, halves, rotary, rotate

TIME_SCALE = 1000.0  # the model wants time in 0..1000, everything else counts it in 0..1
MASKED = -1e30

_REMAT = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(SAVED),
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
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    cross_attn_norm: bool = True
    rope_theta: float = 1e4
    stretch: Stretch | None = None  # of time's positions, for clips longer than those of training
    dtype: str = "float32"  # of activations and matrix products; weights, norms and time are float32
    remat: str = "none"  # what backward computes again: none | block (everything) | dots (all but matrix products)
    attention: str = "xla"  # xla | chunked

    def __post_init__(self):
        if self.head_dim % 2 or self.freq_dim % 2:
            raise BadInput(f"head_dim={self.head_dim}, freq_dim={self.freq_dim}: both must be even (pairs are turned)")
        if self.remat not in _REMAT:
            raise BadInput(f"remat={self.remat!r}: choose one of {', '.join(_REMAT)}")
        if self.attention not in BACKENDS:
            raise BadInput(f"attention={self.attention!r}: choose one of {', '.join(BACKENDS)}")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise BadInput(f"dtype={self.dtype!r}: choose float32, bfloat16 or float16")

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Context(NamedTuple):
    """What the text is to every layer. It does not depend on time: make it once a sampling run."""

    keys: Float[Array, "N B S n K"]
    values: Float[Array, "N B S n K"]
    bias: Float[Array, "B S"]  # added to the logits; the last row stands for all of the padding


_xavier = nnx.initializers.xavier_uniform()
_normal = nnx.initializers.normal(0.02)


def _linear(n_in: int, n_out: int, axes: tuple, *, init=_xavier, dtype, rngs) -> nnx.Linear:
    bias = {"axes": (axes[1] if axes[1] != "width" else None,)}
    return nnx.Linear(
        n_in, n_out, kernel_init=init, dtype=dtype, rngs=rngs, dot_general=linear_dot,
        kernel_metadata={"axes": axes}, bias_metadata=bias,
    )  # fmt: skip


class Norm(nnx.Module):
    """The weights of a norm; the mathematics are in `nn.norms`."""

    def __init__(self, width: int, axis: str | None, *, bias: bool):
        self.scale = nnx.Param(jnp.ones(width), axes=(axis,))
        if bias:
            self.bias = nnx.Param(jnp.zeros(width), axes=(axis,))


class Projections(nnx.Module):
    """Queries, keys, values and output of an attention. Queries and keys are normalised over all heads together."""

    def __init__(self, cfg: DiTConfig, *, rngs: nnx.Rngs):
        D = cfg.width
        linear = partial(_linear, D, D, dtype=cfg.dtype, rngs=rngs)
        self.q, self.k, self.v = (linear(("width", "heads")) for _ in range(3))
        self.out = linear(("heads", "width"))
        self.norm_q, self.norm_k = (Norm(D, "heads", bias=False) for _ in range(2))


class Block(nnx.Module):
    """One layer. `__call__` is a step of the scan over layers."""

    def __init__(self, cfg: DiTConfig, rules: Rules, *, rngs: nnx.Rngs):
        D, linear = cfg.width, partial(_linear, dtype=cfg.dtype, rngs=rngs)
        self.table = nnx.Param(jax.random.normal(rngs.params(), (6, D)) * D**-0.5, axes=(None, None))
        self.attn = Projections(cfg, rngs=rngs)
        self.cross = Projections(cfg, rngs=rngs)
        if cfg.cross_attn_norm:
            self.norm_cross = Norm(D, None, bias=True)
        self.up = linear(D, cfg.ffn_dim, ("width", "mlp"))
        self.down = linear(cfg.ffn_dim, D, ("mlp", "width"))
        self.cfg, self.rules = cfg, rules

    def split_heads(self, x: Float[Array, "B L D"], *axes: str | None) -> Float[Array, "B L n K"]:
        x = x.reshape(*x.shape[:-1], self.cfg.heads, self.cfg.head_dim)
        return constrain(x, self.rules(*axes, "heads", None))

    def self_attention(self, x: Float[Array, "B L D"], positions: Rotary) -> Float[Array, "B L D"]:
        cfg, p = self.cfg, self.attn

        def turned(linear: nnx.Linear, norm: Norm) -> Float[Array, "B L n K"]:
            kernel, bias, scale = (halves(a[...], cfg.heads) for a in (linear.kernel, linear.bias, norm.scale))
            a = rms_norm(matmul(x, kernel.astype(cfg.dtype)) + bias.astype(cfg.dtype), scale, cfg.eps)
            return rotate(self.split_heads(a, "batch", "tokens"), positions)

        v = self.split_heads(p.v(x), "batch", "tokens")
        out = attention(turned(p.q, p.norm_q), turned(p.k, p.norm_k), v, backend=cfg.attention)
        return p.out(out.reshape(x.shape))

    def text_keys_values(self, rows: Float[Array, "B S D"]) -> tuple[Array, Array]:
        k = rms_norm(self.cross.k(rows), self.cross.norm_k.scale[...], self.cfg.eps)
        return self.split_heads(k, "batch", None), self.split_heads(self.cross.v(rows), "batch", None)

    def cross_attention(self, x: Float[Array, "B L D"], keys, values, bias) -> Float[Array, "B L D"]:
        q = rms_norm(self.cross.q(x), self.cross.norm_q.scale[...], self.cfg.eps)
        q = self.split_heads(q, "batch", "tokens")
        out = attention(q, keys, values, bias=bias, backend=self.cfg.attention)
        return self.cross.out(out.reshape(x.shape))

    def mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.down(gelu_tanh(constrain(self.up(x), self.rules("batch", "tokens", "mlp"))))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        time: Float[Array, "B k 6 D"],
        index: Int[Array, "b L"] | None,
        positions: Rotary,
        keys: Float[Array, "B S n K"],
        values: Float[Array, "B S n K"],
        bias: Float[Array, "B S"],
    ) -> Float[Array, "B L D"]:
        cfg = self.cfg
        x = constrain(x, self.rules("batch", "tokens", None))
        modulation = time + self.table[...]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (per_token(modulation[:, :, i], index) for i in range(6))
        h = (layer_norm(x, cfg.eps) * (1 + scale_a) + shift_a).astype(cfg.dtype)
        x = (x + self.self_attention(h, positions) * gate_a).astype(x.dtype)
        h = x
        if cfg.cross_attn_norm:
            h = layer_norm(x, cfg.eps) * self.norm_cross.scale[...] + self.norm_cross.bias[...]
        x = x + self.cross_attention(h.astype(cfg.dtype), keys, values, bias)
        h = (layer_norm(x, cfg.eps) * (1 + scale_m) + shift_m).astype(cfg.dtype)
        x = (x + self.mlp(h) * gate_m).astype(x.dtype)
        return constrain(x, self.rules("batch", "tokens", None))


class DiT(nnx.Module):
    """The denoiser. Made for training from scratch: the head starts at zero, and so does the velocity.

    Weights are float32; blocks are one module whose weights have a leading layer axis, run by `lax.scan`, so that
    compile time does not know the depth. Every weight carries logical axes as metadata `axes`.
    """

    def __init__(self, cfg: DiTConfig, rules: Rules = Rules(), *, rngs: nnx.Rngs):
        D, positions = cfg.width, cfg.patch[0] * cfg.patch[1] * cfg.patch[2]
        linear = partial(_linear, rngs=rngs)
        self.patch = linear(positions * cfg.in_channels, D, (None, "width"), dtype=cfg.dtype)
        self.time_in = linear(cfg.freq_dim, D, (None, "width"), init=_normal, dtype="float32")
        self.time_out = linear(D, D, ("width", None), init=_normal, dtype="float32")
        self.time_proj = linear(D, 6 * D, ("width", None), dtype="float32")
        self.text_in = linear(cfg.text_dim, D, (None, "width"), dtype=cfg.dtype)
        self.text_out = linear(D, D, ("width", None), dtype=cfg.dtype)
        self.blocks = nnx.vmap(lambda r: Block(cfg, rules, rngs=r))(rngs.split(cfg.depth))
        self.table = nnx.Param(jax.random.normal(rngs.params(), (2, D)) * D**-0.5, axes=(None, None))
        zeros = nnx.initializers.zeros
        self.head = linear(D, positions * cfg.out_channels, ("width", None), init=zeros, dtype=cfg.dtype)
        self.cfg, self.rules = cfg, rules

    def context(self, text: Text) -> Context:
        """Keys and values of the text in every layer.

        The reference pads text to `text_len` rows of zeros and masks nothing. Those rows are all one key and one value,
        so one row with log(how many) added to its logit gives the same result. Raises `BadInput` on more rows than
        `text_len` or another width than `text_dim`.
        """
        cfg = self.cfg
        B, S, E = text.rows.shape
        if cfg.text_dim != E or cfg.text_len < S:
            raise BadInput(f"text of {S} rows x {E}: this model takes up to {cfg.text_len} rows x {cfg.text_dim}")
        rows = jnp.concatenate([text.rows, jnp.zeros((B, 1, E), text.rows.dtype)], 1).astype(cfg.dtype)
        rows = self.text_out(gelu_tanh(self.text_in(rows)))
        pads = (cfg.text_len - text.length)[:, None]
        real = jnp.where(jnp.arange(S) < text.length[:, None], 0.0, MASKED)
        bias = jnp.concatenate([real, jnp.where(pads > 0, jnp.log(jnp.maximum(pads, 1.0)), MASKED)], 1)
        graph, layers = nnx.split(self.blocks)
        _, (keys, values) = jax.lax.scan(
            lambda _, layer: (None, nnx.merge(graph, layer).text_keys_values(rows)), None, layers
        )
        return Context(keys, values, bias)

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

    def __call__(self, x: Latent, time: Time, text: Text | Context, extra: Extra | None = None) -> Latent:
        """The velocity (noise - data) at x, of the shape and dtype of `x` (with `out_channels`).

        x: normalised latents (B, T, H, W, C), any T, H, W that the patch divides. time: flow time 0 (data) .. 1
        (noise); a patch takes the time of its first position. text: an encoded prompt, or its `context`. extra: known
        latent frames that join as tokens at their own rotary time and have no output.
        Raises `BadInput` on shapes that do not fit.
        """
        cfg = self.cfg
        grid = grid_of(x.shape, cfg.patch)
        if x.shape[-1] != cfg.in_channels:
            raise BadInput(f"latents of {x.shape[-1]} channels: this model takes {cfg.in_channels}")
        context = text if isinstance(text, Context) else self.context(text)
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
        h = self.run(h, modulation, index, positions, context)[:, :L]

        index = None if index is None else index[:, :L]
        shift, scale = (per_token(embedded + self.table[i], index) for i in range(2))
        h = (layer_norm(h, cfg.eps) * (1 + scale) + shift).astype(cfg.dtype)
        out = self.head(h).astype(x.dtype).reshape(B, *grid, -1)
        return unpatchify(out, cfg.patch)

    def run(self, x, modulation, index, positions: Rotary, context: Context) -> Float[Array, "B L D"]:
        graph, layers = nnx.split(self.blocks)

        def layer(x, xs):
            weights, keys, values = xs
            return nnx.merge(graph, weights)(x, modulation, index, positions, keys, values, context.bias), None

        if self.cfg.remat != "none":
            layer = jax.checkpoint(layer, policy=_REMAT[self.cfg.remat], prevent_cse=False)
        return jax.lax.scan(layer, x, (layers, context.keys, context.values))[0]


def flops(cfg: DiTConfig, grid: tuple[int, int, int], text_rows: int, extra: int = 0) -> float:
    """Model FLOPs of one forward pass of one clip: two for each multiply-add of the matrix products, nothing else.

    grid: frames, height and width of the latent (before patching); text_rows: rows of text as stored (one pad row is
    added); extra: appended latent frames. Training costs three times as much (remat is not model FLOPs).
    """
    t, h, w = (size // stride for size, stride in zip(grid, cfg.patch, strict=True))
    D, F, S = cfg.width, cfg.ffn_dim, text_rows + 1
    out = t * h * w
    L = out + extra * h * w
    positions = cfg.patch[0] * cfg.patch[1] * cfg.patch[2]
    token = 4 * D * D + 2 * D * F + 2 * D * D  # self-attention, MLP, queries and output of cross-attention
    layer = L * token + 2 * L * L * D + 2 * L * S * D + 2 * S * D * D
    ends = L * D * positions * cfg.in_channels + out * D * positions * cfg.out_channels
    times = cfg.freq_dim * D + D * D + 6 * D * D
    text = S * (cfg.text_dim * D + D * D)
    return 2.0 * (cfg.depth * layer + ends + times + text)
