"""The image encoder: CLIP's vision transformer, whose tokens Wan 2.1's image-to-video models look at.

A plain ViT (Dosovitskiy et al. 2010.11929) trained as CLIP (2103.00020). What is wanted is not its last layer but the
one before, without a norm: 257 tokens of a picture. Reference: `CLIPVisionModel` of transformers, `hidden_states[-2]`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from dit_video.core.errors import BadInput
from dit_video.core.mesh import Rules, constrain
from dit_video.nn.attention import attention
from dit_video.nn.linear import NORMAL, linear_layer
from dit_video.nn.norms import LayerNorm
from dit_video.nn.patches import patchify

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training set


@dataclass(frozen=True)
class ImageConfig:
    """Sizes; the defaults are those of the ViT-H/14 that Wan 2.1 comes with."""

    width: int = 1280
    heads: int = 16
    depth: int = 32  # the last layer is carried and not computed
    ffn_dim: int = 5120
    size: int = 224  # pixels on a side
    patch: int = 14
    eps: float = 1e-5
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    dtype: str = "float32"

    def __post_init__(self):
        if self.width % self.heads or self.size % self.patch:
            raise BadInput(f"{self}: heads must divide width, and patch must divide size")
        if self.activation not in _ACTIVATIONS:
            raise BadInput(f"activation={self.activation!r}: choose one of {', '.join(_ACTIVATIONS)}")

    @property
    def tokens(self) -> int:
        """Of one picture: its patches, and the one that stands for all of it."""
        return 1 + (self.size // self.patch) ** 2


_ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def prepare(picture: UInt8[np.ndarray, "H W 3"], size: int) -> Float[np.ndarray, "size size 3"]:
    """A picture as the encoder wants it: the shorter side to `size` (bicubic), the middle cut out, normalised.
    Reference: `CLIPImageProcessor` of transformers, on Pillow."""
    from PIL import Image

    height, width, _ = picture.shape
    short = min(height, width)
    high, wide = int(size * height / short), int(size * width / short)
    resized = np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.BICUBIC))
    top, left = (high - size) // 2, (wide - size) // 2
    middle = resized[top : top + size, left : left + size].astype(np.float32) / 255
    return (middle - np.float32(MEAN)) / np.float32(STD)


class Layer(nnx.Module):
    """Pre-norm attention and MLP, both residual. Reference: `CLIPEncoderLayer`."""

    def __init__(self, cfg: ImageConfig, rules: Rules, *, rngs: nnx.Rngs):
        D, linear = cfg.width, partial(linear_layer, init=NORMAL, dtype=cfg.dtype, rngs=rngs)
        self.norm_attn, self.norm_mlp = LayerNorm(D, cfg.eps), LayerNorm(D, cfg.eps)
        self.q, self.k, self.v = (linear(D, D, ("width", "heads")) for _ in range(3))
        self.out = linear(D, D, ("heads", "width"))
        self.up, self.down = linear(D, cfg.ffn_dim, ("width", "mlp")), linear(cfg.ffn_dim, D, ("mlp", "width"))
        self.cfg, self.rules = cfg, rules

    def heads(self, x: Float[Array, "B I D"]) -> Float[Array, "B I n K"]:
        return constrain(x.reshape(*x.shape[:-1], self.cfg.heads, -1), self.rules("batch", None, "heads", None))

    def __call__(self, x: Float[Array, "B I D"]) -> Float[Array, "B I D"]:
        h = self.norm_attn(x).astype(x.dtype)
        q, k, v = (self.heads(linear(h)) for linear in (self.q, self.k, self.v))
        x = x + self.out(attention(q, k, v, backend="xla").reshape(x.shape))
        h = constrain(self.up(self.norm_mlp(x).astype(x.dtype)), self.rules("batch", None, "mlp"))
        return x + self.down(_ACTIVATIONS[self.cfg.activation](h))


class ImageEncoder(nnx.Module):
    """Prepared pictures to tokens. `norm_out` and the last layer are carried along for the files alone."""

    def __init__(self, cfg: ImageConfig, rules: Rules = Rules(), *, rngs: nnx.Rngs):
        D, normal = cfg.width, partial(NORMAL, dtype=jnp.float32)
        self.patch = nnx.Linear(
            3 * cfg.patch**2, D, use_bias=False, kernel_init=NORMAL, dtype=cfg.dtype, rngs=rngs,
            kernel_metadata={"axes": (None, "width")},
        )  # fmt: skip
        self.whole = nnx.Param(normal(rngs.params(), (D,)), axes=(None,))  # the token that stands for all of a picture
        self.positions = nnx.Param(normal(rngs.params(), (cfg.tokens, D)), axes=(None, None))
        self.norm_in, self.norm_out = LayerNorm(D, cfg.eps), LayerNorm(D, cfg.eps)
        self.layers = nnx.vmap(lambda r: Layer(cfg, rules, rngs=r))(rngs.split(cfg.depth))
        self.cfg, self.rules = cfg, rules

    def __call__(self, pictures: Float[Array, "B Y X 3"]) -> Float[Array, "B I D"]:
        """pictures: from `prepare`. Raises `BadInput` when they have another size than `size` x `size`."""
        cfg, B = self.cfg, pictures.shape[0]
        if pictures.shape[1:3] != (cfg.size, cfg.size):
            raise BadInput(f"pictures of {pictures.shape[1:3]}: this encoder takes {cfg.size} x {cfg.size} pixels")
        patches = patchify(pictures[:, None], (1, cfg.patch, cfg.patch)).reshape(B, cfg.tokens - 1, -1)
        whole = jnp.broadcast_to(self.whole[...].astype(cfg.dtype), (B, 1, cfg.width))
        x = jnp.concatenate([whole, self.patch(constrain(patches, self.rules("batch")))], 1) + self.positions[...]
        x = self.norm_in(x).astype(cfg.dtype)
        graph, layers = nnx.split(self.layers)

        def body(x, n):  # by number, because a slice without the last layer would be a copy of all the others
            return nnx.merge(graph, jax.tree.map(lambda a: a[n], layers))(x), None

        return jax.lax.scan(body, x, jnp.arange(cfg.depth - 1))[0]
