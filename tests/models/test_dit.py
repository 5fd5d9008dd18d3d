"""The denoiser on its own: text, time per token, extra frames, dtypes, back ends, FLOPs. The reference is elsewhere."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.errors import BadInput
from dit_video.core.types import Extra, Text, Time
from dit_video.models.dit import Control, DiT, DiTConfig, flops
from dit_video.nn.attention import BACKENDS, plain
from dit_video.nn.embeddings import gelu_tanh
from dit_video.nn.norms import rms_norm
from dit_video.nn.splash import splash

CFG = DiTConfig(
    in_channels=4, out_channels=4, heads=2, head_dim=12, depth=2, ffn_dim=48, freq_dim=16, text_dim=8, text_len=64
)

VARIANT = replace(CFG, in_channels=12, image_dim=8, image_len=6, vace_layers=(0, 1), vace_channels=5)


@pytest.fixture(scope="module")
def weights():
    """Seeded weights, none of them at the zeros and ones that hide mistakes."""
    state = nnx.state(DiT(CFG, rngs=nnx.Rngs(0)), nnx.Param)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), state)


@pytest.fixture(scope="module")
def run(weights):
    """(cfg, arguments of the model...) -> velocity."""
    graphs = {}

    def call(*args, cfg=CFG):
        if cfg not in graphs:
            graph = nnx.graphdef(nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0))))
            graphs[cfg] = jax.jit(lambda w, *a: nnx.merge(graph, w)(*a))
        return np.asarray(graphs[cfg](weights, *args))

    return call


def inputs(B=2, size=(3, 4, 4), S=16, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((B, *size, CFG.in_channels)), jnp.float32)
    length = rng.integers(1, S, B)
    rows = rng.standard_normal((B, S, CFG.text_dim)) * (np.arange(S) < length[:, None])[..., None]
    time = Time(jnp.asarray(rng.uniform(0.1, 1, (B, 1)), jnp.float32))
    return x, time, Text(jnp.asarray(rows, jnp.float32), jnp.asarray(length))


def test_starts_at_zero_velocity():
    x, time, text = inputs()
    out = DiT(CFG, rngs=nnx.Rngs(0))(x, time, text)
    assert out.shape == x.shape
    assert not np.any(out)


def test_a_model_that_puts_out_data_gives_the_velocity(run):
    x, time, text = inputs()
    data = run(x, time, text)  # the same weights: what was the velocity is meant as data
    velocity = run(x, time, text, cfg=replace(CFG, predicts="data"))
    t = np.asarray(time.values)[:, :, None, None, None]
    np.testing.assert_allclose(velocity, (np.asarray(x) - data) / t, rtol=1e-5, atol=1e-5)
    known = Time(
        jnp.concatenate([time.values, jnp.zeros((2, 1))], 1), jnp.zeros(x.shape[:4], jnp.int32).at[:, 0].set(1)
    )
    assert np.isfinite(run(x, known, text, cfg=replace(CFG, predicts="data"))).all()


@pytest.mark.parametrize("cfg", [CFG, VARIANT], ids=["plain", "variant"])
def test_every_weight_has_logical_axes(cfg):
    state = nnx.state(nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0))))
    for path, variable in nnx.to_flat_state(state):
        axes, stacked = variable.get_metadata().get("axes"), "blocks" in path
        assert axes is not None, path
        assert len(axes) + stacked == variable.get_value().ndim, path
        assert variable.get_value().dtype == jnp.float32, path
        if path[-1] == "kernel":
            assert any(axes), path


def test_one_pad_row_is_many(weights):
    """The context against plain attention over `text_len` rows, most of them zero, none masked."""
    _, _, text = inputs(B=3)
    model = nnx.merge(nnx.graphdef(DiT(CFG, rngs=nnx.Rngs(0))), weights)
    context = model.context(text)
    padded = jnp.pad(text.rows, ((0, 0), (0, CFG.text_len - text.rows.shape[1]), (0, 0)))
    rows = model.text_out(gelu_tanh(model.text_in(padded)))
    q = jnp.asarray(np.random.default_rng(3).standard_normal((3, 5, 2, 12)), jnp.float32)
    for n in range(CFG.depth):
        p = jax.tree.map(lambda a, n=n: a[n], nnx.to_pure_dict(nnx.state(model.blocks.cross)))
        k = rms_norm(rows @ p["k"]["kernel"] + p["k"]["bias"], p["norm_k"]["scale"], CFG.eps)
        v = rows @ p["v"]["kernel"] + p["v"]["bias"]
        k, v = (a.reshape(3, CFG.text_len, 2, 12) for a in (k, v))
        want = plain(q, k, v, None, 12**-0.5)
        got = plain(q, context.keys[n], context.values[n], context.bias, 12**-0.5)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_text_does_not_depend_on_how_it_is_stored(run):
    x, time, text = inputs()
    want = run(x, time, text)
    wider = Text(jnp.pad(text.rows, ((0, 0), (0, 16), (0, 0))), text.length)
    np.testing.assert_allclose(run(x, time, wider), want, atol=1e-5)
    full = Text(jnp.pad(text.rows, ((0, 0), (0, 48), (0, 0))), jnp.full(2, CFG.text_len))  # no pads left
    np.testing.assert_allclose(run(x, time, full), want, atol=1e-5)
    other = Text(text.rows[::-1], text.length[::-1])
    assert np.abs(run(x, time, other) - want).max() > 1e-3


def test_context_is_made_once(run, weights):
    x, time, text = inputs()
    context = nnx.merge(nnx.graphdef(DiT(CFG, rngs=nnx.Rngs(0))), weights).context(text)
    np.testing.assert_allclose(run(x, time, context), run(x, time, text), atol=1e-5)


def test_time_is_per_token(run):
    x, time, text = inputs()
    t = time.values
    scalar = run(x, time, text)
    same = Time(jnp.concatenate([t, t], 1), jnp.asarray(np.arange(2 * 48).reshape(2, 3, 4, 4) % 2))
    np.testing.assert_allclose(run(x, same, text), scalar, atol=1e-5)
    known = jnp.zeros((2, 3, 4, 4), int).at[:, 0].set(1)
    two = run(x, Time(jnp.concatenate([t, 0 * t], 1), known), text)
    assert np.abs(two - scalar).max() > 1e-3
    # the same times through more values, in another order
    four = run(x, Time(jnp.concatenate([t + 0.3, 0 * t, t, t - 0.2], 1), 2 - known), text)
    np.testing.assert_allclose(four, two, atol=1e-5)


def test_extra_frames_are_tokens_that_know(run):
    """A frame that is appended with the rotary time of a slot is as good as that slot, known, in the grid."""
    x, time, text = inputs()
    t = time.values
    known = jnp.zeros((2, 3, 4, 4), int).at[:, 2].set(1)
    grid = run(x, Time(jnp.concatenate([t, 0 * t], 1), known), text)
    apart = run(x[:, :2], time, text, Extra(x[:, 2:], jnp.full((2, 1), 2.0)))
    np.testing.assert_allclose(apart, grid[:, :2], atol=1e-5)
    moved = run(x[:, :2], time, text, Extra(x[:, 2:], jnp.asarray([[2.0], [2.25]])))
    np.testing.assert_allclose(moved[0], apart[0], atol=1e-5)
    assert np.abs(moved[1] - apart[1]).max() > 1e-4
    # together with time per token, and two of them
    first = jnp.zeros((2, 2, 4, 4), int).at[:, 0].set(1)
    both = Extra(x[:, 1:], jnp.asarray([[1.0, -4.0]] * 2))
    time = Time(jnp.concatenate([t, 0 * t], 1), first)
    out = run(x[:, :2], time, text, both)
    swapped = Extra(x[:, :0:-1], both.position[:, ::-1])
    np.testing.assert_allclose(run(x[:, :2], time, text, swapped), out, atol=1e-5)


def gradient(cfg, weights):
    x, time, text = inputs(size=(3, 4, 8))
    target, graph = jnp.roll(x, 1, 0), nnx.graphdef(nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0))))
    return jax.jit(jax.grad(lambda w: jnp.mean((nnx.merge(graph, w)(x, time, text) - target) ** 2)))(weights)


@pytest.fixture(scope="module")
def plain_gradient(weights):
    found = gradient(CFG, weights)
    assert all(float(jnp.abs(a).max()) > 0 for a in jax.tree.leaves(found))
    return found


@pytest.mark.parametrize("change", [{"attention": "chunked"}, {"remat": "block"}, {"remat": "dots"}])
def test_gradients_do_not_depend_on_how_they_are_made(weights, plain_gradient, change):
    got = gradient(replace(CFG, **change), weights)
    for a, b in zip(jax.tree.leaves(plain_gradient), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, float(jnp.abs(a).max())))


def test_remat_chooses_what_is_kept_for_the_backward_pass(weights, monkeypatch):
    """In bytes, beside the weights and what the blocks are given: of a block its input, with the results of attention,
    with those of all matrix products, or everything. Attention is that of a TPU, which alone names its results."""
    monkeypatch.setitem(BACKENDS, "splash", partial(splash, interpret=True))
    x, time, text = inputs(size=(3, 4, 8))

    def kept(remat):
        graph = nnx.graphdef(
            nnx.eval_shape(lambda: DiT(replace(CFG, remat=remat, attention="splash"), rngs=nnx.Rngs(0)))
        )
        backward = jax.eval_shape(lambda w: jax.vjp(lambda w: nnx.merge(graph, w)(x, time, text), w)[1], weights)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    block, attention, dots, none = map(kept, ("block", "attention", "dots", "none"))
    tokens = x.size // CFG.in_channels // math.prod(CFG.patch)
    assert attention - block >= CFG.depth * 2 * tokens * CFG.width * 4  # outputs of self- and cross-attention
    assert dots - attention >= CFG.depth * tokens * (6 * CFG.width + CFG.ffn_dim) * 4
    assert none - dots >= CFG.depth * tokens * 6 * CFG.width * 4


def test_bfloat16_is_near(run):
    x, time, text = inputs()
    want, got = run(x, time, text), run(x, time, text, cfg=replace(CFG, dtype="bfloat16"))
    assert got.dtype == np.float32
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-5 < error < 0.05  # computed in bfloat16, and right


def test_flops_are_the_compilers():
    """The count against XLA's, for one layer (a scanned body is counted once), without its elementwise work."""
    cfg = DiTConfig(in_channels=4, out_channels=4, heads=2, head_dim=64, depth=1, ffn_dim=512, text_dim=64)
    model = nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    x, text = jnp.zeros((1, 4, 8, 8, 4)), Text(jnp.zeros((1, 16, 64)), jnp.ones(1, int))
    args = state, x, Time(jnp.zeros((1, 1))), text
    compiled = jax.jit(lambda w, *a: nnx.merge(graph, w)(*a)).lower(*args).compile()
    assert flops(cfg, (4, 8, 8), 16) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.1)
    assert flops(replace(cfg, depth=3), (4, 8, 8), 16) > 2.5 * flops(cfg, (4, 8, 8), 16)
    assert flops(cfg, (4, 8, 8), 16, extra=1) > 1.2 * flops(cfg, (4, 8, 8), 16)
    assert flops(replace(cfg, image_dim=8), (4, 8, 8), 16, image_rows=48) > 1.1 * flops(cfg, (4, 8, 8), 16)
    assert flops(replace(cfg, vace_layers=(0,)), (4, 8, 8), 16) > 1.9 * flops(cfg, (4, 8, 8), 16)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"remat": "all"}, "remat='all'.*none, block, attention, dots"),
        ({"attention": "flash"}, "attention='flash'.*xla"),
        ({"dtype": "int8"}, "dtype"),
        ({"head_dim": 7}, "even"),
        ({"image_len": 6}, "without image_dim"),
        ({"vace_layers": (0, 2)}, "below depth=2"),
        ({"vace_layers": (1, 0)}, "must rise"),
    ],
)
def test_bad_configs(change, what):
    with pytest.raises(BadInput, match=what):
        replace(CFG, **change)


