"""Causal convolution over (time, height, width), with two ways to compute it.

A frame sees itself and earlier frames only; before the first frame there is zero. Arrays are (B, T, H, W, C), kernels
(t, h, w, in, out). `direct` is the compiler's 3-D convolution, right for GPU and TPU. `folded` is for the CPU, where
XLA's 3-D convolution is slow: one 2-D convolution makes the contribution of every frame to itself and to the frames
after it, as t times the channels, and shifted sums collect them (two cores, 16 to 64 channels: 45-90 GFLOP/s against
3-23 forward). Its gradients are written out, because the derived one of the kernel is a convolution with a window as
large as the image.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from dit_video.core.mesh import Rules, constrain, over_frames

Frames = Float[Array, "_ _ _ _ _"]  # B T H W C, sizes unnamed: what a layer returns has other channels than it took
Kernel3D = Float[Array, "t h w I O"]
Back = Literal["folded", "direct", "platform"]

_NHWC = ("NHWC", "HWIO", "NHWC")

# uniform, because compiling a truncated normal for each of sixty kernels takes a CPU minutes
fan_in = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")


def _same(size: int) -> tuple[int, int]:
    return (size - 1) // 2, size // 2


def conv2d(x: Frames, kernel: Float[Array, "h w I O"], stride: int = 1, pad=None) -> Frames:
    """A 2-D convolution of every frame; `pad` as ((top, bottom), (left, right)), by default it keeps the size."""
    b, t, h, w, c = x.shape
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return x @ kernel[0, 0]
    pad = (_same(kernel.shape[0]), _same(kernel.shape[1])) if pad is None else pad
    y = lax.conv_general_dilated(x.reshape(b * t, h, w, c), kernel, (stride, stride), pad, dimension_numbers=_NHWC)
    return y.reshape(b, t, *y.shape[1:])


def _delay(y: Frames, by: int) -> Frames:
    """Shifts frames later (by > 0) or earlier (by < 0); zero comes in."""
    if by == 0:
        return y
    y = y[:, :-by] if by > 0 else y[:, -by:]
    return jnp.pad(y, ((0, 0), (max(by, 0), max(-by, 0)), (0, 0), (0, 0), (0, 0)))


def _spread(x: Frames, kernel: Kernel3D, direction: int) -> Frames:
    """One 2-D convolution to (taps x channels), then each tap's frames shifted to where they belong."""
    taps = min(kernel.shape[0], x.shape[1])  # what a short clip cannot reach is not computed
    kernel = kernel[kernel.shape[0] - taps :]
    t, h, w, i, o = kernel.shape
    y = conv2d(x, jnp.moveaxis(kernel, 0, 3).reshape(h, w, i, t * o))
    return sum(_delay(y[..., k * o : (k + 1) * o], direction * (taps - 1 - k)) for k in range(taps))


@jax.custom_vjp
def folded(x: Frames, kernel: Kernel3D) -> Frames:
    """Causal convolution with zero history, stride 1, size kept; y[s] = sum_k kernel[k] * x[s - (t - 1) + k]."""
    return _spread(x, kernel, +1)


def _folded_forward(x, kernel):
    return folded(x, kernel), (x, kernel)


def _folded_backward(saved, dy):
    x, kernel = saved
    t, h, w, i, o = kernel.shape
    # the transpose in space is a correlation with the mirrored kernel, in time it looks ahead
    dx = _spread(dy, kernel[:, ::-1, ::-1].swapaxes(-1, -2), -1)
    # the kernel's: a few matmuls of columns of x (shifted in width) against columns of dy (shifted in time)
    top, bottom = _same(h)
    left, right = _same(w)
    height, width = x.shape[2:4]
    xp = jnp.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0)))
    columns = jnp.concatenate([xp[:, :, :, k : k + width] for k in range(w)], -1)
    ahead = jnp.concatenate(
        [_delay(dy, k - (t - 1)) if t - 1 - k < x.shape[1] else jnp.zeros_like(dy) for k in range(t)], -1
    )
    ahead = ahead.reshape(-1, t * o)
    rows = [columns[:, :, j : j + height].reshape(-1, w * i).T @ ahead for j in range(h)]
    dkernel = jnp.stack(rows).reshape(h, w, i, t, o).transpose(3, 0, 1, 2, 4)
    return dx, dkernel


