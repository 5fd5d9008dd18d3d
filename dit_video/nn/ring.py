"""Ring attention (Liu et al. 2023, arXiv 2310.01889): queries stay on their device, keys and values go round.

A device meets one part of the keys at a time and hands it on while it computes, so none holds more than two parts, in
the forward and in the backward pass. The softmax is put together from the parts by their maxima and sums (Milakov and
Gimelshein 2018, arXiv 1805.02867); the backward pass knows its logarithm and makes the weights again (Dao et al. 2022,
arXiv 2205.14135, algorithm 4), with the gradients of keys and values travelling with them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "B l n K"]
Rows = Float[Array, "B r n K"]
product = partial(jnp.einsum, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def ring(q: Heads, k: Heads, v: Heads, scale: float, axis: Any, rows: int = 256) -> Heads:
    """softmax(q k^T * scale) v over the tokens of all devices of the mesh axis `axis`; inside `jax.shard_map`.

    q, k, v: this device's tokens. rows: queries at a time; memory grows with `rows` times the tokens of a device.
    """
    return _forward(q, k, v, scale, axis, rows)[0]


def _chunks(x: Array, rows: int) -> Array:
    """(B, l, ...) as (chunks, B, rows, ...), padded."""
    count = -(-x.shape[1] // rows)
    x = jnp.pad(x, ((0, 0), (0, count * rows - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(x.shape[0], count, rows, *x.shape[2:]).swapaxes(0, 1)


def _whole(x: Array, length: int) -> Array:
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _pass_on(x: Any, axis: Any) -> Any:
    size = jax.lax.axis_size(axis)
    return jax.lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])


def _forward(q: Heads, k: Heads, v: Heads, scale: float, axis: Any, rows: int) -> tuple[Heads, tuple]:
    rows = min(rows, q.shape[1])
    queries = _chunks(q, rows)

    def meet(k: Heads, v: Heads, q: Rows, out: Array, top: Array, total: Array) -> tuple[Array, Array, Array]:
        """A chunk of queries, and what it has of the result so far: the sum, its largest logit, its weights' sum."""
        logits = product("brnk,bsnk->brns", q * jnp.asarray(scale, q.dtype), k)
        highest = jnp.maximum(top, logits.max(-1))
        weights, before = jnp.exp(logits - highest[..., None]), jnp.exp(top - highest)
        out = out * before[..., None] + product("brns,bsnk->brnk", weights.astype(v.dtype), v)
        return out, highest, total * before + weights.sum(-1)

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        k, v, kept = carry
        kept = jax.lax.map(lambda chunk: meet(k, v, *chunk), (queries, *kept))
        return (*_pass_on((k, v), axis), kept), None

    one = queries[..., 0].astype(jnp.float32)
    start = (jnp.zeros(queries.shape, jnp.float32), jnp.full_like(one, -jnp.inf), jnp.zeros_like(one))
    (_, _, (out, top, total)), _ = jax.lax.scan(turn, (k, v, start), length=jax.lax.axis_size(axis))
    out = _whole(out / total[..., None], q.shape[1]).astype(v.dtype)
    return out, (q, k, v, out, _whole(top + jnp.log(total), q.shape[1]))


def _backward(scale: float, axis: Any, rows: int, kept: tuple, d_out: Heads) -> tuple[Heads, Heads, Heads]:
    q, k, v, out, log_total = kept
    rows = min(rows, q.shape[1])
    along = jnp.sum(d_out.astype(jnp.float32) * out, -1)  # of a query: what its weights' gradients have in common
    chunks = tuple(_chunks(x, rows) for x in (q, d_out, log_total, along))

    def meet(k: Heads, v: Heads, totals: tuple, chunk: tuple) -> tuple[tuple, Array]:
        q, d_out, log_total, along = chunk
        weights = jnp.exp(product("brnk,bsnk->brns", q * jnp.asarray(scale, q.dtype), k) - log_total[..., None])
        d_logits = weights * (product("brnk,bsnk->brns", d_out, v) - along[..., None]) * scale
        d_k = product("brns,brnk->bsnk", d_logits.astype(q.dtype), q)
        d_v = product("brns,brnk->bsnk", weights.astype(d_out.dtype), d_out)
        return (totals[0] + d_k, totals[1] + d_v), product("brns,bsnk->brnk", d_logits.astype(k.dtype), k)

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        k, v, travelling, d_q = carry
        travelling, part = jax.lax.scan(partial(meet, k, v), travelling, chunks)
        return (*_pass_on((k, v, travelling), axis), d_q + part), None

    zeros = jnp.zeros(k.shape, jnp.float32)
    start = (k, v, (zeros, zeros), jnp.zeros(chunks[0].shape, jnp.float32))
    (_, _, (d_k, d_v), d_q), _ = jax.lax.scan(turn, start, length=jax.lax.axis_size(axis))
    return _whole(d_q, q.shape[1]).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


ring.defvjp(_forward, _backward)
