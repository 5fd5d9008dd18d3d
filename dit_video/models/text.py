"""The text encoder: UMT5's, the one that the Wan family reads prompts with.

T5 v1.1 (Raffel et al. 2020; Shazeer 2020 for the gated GELU) with a relative position bias in *every* layer
(Chung et al. 2023). Reference: `UMT5EncoderModel` of transformers. Small sizes are trained with the denoiser.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dit_video.core.mesh import Rules, constrain
from dit_video.core.types import Text


@dataclass(frozen=True)
class TextConfig:
    """Sizes; the defaults are those of umt5-xxl. `dtype` is the one computed in, weights are kept in float32."""

    vocab: int = 256384
    width: int = 4096
    heads: int = 64
    head_dim: int = 64
    ffn_dim: int = 10240
    depth: int = 24
    buckets: int = 32  # of relative positions, half of them for each direction
    max_distance: int = 128  # positions further apart than this share the last bucket
    eps: float = 1e-6
    dtype: str = "float32"


def distance_buckets(buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each distance 0..max_distance in one direction: exact up to half, logarithmic from there.

    float32 throughout, as the reference has it: in float64 some edges would fall to the other side.
    """
    distance = np.arange(max_distance + 1, dtype=np.float32)
    exact = buckets // 2
    log_ratio = np.log(np.maximum(distance, 1) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    far = exact + (log_ratio * np.float32(buckets - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(far, buckets - 1)).astype(np.int32)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[Array, "S S"]:
    """Bucket of (query, key); keys to the right of the query have the upper half."""
    position = jnp.arange(length)
    offset = position[None, :] - position[:, None]
    near = jnp.asarray(distance_buckets(buckets // 2, max_distance))[jnp.minimum(jnp.abs(offset), max_distance)]
    return near + jnp.where(offset > 0, buckets // 2, 0)


class Attention(nnx.Module):
    """Self-attention of T5: logits are not scaled (the initialisation of `q` is), the bias goes by distance."""

    def __init__(self, cfg: TextConfig, rules: Rules, *, rngs: nnx.Rngs):
        inner = cfg.heads * cfg.head_dim
        linear = partial(nnx.Linear, use_bias=False, dtype=cfg.dtype, rngs=rngs)
        into = partial(linear, cfg.width, inner, kernel_metadata={"axes": ("width", "heads")})
        normal = nnx.initializers.normal
        self.q = into(kernel_init=normal((cfg.width * cfg.head_dim) ** -0.5))
        self.k = into(kernel_init=normal(cfg.width**-0.5))
        self.v = into(kernel_init=normal(cfg.width**-0.5))
        self.o = linear(
            inner, cfg.width, kernel_init=normal(_residual(cfg, inner)), kernel_metadata={"axes": ("heads", "width")}
        )
        self.bias = nnx.Embed(
            cfg.buckets, cfg.heads, embedding_init=normal(1.0), embedding_metadata={"axes": (None, "heads")}, rngs=rngs
        )
        self.cfg, self.rules = cfg, rules

    def __call__(
        self, x: Float[Array, "B S D"], near: Int[Array, "S S"], visible: Float[Array, "B 1 1 S"]
    ) -> Float[Array, "B S D"]:
        batch, length, _ = x.shape
        q, k, v = (
            constrain(
                proj(x).reshape(batch, length, self.cfg.heads, self.cfg.head_dim),
                self.rules("batch", None, "heads", None),
            )
            for proj in (self.q, self.k, self.v)
        )
        logits = jnp.einsum("BSNK,BTNK->BNST", q, k, preferred_element_type=jnp.float32)
        logits = logits + jnp.moveaxis(self.bias(near), -1, 0) + visible
        mixed = jnp.einsum("BNST,BTNK->BSNK", nnx.softmax(logits).astype(v.dtype), v)
        return self.o(mixed.reshape(batch, length, -1))


class FeedForward(nnx.Module):
    """Gated tanh-GELU (Shazeer 2020, GEGLU)."""

    def __init__(self, cfg: TextConfig, rules: Rules, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, use_bias=False, dtype=cfg.dtype, rngs=rngs)
        normal = nnx.initializers.normal
        into = partial(linear, cfg.width, cfg.ffn_dim, kernel_metadata={"axes": ("width", "mlp")})
        self.gate = into(kernel_init=normal(cfg.width**-0.5))
        self.up = into(kernel_init=normal(cfg.width**-0.5))
        self.down = linear(
            cfg.ffn_dim,
            cfg.width,
            kernel_init=normal(_residual(cfg, cfg.ffn_dim)),
            kernel_metadata={"axes": ("mlp", "width")},
        )
        self.rules = rules

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        h = nnx.gelu(self.gate(x), approximate=True) * self.up(x)
        return self.down(constrain(h, self.rules("batch", None, "mlp")))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, both residual."""

    def __init__(self, cfg: TextConfig, rules: Rules, *, rngs: nnx.Rngs):
        self.norm_attn, self.norm_ffn = _norm(cfg, rngs), _norm(cfg, rngs)
        self.attn = Attention(cfg, rules, rngs=rngs)
        self.ffn = FeedForward(cfg, rules, rngs=rngs)
        self.rules = rules

    def __call__(self, x, near, visible) -> Float[Array, "B S D"]:
        x = x + self.attn(self.norm_attn(x), near, visible)
        x = x + self.ffn(self.norm_ffn(x))
        return constrain(x, self.rules("batch", None, None))


class TextEncoder(nnx.Module):
    """Ids of a prompt to one row a piece. The rows past the length are zero, as the pipelines of the family want."""

    def __init__(self, cfg: TextConfig, rules: Rules = Rules(), *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(
            cfg.vocab,
            cfg.width,
            dtype=cfg.dtype,
            embedding_init=nnx.initializers.normal(EMBEDDING_STD),
            embedding_metadata={"axes": (None, "width")},
            rngs=rngs,
        )
        self.blocks = nnx.vmap(lambda r: Block(cfg, rules, rngs=r))(rngs.split(cfg.depth))
        self.norm = _norm(cfg, rngs)
        self.cfg, self.rules = cfg, rules

    def __call__(self, ids: Int[Array, "B S"], length: Int[Array, "B"]) -> Text:
        """`ids` are padded to a common S; what stands at or past `length` is neither attended to nor returned."""
        cfg, steps = self.cfg, ids.shape[1]
        real = jnp.arange(steps) < length[:, None]
        visible = jnp.where(real, 0.0, jnp.finfo(jnp.float32).min)[:, None, None, :]
        near = relative_buckets(steps, cfg.buckets, cfg.max_distance)
        graph, layers = nnx.split(self.blocks)

        def body(x, layer):
            return nnx.merge(graph, layer)(x, near, visible), None

        # A lookup cannot be split where batch and the table's width lie on one mesh axis: gather the table first.
        words = constrain(self.embed.embedding[...], self.rules(None, None)).astype(cfg.dtype)
        x = constrain(jnp.take(words, ids, axis=0), self.rules("batch", None, None))
        rows = self.norm(jax.lax.scan(body, x, layers)[0])
        return Text(jnp.where(real[..., None], rows, 0), length)


# Trained from nothing, and by the denoiser's AdamW: with T5's unit embeddings a step of 1e-3 would hardly turn a
# word's row. Small ones turn fast, and the blocks' outputs are scaled with them, so that at the start a row is still
# mostly its own word. The norm at the end makes the scale itself of no consequence.
EMBEDDING_STD = 0.1


def _residual(cfg: TextConfig, inputs: int) -> float:
    """Standard deviation of a projection back to the stream, such that all 2 x depth of them add up to its size."""
    return EMBEDDING_STD * (2 * cfg.depth * inputs) ** -0.5


def _norm(cfg: TextConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        cfg.width, epsilon=cfg.eps, dtype=cfg.dtype, scale_metadata={"axes": (None,)}, use_fast_variance=True, rngs=rngs
    )