folded.defvjp(_folded_forward, _folded_backward)


def direct(x: Frames, kernel: Kernel3D) -> Frames:
    """The same as `folded`, as one 3-D convolution."""
    t, h, w = kernel.shape[:3]
    return lax.conv_general_dilated(
        x, kernel, (1, 1, 1), ((t - 1, 0), _same(h), _same(w)), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def by_platform(x: Frames, kernel: Kernel3D) -> Frames:
    """`folded` on a CPU and `direct` elsewhere, chosen where the program is lowered for a platform: for programs that
    are exported for several."""
    return lax.platform_dependent(x, kernel, cpu=folded, default=direct)


_BACK = {"folded": folded, "direct": direct, "platform": by_platform}


def split(x: Frames, rules: Rules) -> Frames:
    """The same frames, on a mesh in parts of a side or of time. What goes into a convolution is pinned as what comes
    out: left to XLA, it made a wrong gradient of a kernel where clips and frames are split."""
    return constrain(x, over_frames(x.shape, rules))


class CausalConv3d(nnx.Module):
    """Causal convolution, stride 1, spatial size kept, with bias. Reference: `WanCausalConv3d` of diffusers.

    Called with the last frames of what came before (`past`; None: nothing came before) it returns what the next call
    wants as its past, so a clip in pieces and a whole clip go through the same code. On a mesh every device has a part
    of each frame or of the frames, as `over_frames` says: the compiler sees to the borders that neighbours need of it.
    """

    def __init__(
        self, inside: int, out: int, size: tuple[int, int, int] = (3, 3, 3), *, dtype="float32", back: Back = "folded",
        kernel_init=fan_in, rules: Rules = Rules(), rngs: nnx.Rngs,
    ):  # fmt: skip
        kernel = kernel_init(rngs.params(), (*size, inside, out), jnp.float32)
        self.kernel = nnx.Param(kernel, axes=(None, None, None, None, None))
        self.bias = nnx.Param(jnp.zeros((out,), jnp.float32), axes=(None,))
        self.history, self.dtype, self.back, self.rules = size[0] - 1, dtype, back, rules

    def __call__(self, x: Frames, past: Frames | None = None) -> tuple[Frames, Frames | None]:
        x = split(x.astype(self.dtype), self.rules)
        kernel, bias = (p.get_value().astype(self.dtype) for p in (self.kernel, self.bias))
        if self.history == 0:
            return split(conv2d(x, kernel[0]) + bias, self.rules), None
        joined = x if past is None else jnp.concatenate([past, x], 1)
        y = _BACK[self.back](joined, kernel)[:, joined.shape[1] - x.shape[1] :] + bias
        short = max(0, self.history - joined.shape[1])
        tail = jnp.pad(joined, ((0, 0), (short, 0), (0, 0), (0, 0), (0, 0)))[:, -self.history :]
        return split(y, self.rules), tail


class Conv2d(nnx.Module):
    """A 2-D convolution of every frame, with bias; `pad` and `stride` as in `conv2d`."""

    def __init__(
        self, inside: int, out: int, size: int = 3, *, stride: int = 1, pad=None, dtype="float32",
        rules: Rules = Rules(), rngs: nnx.Rngs,
    ):  # fmt: skip
        self.kernel = nnx.Param(fan_in(rngs.params(), (size, size, inside, out), jnp.float32), axes=(None,) * 4)
        self.bias = nnx.Param(jnp.zeros((out,), jnp.float32), axes=(None,))
        self.stride, self.pad, self.dtype, self.rules = stride, pad, dtype, rules

    def __call__(self, x: Frames) -> Frames:
        kernel, bias = (p.get_value().astype(self.dtype) for p in (self.kernel, self.bias))
        x = split(x.astype(self.dtype), self.rules)
        return split(conv2d(x, kernel, self.stride, self.pad) + bias, self.rules)
