"""Attention: every back end against a plain softmax, their gradients, the memory of the chunked one; cuDNN's is
lowered, and run where there is a GPU; the TPU's is interpreted."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape, Rules, make_mesh
from dit_video.nn import attention as door
from dit_video.nn.attention import BACKENDS, attention
from dit_video.nn.ring import ring
from dit_video.nn.splash import splash, tile, with_bias

HERE = ["chunked", "splash", "xla"]  # what a CPU can compute


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    for name, wide in {"splash": False, "splash_wide": True}.items():
        monkeypatch.setitem(BACKENDS, name, partial(splash, wide=wide, interpret=True))


def inputs(B=2, L=300, S=37, n=3, K=8, seed=0):
    rng = np.random.default_rng(seed)

    def make(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return make(B, L, n, K), make(B, S, n, K), make(B, S, n, K), make(B, S)


def by_hand(q, k, v, bias):
    logits = np.einsum("blnk,bsnk->bnls", np.float64(q) * q.shape[-1] ** -0.5, np.float64(k))
    e = np.exp(logits + np.float64(bias)[:, None, None])
    return np.einsum("bnls,bsnk->blnk", e / e.sum(-1, keepdims=True), np.float64(v))


@pytest.mark.parametrize(
    "backend, L", [("xla", 5), ("xla", 300), ("chunked", 5), ("chunked", 256), ("chunked", 300), ("splash", 300)]
)
def test_values(backend, L):
    q, k, v, bias = inputs(L=L)
    np.testing.assert_allclose(attention(q, k, v, bias=bias, backend=backend), by_hand(q, k, v, bias), atol=2e-6)
    np.testing.assert_allclose(
        attention(q, k, v, backend=backend, scale=8**-0.5), by_hand(q, k, v, 0 * bias), atol=2e-6
    )


@pytest.mark.parametrize("backend", ["chunked", "splash"])
def test_gradients_agree(backend):
    args = inputs()
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(args[0].shape), jnp.float32)

    def loss(args, backend):
        q, k, v, bias = args
        return jnp.sum(weight * attention(q, k, v, bias=bias, backend=backend))

    want, got = (jax.jit(jax.grad(lambda a, b=b: loss(a, b)))(args) for b in ("xla", backend))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_chunked_memory_is_linear():
    """Temporary bytes of forward and backward, as the compiler plans them; nothing is run."""

    def temporary(L, backend):
        x = jax.ShapeDtypeStruct((1, L, 2, 32), jnp.float32)

        def loss(q, k, v):
            return jnp.sum(attention(q, k, v, backend=backend) ** 2)

        step = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        return step.memory_analysis().temp_size_in_bytes

    assert temporary(4096, "chunked") < temporary(4096, "xla") / 5
    assert temporary(8192, "chunked") < 2.5 * temporary(4096, "chunked")
    assert temporary(8192, "xla") > 3.5 * temporary(4096, "xla")


def test_unknown_back_end_lists_what_exists():
    q, k, v, _ = inputs(L=2)
    with pytest.raises(BadInput, match=r"'flash'.*chunked, cudnn, splash, splash_wide, xla"):
        attention(q, k, v, backend="flash")


@pytest.mark.parametrize("backend", ["splash", "splash_wide"])
def test_splash_without_a_bias_leaves_out_what_fills_its_tiles(backend):
    q, k, v, _ = inputs(B=1, L=40, S=200, n=2)
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32)

    def both(backend):
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(weight * attention(*a, backend=backend)), (0, 1, 2)))

    want, got = both("xla")(q, k, v), both(backend)(q, k, v)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=2e-5)


def test_splash_in_groups_of_heads(monkeypatch):
    """As long clips take it: two heads at a time, several tiles of keys, each with a partial gradient."""
    import dit_video.nn.splash as module

    for name, value in {"QUERIES": 128, "KEYS": 256, "AT_ONCE": 128, "PARTIAL": 0}.items():
        monkeypatch.setattr(module, name, value)
    q, k, v, _ = inputs(B=1, L=100, S=300)
    both = {
        b: jax.jit(jax.grad(lambda *a, b=b: jnp.sum(jnp.sin(attention(*a, backend=b))), (0, 1, 2))) for b in HERE[1:]
    }
    for a, b in zip(both["xla"](q, k, v), both["splash"](q, k, v), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


@pytest.mark.parametrize(
    "size, target, sides", [(75600, 512, (512, 75776)), (75600, 2048, (2048, 75776)), (257, 2048, (384, 384))]
)
def test_tiles_cover_little_more_than_there_is(size, target, sides):
    assert tile(size, target) == sides


def test_a_bias_survives_a_short_dtype():
    """log(511) in bfloat16 alone would be wrong by a hundredth."""
    q, k = jnp.ones((1, 3, 6), jnp.bfloat16), jnp.zeros((1, 2, 6), jnp.bfloat16)
    q, k = with_bias(q, k, jnp.asarray([[np.log(511), -1e30]], jnp.float32))
    logits = jnp.einsum("nlk,nsk->nls", q, k, preferred_element_type=jnp.float32)
    assert q.shape[-1] == 128
    np.testing.assert_allclose(logits[0, :, 0], np.log(511), atol=1e-4)
    assert float(logits[0, 0, 1]) < -1e29


@pytest.mark.parametrize("heads", [4, 3])
@pytest.mark.parametrize("backend", HERE)
def test_split_tokens_see_all_tokens(backend, heads):
    """Tokens over four devices: all-to-all over heads, or, where heads do not divide, keys and values that go round
    or, for the kernels, are gathered."""
    collective = "all_to_all" if heads == 4 else "all_gather" if backend == "splash" else "ppermute"
    q, k, v, _ = inputs(L=48, S=48, n=heads)
    context = inputs(S=5, n=heads)[1:]
    mesh = make_mesh(MeshShape(data=1, fsdp=2, context=4), jax.devices()[:8])

    def loss(q, k, v, context, backend, rules):
        out = attention(q, k, v, backend=backend, rules=rules)
        keys, values, bias = context
        return jnp.sum(jnp.sin(out)) + jnp.sum(
            jnp.cos(attention(q, keys, values, bias=bias, backend=backend, rules=rules, keys=None))
        )

    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)), static_argnums=(4, 5))
    want = step(q, k, v, context, "xla", None)
    with jax.set_mesh(mesh):
        program = str(jax.make_jaxpr(step, static_argnums=(4, 5))(q, k, v, context, backend, Rules()))
        assert [name for name in ("all_to_all", "ppermute", "all_gather") if f"{name}[" in program] == [collective]
        got = step(q, k, v, context, backend, Rules())
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_a_ring_takes_queries_in_chunks_and_holds_two_parts_of_the_keys():
    """Ten tokens a device, four at a time: values and gradients are those of a plain softmax, and nothing is
    gathered in the compiled program."""
    q, k, v, _ = inputs(L=80, S=80)
    mesh = make_mesh(MeshShape(data=1, context=8), jax.devices()[:8])
    tokens = P(None, "context")
    around = jax.shard_map(partial(ring, scale=8**-0.5, axis="context", rows=4), mesh=mesh, in_specs=(tokens,) * 3,
                           out_specs=tokens, check_vma=False)  # fmt: skip

    def loss(attend, q, k, v):
        return jnp.sum(jnp.sin(attend(q, k, v)))

    split = [jax.device_put(x, NamedSharding(mesh, tokens)) for x in (q, k, v)]
    step = jax.jit(jax.value_and_grad(partial(loss, around), (0, 1, 2))).lower(*split).compile()
    assert "collective-permute" in step.as_text()
    assert "all-gather" not in step.as_text()
    want = jax.value_and_grad(partial(loss, partial(attention, backend="xla")), (0, 1, 2))(q, k, v)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(step(*split)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=2e-6)


def test_cudnn_is_lowered_for_a_gpu_on_a_machine_without_one(monkeypatch):
    """Forward and backward, with a bias and without, become cuDNN's calls; their values need a GPU."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    x = jax.ShapeDtypeStruct((2, 64, 2, 128), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((2, 64), jnp.float32)

    def loss(q, k, v, bias):
        out = attention(q, k, v, backend="cudnn") + attention(q, k, v, bias=bias, backend="cudnn")
        return jnp.sum(out.astype(jnp.float32))

    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x, bias).lower(lowering_platforms=("cuda",)).as_text()
    calls = set(re.findall(r"__cudnn\$\w+", text))
    assert calls == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward", "__cudnn$fmhaScaleBiasSoftmax",
                     "__cudnn$fmhaScaleBiasSoftmaxBackward"}  # fmt: skip
    assert door.cudnn in BACKENDS.values()


