"""Attention through one door; which back end computes it is an argument.

Nothing here asks which device is present: a machine that plans or exports for another must get that one's back end.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.core.errors import BadInput

Heads = Float[Array, "B L n K"]
Keys = Float[Array, "B S n K"]


def plain(q: Heads, k: Keys, v: Keys, bias: Float[Array, "B S"] | None, scale: float) -> Heads:
    """Softmax over all keys at once, float32 inside: memory grows with L * S (Vaswani et al. 2017, eq. 1)."""
    logits = jnp.einsum("blnk,bsnk->bnls", q * jnp.asarray(scale, q.dtype), k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias[:, None, None, :].astype(jnp.float32)
    weights = jax.nn.softmax(logits, -1).astype(v.dtype)
    return jnp.einsum("bnls,bsnk->blnk", weights, v)


def chunked(q: Heads, k: Keys, v: Keys, bias: Float[Array, "B S"] | None, scale: float, *, rows: int = 256) -> Heads:
    """The same for `rows` queries at a time, each chunk computed again for its gradient: memory grows with L + S,
    forward and backward. Queries are padded up to whole chunks."""
    B, L, n, K = q.shape
    count = -(-L // rows)
    if count <= 1:
        return jax.checkpoint(partial(plain, scale=scale))(q, k, v, bias)
    q = jnp.pad(q, ((0, 0), (0, count * rows - L), (0, 0), (0, 0)))
    chunks = q.reshape(B, count, rows, n, K).swapaxes(0, 1)
    one = jax.checkpoint(lambda chunk: plain(chunk, k, v, bias, scale), prevent_cse=False)
    out = jax.lax.map(one, chunks)
    return out.swapaxes(0, 1).reshape(B, count * rows, n, K)[:, :L]


BACKENDS: dict[str, Callable[..., Heads]] = {"xla": plain, "chunked": chunked}


def attention(
    q: Heads,
    k: Keys,
    v: Keys,
    *,
    bias: Float[Array, "B S"] | None = None,
    backend: str,
    scale: float | None = None,
) -> Heads:
    """Every query looks at every key: softmax(q k^T * scale + bias) v.

    `bias` is added to the logits of a key, for all heads and queries. Only that: it can be had on any back end, by one
    more number in queries and keys where there is no argument for it. `scale` is 1/sqrt(K) unless given.
    Raises `BadInput` on an unknown `backend`.
    """
    if backend not in BACKENDS:
        raise BadInput(f"attention={backend!r}: there is no such back end. There are: {', '.join(sorted(BACKENDS))}.")
    return BACKENDS[backend](q, k, v, bias, q.shape[-1] ** -0.5 if scale is None else scale)