def test_bad_shapes(weights):
    model = nnx.merge(nnx.graphdef(DiT(CFG, rngs=nnx.Rngs(0))), weights)
    x, time, text = inputs()
    with pytest.raises(BadInput, match="width=3.*2 or 4"):
        model(x[:, :, :, :3], time, text)
    with pytest.raises(BadInput, match="3 channels: this model takes 4"):
        model(x[..., :3], time, text)
    with pytest.raises(BadInput, match="16 rows x 7"):
        model(x, time, Text(text.rows[..., :7], text.length))
    with pytest.raises(BadInput, match="65 rows"):
        model.context(Text(jnp.zeros((1, 65, 8)), jnp.ones(1, int)))
    with pytest.raises(BadInput, match="time for"):
        model(x, Time(jnp.zeros((2, 2)), jnp.zeros((2, 2, 4, 4), int)), text)
    with pytest.raises(BadInput, match="extra frames"):
        model(x, time, text, Extra(x[:, :1, :2], jnp.zeros((2, 1))))


def test_hints_are_added_as_strongly_as_told():
    """Without strength a control branch changes nothing."""
    cfg = replace(CFG, vace_layers=(1,), vace_channels=5)
    branch = DiT(cfg, rngs=nnx.Rngs(0))
    state = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), nnx.state(branch))
    graph = nnx.graphdef(branch)
    x, time, text = inputs()
    latents = jnp.asarray(np.random.default_rng(7).standard_normal((2, 2, 4, 4, 5)), jnp.float32)  # a frame fewer
    call = jax.jit(lambda w, s: nnx.merge(graph, w)(x, time, text, control=Control(latents, s)))
    none, some = (call(state, jnp.full(1, strength)) for strength in (0.0, 1.0))
    plain_state = {name: part for name, part in nnx.to_pure_dict(state).items() if name != "control"}
    plain_graph, abstract = nnx.split(nnx.eval_shape(lambda: DiT(CFG, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(abstract, plain_state)
    want = jax.jit(lambda w: nnx.merge(plain_graph, w)(x, time, text))(abstract)
    np.testing.assert_allclose(none, want, atol=1e-5)
    assert np.abs(some - none).max() > 1e-2


def test_what_variants_are_given_must_fit():
    plain_dit, variant = (
        nnx.split(nnx.eval_shape(lambda cfg=cfg: DiT(cfg, rngs=nnx.Rngs(0)))) for cfg in (CFG, VARIANT)
    )
    x, time, text = inputs()
    wide = jnp.zeros((2, 3, 4, 4, 12))
    image, control = jnp.zeros((2, 6, 8)), Control(jnp.zeros((2, 3, 4, 4, 5)), jnp.ones(2))

    def shape_of(model, x, **given):
        graph, state = model
        return jax.eval_shape(lambda w: nnx.merge(graph, w)(x, time, text, **given), state).shape

    assert shape_of(variant, wide, image=image, control=control) == x.shape
    cases = [
        (plain_dit, x, {"image": image}, "no place for the tokens"),
        (plain_dit, x, {"control": control}, "no place for control"),
        (variant, wide, {"control": control}, "wants the tokens of an image encoder"),
        (variant, wide, {"image": image}, "wants control latents"),
        (variant, wide, {"image": image[:, 1:], "control": control}, "5 x 8: this model takes 6 tokens x 8"),
        (variant, wide, {"image": image, "control": control._replace(latents=x)}, "4 channels: this model takes 5"),
        (variant, wide[:, 1:], {"image": image, "control": control}, "may not be larger"),
    ]
    for model, latents, given, what in cases:
        with pytest.raises(BadInput, match=what):
            shape_of(model, latents, **given)
