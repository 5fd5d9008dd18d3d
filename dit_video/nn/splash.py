"""Attention on a TPU by the splash kernels of JAX: online softmax in tiles, no matrix of logits in memory.

Three things make them fit here. Heads are mapped (`jax.vmap`), not given as the kernel's own heads: a mapped axis is
"parallel" to the compiler, and chips whose two cores are one device (v4, v5p) then share the backward pass too, which
the kernels mark as sequential. The backward pass is the fused one, five products instead of seven; it writes a partial
gradient of the queries for every block of keys, so few heads go at once. What the backward pass needs of the forward
one carries the name KEPT, for a rematerialisation policy that does not compute attention twice.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KEPT = "attention"  # the name of outputs and log-sum-exps
LANES = 128  # tiles are whole vector registers
QUERIES, KEYS, AT_ONCE = 512, 1024, 512  # sides of a tile at most, and how many of its keys are computed at once
PARTIAL = 2**30  # bytes of partial gradients of the queries that are held
CORES = 2  # heads that always go together: one for each core of a chip
OUT = -1e30  # logit of a key that is not there


def tile(size: int, target: int) -> tuple[int, int]:
    """(side, whole): equal tiles of whole lanes, at most `target`, and what they cover of `size` or a little more."""
    count = -(-size // target)
    side = -(-size // (count * LANES)) * LANES
    return side, count * side


def at_once(side: int) -> int:
    """The largest part of a tile's keys up to AT_ONCE that divides it."""
    return max(part for part in range(LANES, min(side, AT_ONCE) + 1, LANES) if side % part == 0)


def with_bias(
    q: Float[Array, "N L K"], k: Float[Array, "N S K"], bias: Float[Array, "N S"]
) -> tuple[Float[Array, "N L J"], Float[Array, "N S J"]]:
    """Queries and keys whose product has `bias` in it: two more numbers, of which the second is what the first lost
    in a short dtype, and zeros up to whole lanes."""
    bias = jnp.maximum(bias.astype(jnp.float32), jnp.finfo(k.dtype).min / 4)
    high = bias.astype(k.dtype)
    low = (bias - high.astype(jnp.float32)).astype(k.dtype)
    rest = -(q.shape[-1] + 2) % LANES
    ones = jnp.broadcast_to(jnp.asarray([1, 1] + [0] * rest, q.dtype), (*q.shape[:2], 2 + rest))
    more = jnp.pad(jnp.stack([high, low], -1), ((0, 0), (0, 0), (0, rest)))
    return jnp.concatenate([q, ones], -1), jnp.concatenate([k, more], -1)


def splash(
    q: Float[Array, "B L n K"],
    k: Float[Array, "B S n K"],
    v: Float[Array, "B S n K"],
    bias: Float[Array, "B S"] | None,
    scale: float,
    *,
    wide: bool = False,
    interpret: bool = False,
) -> Float[Array, "B L n K"]:
    """softmax(q k^T * scale + bias) v on one device.

    wide: for matrix units 256 wide (v6e, tpu7x), half of which heads of 128 leave empty: what fills the last tile of
    keys is then masked by one more number in queries and keys, which costs nothing there, instead of by a comparison
    of every pair. interpret: without a TPU, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    B, L, n, _ = q.shape
    S = k.shape[1]
    (rows, whole_L), (columns, whole_S) = tile(L, QUERIES), tile(S, KEYS)

    def by_head(x: Float[Array, "B L n K"], whole: int) -> Float[Array, "N M K"]:
        x = x.swapaxes(1, 2).reshape(B * n, -1, x.shape[-1])
        return jnp.pad(x, ((0, 0), (0, whole - x.shape[1]), (0, 0)))

    q, k, v = by_head(q * jnp.asarray(scale, q.dtype), whole_L), by_head(k, whole_S), by_head(v, whole_S)
    segments = None
    if wide and bias is None and whole_S > S:
        bias = jnp.zeros((B, S), jnp.float32)
    if bias is not None:
        bias = jnp.pad(bias.astype(jnp.float32), ((0, 0), (0, whole_S - S)), constant_values=OUT)
        q, k = with_bias(q, k, jnp.repeat(bias, n, 0))
    elif whole_S > S:  # what was added to fill the last tile is of another segment
        segments = kernels.SegmentIds(jnp.zeros(whole_L, jnp.int32), (jnp.arange(whole_S) >= S).astype(jnp.int32))
    part = at_once(columns)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((whole_L, whole_S))]),
        block_sizes=kernels.BlockSizes(
            rows, columns, part, rows, columns, part, use_fused_bwd_kernel=True
        ),
        head_shards=1, q_seq_shards=1, residual_checkpoint_name=KEPT, interpret=interpret,
    )  # fmt: skip

    def head(q: Float[Array, "M J"], k: Float[Array, "R J"], v: Float[Array, "R K"]) -> Float[Array, "M K"]:
        return kernel(q[None], k[None], v[None], segment_ids=segments)[0]

    held = whole_S // columns * q[0].size * q.dtype.itemsize
    together = max(CORES, PARTIAL // held)
    if together >= B * n:
        out = jax.vmap(head)(q, k, v)
    else:
        out = jax.lax.map(lambda x: head(*x), (q, k, v), batch_size=together)
    return out[:, :L].reshape(B, n, L, -1).swapaxes(1, 2)
