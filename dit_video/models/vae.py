"""The causal 3-D VAE of the Wan family: video <-> latents, 4 x in time and 8 x in space (by config).

Structure and values of diffusers' `AutoencoderKLWan` (Wan 2.1's, and with `residual` and `patch` Wan 2.2's), with every
size in config. Frame 0 is alone in latent slot 0, every other slot holds as many frames as time is compressed by, so a
still image is a one-frame video. The reference runs frame groups one after another through caches; here a clip is one
static graph, and the same graph runs on pieces when given the `past` that the piece before left behind.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from dit_video.core.errors import BadInput
from dit_video.core.mesh import Rules, constrain, names_of, over_frames
from dit_video.core.sizes import frames_rule, size_rule
from dit_video.core.types import Latent, Video
from dit_video.nn.conv import Back, CausalConv3d, Conv2d, Frames, split

Past = Any  # a tree of frames, one leaf a causal layer; None where nothing came before


@dataclass(frozen=True)
class VAEConfig:
    """The defaults are those of Wan 2.1. Reference names: base_dim, decoder_base_dim, z_dim, dim_mult, num_res_blocks,
    temperal_downsample, attn_scales, patch_size, is_residual."""

    base: int = 96
    decoder_base: int | None = None  # None: as base
    z: int = 16
    mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    temporal: tuple[bool, ...] = (False, True, True)  # of each halving in space: does it halve time as well?
    attn_scales: tuple[float, ...] = ()
    patch: int = 1  # pixels on a side that become channels before the first convolution
    residual: bool = False  # weightless shortcuts around the levels (Wan 2.2)
    latents_mean: tuple[float, ...] = ()  # of the encoder's means over the training set; empty: 0
    latents_std: tuple[float, ...] = ()  # empty: 1
    dtype: str = "float32"
    conv: Back = "folded"  # see `on`

    def __post_init__(self):
        if len(self.temporal) != len(self.mult) - 1:
            raise BadInput(
                f"VAEConfig: temporal={self.temporal} wants one entry a halving: len(mult)-1={len(self.mult) - 1}."
            )
        if self.residual and self.attn_scales:
            raise BadInput(
                f"VAEConfig: attn_scales={self.attn_scales} have no place in a residual VAE. Leave them out."
            )
        if self.residual and not self._shortcuts_fit():
            raise BadInput(
                f"VAEConfig: mult={self.mult}: a residual VAE shares channels out evenly around every level. "
                "Make each a small multiple of the one before, and the last two equal."
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) not in (0, self.z):
                raise BadInput(
                    f"VAEConfig: {name} has {len(getattr(self, name))} values, z={self.z} are wanted (or none)."
                )

    def _shortcuts_fit(self) -> bool:
        """Whether the channels of blocks of positions are whole multiples of those that they are shared out to."""
        block = [8 if halves_time else 4 for halves_time in self.temporal]
        down = zip((1, *self.mult), self.mult, (*block, 1), strict=False)
        up = zip(self.mult[-2::-1], self.mult[:0:-1], block[-2::-1], strict=False)
        return not any(many * n % few for many, few, n in (*down, *up))

    def on(self, platform: str) -> "VAEConfig":
        """With the convolution that suits the devices of a JAX platform."""
        return replace(self, conv="folded" if platform == "cpu" else "direct")

    @property
    def stride(self) -> int:
        """Frames a latent slot (but for slot 0)."""
        return 2 ** sum(self.temporal)

    @property
    def factor(self) -> int:
        """Pixels on a side of a latent position."""
        return self.patch * 2 ** len(self.temporal)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(T, H, W, z) of the latents of a clip. Raises `BadInput` when the clip is off the rules."""
        frames_rule(frames, self.stride)
        size_rule(height, width, self.factor)
        return 1 + (frames - 1) // self.stride, height // self.factor, width // self.factor, self.z


class RMSNorm(nnx.Module):
    """gamma * sqrt(C) * x / |x| over channels, in float32. Reference: `WanRMS_norm`."""

    def __init__(self, channels: int):
        self.gamma = nnx.Param(jnp.ones((channels,), jnp.float32), axes=(None,))

    def __call__(self, x: Frames) -> Frames:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(y), -1, keepdims=True), 1e-24))
        return (y * (x.shape[-1] ** 0.5 * self.gamma.get_value())).astype(x.dtype)


