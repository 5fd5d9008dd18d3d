"""Attention through one door; which back end computes it is an argument.

Nothing here asks which device is present: a machine that plans or exports for another must get that one's back end.
On a mesh every device computes whole rows of some heads. Where tokens are split (the context axis), an all-to-all
brings all tokens of a part of the heads to each device and another one takes the result back (Ulysses, 2309.14509).
Where the heads do not divide, each device keeps its queries: keys and values go round (`nn.ring`), or, for the kernels,
which want whole rows, are gathered.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from dit_video.core.errors import BadInput
from dit_video.core.mesh import Axis, Rules, fits, ways
from dit_video.nn.ring import ring
from dit_video.nn.splash import splash

Heads = Float[Array, "B L n K"]
Keys = Float[Array, "B S n K"]


def plain(q: Heads, k: Keys, v: Keys, bias: Float[Array, "B S"] | None, scale: float) -> Heads:
    """Softmax over all keys at once, float32 inside: memory grows with L * S (Vaswani et al. 2017, eq. 1)."""
    logits = jnp.einsum("blnk,bsnk->bnls", q * jnp.asarray(scale, q.dtype), k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias[:, None, None, :].astype(jnp.float32)
    weights = jax.nn.softmax(logits, -1).astype(v.dtype)
    return jnp.einsum("bnls,bsnk->blnk", weights, v)


def chunked(q: Heads, k: Keys, v: Keys, bias: Float[Array, "B S"] | None, scale: float, *, rows: int = 512) -> Heads:
    """The same for `rows` queries at a time, each chunk computed again for its gradient: memory grows with L + S,
    forward and backward. Queries are padded up to whole chunks. On a CPU a chunk is of one head, elsewhere of all."""
    L = q.shape[1]
    count = -(-L // rows)
    rows = L if count <= 1 else rows
    q = jnp.pad(q, ((0, 0), (0, count * rows - L), (0, 0), (0, 0)))
    ways = {"cpu": _by_head, "default": _by_chunk}
    return jax.lax.platform_dependent(q, k, v, bias, **{at: partial(f, scale, rows) for at, f in ways.items()})[:, :L]


def _by_chunk(scale: float, rows: int, q: Heads, k: Keys, v: Keys, bias: Float[Array, "B S"] | None) -> Heads:
    B, L, n, K = q.shape
    one = jax.checkpoint(lambda chunk: plain(chunk, k, v, bias, scale), prevent_cse=False)
    out = jax.lax.map(one, q.reshape(B, -1, rows, n, K).swapaxes(0, 1))
    return out.swapaxes(0, 1).reshape(B, L, n, K)


def _by_head(scale: float, rows: int, q: Heads, k: Keys, v: Keys, bias: Float[Array, "B S"] | None) -> Heads:
    """A CPU is fast at products of two matrices that lie in one piece: 60 GFLOP/s of two cores where all heads of
    L x n x K in one product made 25. So heads are brought before tokens first, by copies that no product takes in."""
    B, L, n, K = q.shape

    def one(chunk: Float[Array, "l K"], k: Float[Array, "S K"], v: Float[Array, "S K"], bias: Any) -> Any:
        logits = jnp.dot(chunk * jnp.asarray(scale, chunk.dtype), k.T, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        out = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

    def head(of: Any) -> Any:
        q, k, v, bias = of
        chunk = jax.checkpoint(lambda chunk: one(chunk, k, v, bias), prevent_cse=False)
        return jax.lax.map(chunk, q.reshape(-1, rows, K)).reshape(L, K)

    heads = (jax.lax.optimization_barrier(x.swapaxes(1, 2).reshape(B * n, -1, K)) for x in (q, k, v))
    bias = None if bias is None else jnp.repeat(bias.astype(jnp.float32), n, 0)
    return jax.lax.map(head, (*heads, bias)).reshape(B, n, L, K).swapaxes(1, 2)


def cudnn(q: Heads, k: Keys, v: Keys, bias: Float[Array, "B S"] | None, scale: float) -> Heads:
    """cuDNN's flash attention on an NVIDIA GPU, in float16 or bfloat16. `bias` has no gradient here."""
    if bias is not None:
        lowest = jnp.finfo(q.dtype).min / 4
        rows = jnp.maximum(jax.lax.stop_gradient(bias), lowest).astype(q.dtype)[:, None, None, :]
        bias = jnp.broadcast_to(rows, (q.shape[0], 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=scale, implementation="cudnn")


RINGS = ("xla", "chunked")  # whose keys and values go round where heads do not divide

BACKENDS: dict[str, Callable[..., Heads]] = {
    "xla": plain,
    "chunked": chunked,
    "splash": splash,
    "splash_wide": partial(splash, wide=True),
    "cudnn": cudnn,
}


def attention(
    q: Heads,
    k: Keys,
    v: Keys,
    *,
    bias: Float[Array, "B S"] | None = None,
    backend: str,
    scale: float | None = None,
    rules: Rules | None = None,
    keys: str | None = "tokens",
) -> Heads:
    """Every query looks at every key: softmax(q k^T * scale + bias) v.

    `bias` is added to the logits of a key, for all heads and queries. Only that: it can be had on any back end, by one
    more number in queries and keys where there is no argument for it. `scale` is 1/sqrt(K) unless given.
    rules: how queries (batch, tokens, heads) lie on the mesh in force, and `keys` the logical axis of the keys, None
    where every device has all of them; without rules the compiler decides, which the kernels do not let it.
    Raises `BadInput` on an unknown `backend`.
    """
    if backend not in BACKENDS:
        raise BadInput(f"attention={backend!r}: there is no such back end. There are: {', '.join(sorted(BACKENDS))}.")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    one, mesh = partial(BACKENDS[backend], scale=scale), jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty:
        return one(q, k, v, bias)
    around = partial(ring, scale=scale) if backend in RINGS and bias is None else None
    return _on_mesh(one, around, q, k, v, bias, mesh, rules, keys)


def _on_mesh(
    one: Callable[..., Heads], around: Callable[..., Heads] | None,
    q: Heads, k: Keys, v: Keys, bias: Float[Array, "B S"] | None,
    mesh: AbstractMesh, rules: Rules, keys: str | None,
) -> Heads:  # fmt: skip
    queries = fits(rules("batch", "tokens", "heads", None), q.shape, mesh)
    others = fits(rules("batch", keys, "heads", None), k.shape, mesh)
    tokens: Axis = queries[1] if others[1] is not None else None

    def local(q: Heads, k: Keys, v: Keys, bias: Float[Array, "B S"] | None = None) -> Heads:
        if tokens is None:
            return one(q, k, v, bias)
        if q.shape[2] % ways(tokens, mesh):
            if around is not None:
                return around(q, k, v, axis=tokens)
            k, v = (jax.lax.all_gather(x, tokens, axis=1, tiled=True) for x in (k, v))
            return one(q, k, v, bias)
        q, k, v = (jax.lax.all_to_all(x, tokens, 2, 1, tiled=True) for x in (q, k, v))
        return jax.lax.all_to_all(one(q, k, v, bias), tokens, 1, 2, tiled=True)

    args, specs = (q, k, v), (queries, others, others)
    if bias is not None:
        args, specs = (*args, bias), (*specs, P(queries[0], None))
    return jax.shard_map(local, in_specs=specs, out_specs=queries, check_vma=False)(*args)