@pytest.mark.parametrize("biased", [False, True])
def test_cudnn_gives_values_and_gradients(biased):
    """In bfloat16, against the plain softmax, on a GPU (JAX_PLATFORMS=cuda,cpu)."""
    try:
        place = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no NVIDIA GPU here: cuDNN's values and gradients are not tested")
    agree("cudnn", place, biased)


def agree(backend, place, biased):
    *heads, bias = inputs(L=256, S=128, K=64)
    heads, weight = [x.astype(jnp.bfloat16) for x in heads], inputs(L=256, K=64, seed=1)[0]
    heads, bias, weight = jax.device_put((heads, bias if biased else None, weight), place)

    def loss(heads, backend):
        out = attention(*heads, bias=bias, backend=backend)
        return jnp.sum(weight * out.astype(jnp.float32)), out

    want, got = (jax.jit(jax.value_and_grad(partial(loss, backend=b), has_aux=True))(heads) for b in ("xla", backend))
    for a, b in zip(jax.tree.leaves((want[0][1], want[1])), jax.tree.leaves((got[0][1], got[1])), strict=True):
        a, b = np.float64(a), np.float64(b)
        assert np.linalg.norm(b - a) < 0.02 * np.linalg.norm(a)


def test_what_a_gpu_is_asked_is_asked_of_what_a_cpu_has(monkeypatch):
    """The comparison above, which few machines run, holds where there is nothing to find, and finds what there is."""
    here = jax.devices("cpu")[0]
    monkeypatch.setitem(BACKENDS, "cudnn", door.plain)
    agree("cudnn", here, True)
    other = lambda q, k, v, bias, scale: door.plain(q, k, v, bias, 1.05 * scale)  # noqa: E731
    monkeypatch.setitem(BACKENDS, "cudnn", other)
    with pytest.raises(AssertionError):
        agree("cudnn", here, True)