class Block(nnx.Module):
    """Two causal convolutions and a shortcut. Reference: `WanResidualBlock`."""

    def __init__(self, inside: int, out: int, *, conv):
        self.norm1, self.conv1 = RMSNorm(inside), conv(inside, out)
        # a block begins as its shortcut: short trainings get further
        self.norm2, self.conv2 = RMSNorm(out), conv(out, out, kernel_init=nnx.initializers.zeros)
        self.conv_shortcut = conv(inside, out, (1, 1, 1)) if inside != out else None

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        first, second = past or (None, None)
        h, first = self.conv1(nnx.silu(self.norm1(x)), first)
        h, second = self.conv2(nnx.silu(self.norm2(h)), second)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)[0]
        return shortcut + h, (first, second)


class FrameAttention(nnx.Module):
    """One head over the positions of a frame. On a mesh each device has a part of the queries and all keys and values.
    Reference: `WanAttentionBlock`."""

    def __init__(self, channels: int, *, flat):
        self.norm = RMSNorm(channels)
        self.to_qkv = flat(channels, 3 * channels, 1)
        self.proj = flat(channels, channels, 1)

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        qkv = rearrange(self.to_qkv(self.norm(x)), "B T H W (three C) -> three (B T) (H W) 1 C", three=3)
        clips, time, *_, parts = over_frames(x.shape, self.proj.rules) or (None,) * 3
        frames = (*names_of(clips), *names_of(time)) or None
        k, v = (constrain(each, P(frames)) for each in qkv[1:])
        y = jax.nn.dot_product_attention(constrain(qkv[0], P(frames, parts)), k, v)
        return x + self.proj(constrain(y, P(frames, parts)).reshape(x.shape)), None


class Down(nnx.Module):
    """Halves height and width, and time when `temporal`: frame 0 passes, then every second frame from three (itself and
    the two before). Reference: `WanResample`, downsample2d and downsample3d."""

    def __init__(self, channels: int, temporal: bool, *, conv, flat):
        self.resample = flat(channels, channels, stride=2, pad=((0, 1), (0, 1)))
        self.time_conv = conv(channels, channels, (3, 1, 1)) if temporal else None

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        x = self.resample(x)
        if self.time_conv is None:
            return x, None
        joined = x if past is None else jnp.concatenate([past, x], 1)
        if joined.shape[1] < 3:
            return x, x[:, -1:]
        kernel, bias = (p.get_value().astype(x.dtype) for p in (self.time_conv.kernel, self.time_conv.bias))
        last = joined.shape[1] - 2
        y = sum(joined[:, k : last + k : 2] @ kernel[k, 0, 0] for k in range(3)) + bias
        return (jnp.concatenate([x[:, :1], y], 1) if past is None else y), x[:, -1:]


class Up(nnx.Module):
    """Doubles height and width, and time when `temporal`: frame 0 passes, every other frame becomes two, made from it
    and the two before, where frame 0 counts as nothing. Reference: `WanResample`, upsample2d and upsample3d."""

    def __init__(self, channels: int, out: int, temporal: bool, *, conv, flat):
        self.resample = flat(channels, out)
        self.time_conv = conv(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        if self.time_conv is not None:
            head, rest = (x[:, :0], x) if past is not None else (x[:, :1], x[:, 1:])
            if rest.shape[1]:
                y, past = self.time_conv(rest, past)
                y = rearrange(y, "B T H W (two C) -> B (T two) H W C", two=2)
                x = jnp.concatenate([head, y], 1)
            else:
                past = jnp.zeros((x.shape[0], 2, *x.shape[2:]), x.dtype)
        b, t, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, :, None, :, None], (b, t, h, 2, w, 2, c)).reshape(b, t, 2 * h, 2 * w, c)
        return self.resample(x), past


def _through(layers, x: Frames, past: Past) -> tuple[Frames, Past]:
    """Runs layers in order, each with its own past."""
    left = []
    for n, layer in enumerate(layers):
        x, tail = layer(x, None if past is None else past[n])
        left.append(tail)
    return x, tuple(left)


class Middle(nnx.Module):
    """Block, attention, block. Reference: `WanMidBlock`."""

    def __init__(self, channels: int, *, conv, flat):
        self.attentions = nnx.List([FrameAttention(channels, flat=flat)])
        self.resnets = nnx.List([Block(channels, channels, conv=conv) for _ in range(2)])

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        return _through((self.resnets[0], self.attentions[0], self.resnets[1]), x, past)


def averaged(x: Frames, out: int, time: int, space: int) -> Frames:
    """Positions of a block of (time, space, space) become channels, and groups of those become `out` means. What is
    missing from the first block's time is zero. Reference: `AvgDown3D`. `out` must divide the channels of a block."""
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "B (T t) (H h) (W w) C -> B T H W (C t h w)", t=time, h=space, w=space)
    return jnp.mean(x.reshape(*x.shape[:-1], out, -1), -1)


def repeated(x: Frames, out: int, time: int, space: int) -> Frames:
    """The way back: channels, each several times, become a block's positions with `out` channels. Reference:
    `DupUp3D`. The channels of `x` must divide those of a block."""
    x = jnp.repeat(x, out * time * space**2 // x.shape[-1], -1)
    return rearrange(x, "B T H W (C t h w) -> B (T t) (H h) (W w) C", t=time, h=space, w=space)


class ResidualDown(nnx.Module):
    """Blocks, the way down, and a shortcut around both. Reference: `WanResidualDownBlock`."""

    def __init__(self, inside: int, out: int, blocks: int, down: Down | None, *, conv):
        self.resnets = nnx.List([Block(inside if n == 0 else out, out, conv=conv) for n in range(blocks)])
        self.downsampler = down
        self.to = (out, 1, 1) if down is None else (out, 1 if down.time_conv is None else 2, 2)

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        y, past = _through((*self.resnets, *([] if self.downsampler is None else [self.downsampler])), x, past)
        return y + averaged(x, *self.to), past


class ResidualUp(nnx.Module):
    """Blocks (one more than in the encoder), the way up, and a shortcut around both. Reference:
    `WanResidualUpBlock`."""

    def __init__(self, inside: int, out: int, blocks: int, up: Up, *, conv):
        self.resnets = nnx.List([Block(inside if n == 0 else out, out, conv=conv) for n in range(blocks + 1)])
        self.upsampler = up
        self.to = (out, 1 if up.time_conv is None else 2, 2)

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        shortcut = repeated(x, *self.to)
        if past is None:  # frame 0 stays one frame
            shortcut = shortcut[:, self.to[1] - 1 :]
        y, past = _through((*self.resnets, self.upsampler), x, past)
        return y + shortcut, past


class Encoder(nnx.Module):
    """Patchified pixels -> 2 z channels. Reference: `WanEncoder3d`."""

    def __init__(self, cfg: VAEConfig, *, conv, flat):
        widths = [cfg.base * m for m in (1, *cfg.mult)]
        self.conv_in = conv(3 * cfg.patch**2, widths[0])
        layers, scale, kinds = [], 1.0, {"conv": conv, "flat": flat}
        for level, (inside, out) in enumerate(pairwise(widths)):
            if cfg.residual:
                down = None if level == len(cfg.temporal) else Down(out, cfg.temporal[level], **kinds)
                layers.append(ResidualDown(inside, out, cfg.res_blocks, down, conv=conv))
                continue
            for n in range(cfg.res_blocks):
                layers.append(Block(inside if n == 0 else out, out, conv=conv))
                if scale in cfg.attn_scales:
                    layers.append(FrameAttention(out, flat=flat))
            if level < len(cfg.temporal):
                layers.append(Down(out, cfg.temporal[level], **kinds))
                scale /= 2
        self.down_blocks = nnx.List(layers)
        self.mid_block = Middle(widths[-1], conv=conv, flat=flat)
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = conv(widths[-1], 2 * cfg.z)

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        return _through((self.conv_in, *self.down_blocks, self.mid_block, _head(self)), x, past)


class UpBlock(nnx.Module):
    """Blocks (one more than in the encoder) and the way up. Reference: `WanUpBlock`."""

    def __init__(self, inside: int, out: int, blocks: int, up: Up | None, *, conv):
        self.resnets = nnx.List([Block(inside if n == 0 else out, out, conv=conv) for n in range(blocks + 1)])
        self.upsamplers = nnx.List([] if up is None else [up])

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        return _through((*self.resnets, *self.upsamplers), x, past)


class Decoder(nnx.Module):
    """z channels -> patchified pixels. Reference: `WanDecoder3d`."""

    def __init__(self, cfg: VAEConfig, *, conv, flat):
        base = cfg.base if cfg.decoder_base is None else cfg.decoder_base
        mult, temporal = cfg.mult[::-1], cfg.temporal[::-1]
        inside = base * mult[0]
        self.conv_in = conv(cfg.z, inside)
        self.mid_block = Middle(inside, conv=conv, flat=flat)
        blocks = []
        for level, m in enumerate(mult):
            out, last = base * m, level == len(temporal)
            onward = out if cfg.residual else out // 2
            up = None if last else Up(out, onward, temporal[level], conv=conv, flat=flat)
            kind = ResidualUp if cfg.residual and not last else UpBlock
            blocks.append(kind(inside, out, cfg.res_blocks, up, conv=conv))
            inside = onward
        self.up_blocks = nnx.List(blocks)
        self.norm_out = RMSNorm(out)
        self.conv_out = conv(out, 3 * cfg.patch**2)

    def __call__(self, x: Frames, past: Past = None) -> tuple[Frames, Past]:
        return _through((self.conv_in, self.mid_block, *self.up_blocks, _head(self)), x, past)


def _head(net: Encoder | Decoder):
    return lambda x, past: net.conv_out(nnx.silu(net.norm_out(x)), past)


class VAE(nnx.Module):
    """Video in [-1, 1] <-> latents. Initialise inside `jax.jit` for large configs."""

    def __init__(self, cfg: VAEConfig, rules: Rules = Rules(), *, rngs: nnx.Rngs):
        flat = partial(Conv2d, dtype=cfg.dtype, rules=rules, rngs=rngs)
        conv = partial(CausalConv3d, dtype=cfg.dtype, back=cfg.conv, rules=rules, rngs=rngs)
        self.encoder = Encoder(cfg, conv=conv, flat=flat)
        self.quant_conv = conv(2 * cfg.z, 2 * cfg.z, (1, 1, 1))
        self.post_quant_conv = conv(cfg.z, cfg.z, (1, 1, 1))
        self.decoder = Decoder(cfg, conv=conv, flat=flat)
        self.cfg, self.rules = cfg, rules

    def _encode(self, video: Video, past: Past = None) -> tuple[Latent, Latent, Past]:
        p = self.cfg.patch
        x = split(video, self.rules)
        x = rearrange(x, "B T (H p) (W q) C -> B T H W (C q p)", p=p, q=p)  # width before height, as the reference
        x, past = self.encoder(x, past)
        mean, logvar = jnp.split(self.quant_conv(x)[0].astype(jnp.float32), 2, -1)
        return mean, jnp.clip(logvar, -30.0, 20.0), self._kept(past)

    def _decode(self, z: Latent, past: Past = None) -> tuple[Video, Past]:
        p = self.cfg.patch
        x, _ = self.post_quant_conv(split(z, self.rules))
        x, past = self.decoder(x, past)
        video = rearrange(x, "B T H W (C q p) -> B T (H p) (W q) C", p=p, q=p).astype(jnp.float32)
        return video, self._kept(past)

    def _kept(self, past: Past) -> Past:
        """On a mesh every piece's past lies as the next one's, so that one program serves all of them."""
        return jax.tree.map(lambda frames: split(frames, self.rules), past)

    def encode(self, video: Video) -> tuple[Latent, Latent]:
        """Mean and log-variance of the latents, raw (not normalised): (B, 1+(T-1)/stride, H/factor, W/factor, z).
        Raises `BadInput` when frames or sizes are off the rule."""
        self.cfg.latent_shape(*video.shape[1:4])
        return self._encode(video)[:2]

    def encode_piece(self, video: Video, past: Past = None) -> tuple[Latent, Latent, Past]:
        """As `encode`, of the frames that follow `past` (None: the clip's first, and one more than whole slots), and
        the past of the next piece."""
        return self._encode(video, past)

    def decode(self, z: Latent, clip: bool = True) -> Video:
        """Raw latents -> pixels, cut to [-1, 1] as the reference does unless `clip` is off (training)."""
        video = self._decode(z)[0]
        return jnp.clip(video, -1.0, 1.0) if clip else video

    def decode_piece(self, z: Latent, past: Past = None, clip: bool = True) -> tuple[Video, Past]:
        """As `decode`, of the latents that follow `past` (None: the clip's first), and the past of the next piece."""
        video, past = self._decode(z, past)
        return jnp.clip(video, -1.0, 1.0) if clip else video, past

    def normalize(self, z: Latent) -> Latent:
        """Raw latents -> what the denoiser sees: (z - mean) / std with the stored statistics."""
        return (z - self._mean()) / self._std()

    def denormalize(self, z: Latent) -> Latent:
        """The inverse of `normalize`."""
        return z * self._std() + self._mean()

    def _mean(self) -> Float[Array, "z"]:
        return jnp.asarray(self.cfg.latents_mean or (0.0,) * self.cfg.z, jnp.float32)

    def _std(self) -> Float[Array, "z"]:
        return jnp.asarray(self.cfg.latents_std or (1.0,) * self.cfg.z, jnp.float32)


def spans(count: int, length: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the pieces of frames or latents: the first with the first `length` others, then `length` each."""
    return pairwise((0, *range(length + 1, count, length), count))
