"""The step: replayable, exact under accumulation and on every mesh, and unmoved by a bad batch."""

import dataclasses
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape, Rules, make_mesh
from dit_video.core.types import Extra
from dit_video.train.conditions import Batch
from dit_video.train.denoise import Denoise
from dit_video.train.metrics import Late, MetricsLog, count_flops, mean
from dit_video.train.optim import Optimizer
from dit_video.train.step import (
    TrainState,
    compiled_halves,
    ema_decay,
    gradients,
    initial_state,
    layout,
    loss_of,
    make_step,
    on,
    place,
    trained,
)

ONE = MeshShape(1, 1, 1, 1)


@pytest.fixture(scope="module")
def line():
    return runpy.run_path(str(Path(__file__).with_name("standin.py")))


def quadratic(params, batch, key):
    """A loss without randomness: the mean over clips of |w x - y|^2."""
    error = batch["x"] @ params["w"] - batch["y"]
    return jnp.mean(jnp.square(error)), {"error": jnp.mean(error)}


def example(n=8, seed=0):
    rng = np.random.default_rng(seed)
    numbers = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {"w": numbers(4, 2)}, {"x": numbers(n, 4), "y": numbers(n, 2)}


def begin(params, optimizer, decays=(0.9, 0.99)):
    return TrainState(jnp.zeros((), jnp.int32), params, tuple(params for _ in decays), optimizer.init(params))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    params, batch = example()
    key = jax.random.key(0)
    whole, in_parts = gradients(quadratic)(params, batch, key), gradients(quadratic, parts)(params, batch, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, in_parts)


def test_parts_of_a_batch_have_keys_of_their_own():
    def noisy(params, batch, key):
        return jax.random.normal(key, ()) * jnp.sum(params["w"]), {}

    params, batch = example()
    (_, _), grads = gradients(noisy, 2)(params, batch, jax.random.key(0))
    draws = [jax.random.normal(jax.random.fold_in(jax.random.key(0), i), ()) for i in range(2)]
    np.testing.assert_allclose(grads["w"], np.mean(draws), rtol=1e-5)
    assert draws[0] != draws[1]


def test_a_step_is_replayed_from_its_state_and_the_seed(line):
    objective = line["Line"](noise=1.0)
    parts = trained(objective, Rules())
    loss, optimizer = loss_of(objective, parts), optax.sgd(0.1)
    mesh = make_mesh(ONE, jax.devices()[:1])
    shapes, where = layout(objective, parts, optimizer, mesh, Rules(), (0.9,))
    state = initial_state(objective, optimizer, mesh, Rules(), where, shapes, seed=1, decays=(0.9,))
    step = jax.jit(make_step(loss, optimizer, (0.9,)))
    batch = next(line["Numbers"](0, 8, 8, ()))
    first, m1 = step(state, batch, jax.random.key(5))
    again, m2 = step(state, batch, jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, (first, m1), (again, m2))
    _, later = step(dataclasses.replace(state, step=jnp.ones((), jnp.int32)), batch, jax.random.key(5))
    _, other = step(state, batch, jax.random.key(6))
    assert len({float(m["loss"]) for m in (m1, later, other)}) == 3, "noise changes with the step and with the seed"


def test_averages_begin_short_and_grow_to_their_decay():
    optimizer = optax.sgd(0.1)
    params, batch = example()
    state, history = begin(params, optimizer), []
    step = jax.jit(make_step(quadratic, optimizer, (0.9, 0.5)))
    for _ in range(30):
        state, _ = step(state, batch, jax.random.key(0))
        history.append(np.asarray(state.params["w"]))
    for decay, average in zip((0.9, 0.5), state.ema, strict=True):
        expected = np.asarray(params["w"])
        for i, w in enumerate(history):
            d = min(decay, (1 + i) / (10 + i))
            expected = d * expected + (1 - d) * w
        np.testing.assert_allclose(average["w"], expected, rtol=1e-4, atol=1e-6)
    assert float(ema_decay(0.999, jnp.int32(0))) == pytest.approx(0.1)
    assert float(ema_decay(0.999, jnp.int32(10**6))) == pytest.approx(0.999)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_batch_changes_nothing_but_the_counter(bad):
    optimizer = Optimizer(warmup=0).build(10)
    params, batch = example()
    state = begin(params, optimizer)
    after, metrics = make_step(quadratic, optimizer, (0.9, 0.99))(
        state, {**batch, "y": batch["y"].at[3, 0].set(bad)}, jax.random.key(0)
    )
    assert (float(metrics["skipped"]), int(after.step)) == (1.0, 1)
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(after, step=state.step), state)
    _, metrics = make_step(quadratic, optimizer, (0.9, 0.99))(state, batch, jax.random.key(0))
    assert float(metrics["skipped"]) == 0.0


def test_weights_that_do_not_fit_are_named(line):
    objective = line["Line"]()
    parts, optimizer, mesh = trained(objective, Rules()), optax.sgd(0.1), make_mesh(MeshShape())
    shapes, where = layout(objective, parts, optimizer, mesh, Rules(), (0.9,))
    start = {"line": {"linear": {"kernel": np.zeros((9, 2), np.float32)}}}
    with pytest.raises(BadInput, match=r"line/linear/bias: missing.*line/linear/kernel: \(9, 2\) instead of \(8, 2\)"):
        initial_state(objective, optimizer, mesh, Rules(), where, shapes, seed=0, decays=(0.9,), start=start)


@pytest.fixture(scope="module")
def denoiser(tiny):
    return Denoise(dit=tiny.dit, text=tiny.text)


def denoiser_batch(n=8, extra=True):
    rng = np.random.default_rng(0)
    known = np.zeros((n, 2, 4, 4), bool)
    known[: n // 2, 0] = True
    given = Extra(rng.standard_normal((n, 1, 4, 4, 4)).astype(np.float32), np.full((n, 1), 1.5, np.float32))
    return Batch(
        rng.standard_normal((n, 2, 4, 4, 4)).astype(np.float32), known,
        rng.integers(2, 60, (n, 16)).astype(np.int32), np.arange(3, 3 + n, dtype=np.int32), given if extra else None,
    )  # fmt: skip


def one_step(objective, tiny, shape, devices, kind=None):
    """Loss, gradients, updates by an optimizer (if any), and where everything lies."""
    mesh, rules = make_mesh(shape, devices), Rules()
    optimizer = Optimizer(kind=kind or "adamw", lr=0.02, warmup=0).build(10)
    parts = trained(objective, rules)
    shapes, where = layout(objective, parts, optimizer, mesh, rules, (0.9,))
    start = {name: tiny.params[name] for name in ("dit", "text")}
    state = initial_state(objective, optimizer, mesh, rules, where, shapes, seed=0, decays=(0.9,), start=start)
    loss, batch = loss_of(objective, parts), place(denoiser_batch(), mesh, rules)
    with on(mesh):
        (value, _), grads = jax.jit(gradients(loss))(state.params, batch, jax.random.key(1))
        updates = jax.jit(optimizer.update)(grads, state.opt, state.params)[0] if kind else None
    return value, jax.device_get(grads), jax.device_get(updates), where


def test_the_precision_of_products_is_that_of_the_step_alone(denoiser, tiny):
    """bfloat16 changes the gradients a little, on two devices too, and nothing outside of the step."""
    rules, optimizer, parts = Rules(), optax.sgd(0.1), trained(denoiser, Rules())
    start = {name: tiny.params[name] for name in ("dit", "text")}

    def of(precision, devices):
        mesh = make_mesh(MeshShape(devices), jax.devices()[:devices])
        shapes, where = layout(denoiser, parts, optimizer, mesh, rules, (0.9,))
        state = initial_state(denoiser, optimizer, mesh, rules, where, shapes, seed=0, decays=(0.9,), start=start)
        first, _ = compiled_halves(denoiser, parts, optimizer, where, (0.9,), 1, precision)
        with on(mesh):
            grads, _ = first(None, state.params, state.step, place(denoiser_batch(), mesh, rules), jax.random.key(1))
        return np.concatenate([np.ravel(g) for g in jax.tree.leaves(jax.device_get(grads))])

    exact, rounded = of(None, 1), of("bfloat16", 2)
    assert 1e-4 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.03
    assert jax.config.jax_default_matmul_precision is None


MORE = [MeshShape(8), MeshShape(1, 8), MeshShape(2, 2, 2, 1), MeshShape(1, 1, 4, 2), MeshShape(2, 1, 2, 2)]


@pytest.fixture(scope="module")
def single(denoiser, tiny):
    return one_step(denoiser, tiny, ONE, jax.devices()[:1])


@pytest.mark.parametrize(
    "shape", [MeshShape(1, 2, 2, 2), *(pytest.param(m, marks=pytest.mark.slow) for m in MORE)], ids=str
)
def test_every_mesh_gives_the_single_device_loss_and_gradients(denoiser, tiny, single, shape):
    value, grads, _, where = one_step(denoiser, tiny, shape, jax.devices())
    np.testing.assert_allclose(value, single[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, single[1])
    up = where.params["dit"]["blocks"]["up"]["kernel"].spec
    moments = [
        w.spec
        for p, w in jax.tree_util.tree_flatten_with_path(where.opt)[0]
        if "'up'" in str(p) and "'kernel'" in str(p)
    ]
    assert moments
    # Moments lie beside their parameters; where these are whole on every device, in parts (two layers are not eight).
    beside = P(up[0], ("data",), up[2]) if shape.data == 8 else up
    assert all(spec == beside for spec in moments)
    if shape.fsdp * shape.tensor > 1:
        assert up != P(None, None, None)


@pytest.mark.slow
def test_muon_on_a_mesh(denoiser, tiny):
    (_, _, one, _), (_, _, many, _) = (
        one_step(denoiser, tiny, shape, devices, "muon")
        for shape, devices in ((ONE, jax.devices()[:1]), (MORE[2], jax.devices()))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, many)


def test_the_denoisers_loss_is_the_flow_loss_of_unknown_positions(denoiser, tiny):
    """Against the definition, with the network taken out: its head is zero, so its velocity is."""
    parts = trained(denoiser, Rules())
    whole = {name: tiny.params[name] for name in ("dit", "text")}
    headless = {**whole, "dit": {**whole["dit"], "head": jax.tree.map(np.zeros_like, whole["dit"]["head"])}}
    shifted = dataclasses.replace(denoiser, path=dataclasses.replace(denoiser.path, shift=30.0))
    batch, key = jax.tree.map(jnp.asarray, denoiser_batch()), jax.random.key(3)
    losses = jax.jit(lambda p, b, k: [o.loss(parts.modules(p), b, k)[0] for o in (denoiser, shifted)])
    noise = jax.random.normal(jax.random.split(key)[1], batch.latents.shape)
    error = np.square(np.asarray(noise) - batch.latents) * ~np.asarray(batch.known)[..., None]
    np.testing.assert_allclose(losses(headless, batch, key), [error.mean()] * 2, rtol=1e-5)
    a, b = losses(whole, batch, key)
    assert abs(a - b) > 1e-4, "the shift of the path reaches training"


def test_flops_are_counted_through_scans():
    w = jnp.ones((6, 16, 16))

    def deep(x):
        return jax.lax.scan(lambda h, k: (jnp.tanh(h @ k), None), x, w)[0].sum()

    assert count_flops(deep, jnp.ones((4, 16))) == 6 * 2 * 4 * 16 * 16
    assert count_flops(jax.jit(lambda x: jnp.einsum("bij,bjk->bik", x, x)), jnp.ones((3, 8, 8))) == 2 * 3 * 8**3
    kernel = jnp.ones((3, 3, 4, 5))
    layout = ("NHWC", "HWIO", "NHWC")
    conv = lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)  # noqa: E731
    assert count_flops(conv, jnp.ones((2, 6, 7, 4))) == 2 * 2 * 6 * 7 * 5 * 9 * 4


def test_flops_of_the_denoiser_are_those_of_its_formula(tiny):
    from dit_video.core.types import Text, Time
    from dit_video.models.dit import flops

    graph, state = nnx.split(tiny.module("dit"))

    def forward(state, x, rows):
        text = Text(rows, jnp.full(1, 16, jnp.int32))
        return nnx.merge(graph, state)(x, Time(jnp.ones((1, 1))), text)

    counted = count_flops(forward, state, jnp.ones((1, 2, 4, 4, 4)), jnp.ones((1, 16, tiny.text.width)))
    np.testing.assert_allclose(counted, flops(tiny.dit, (2, 4, 4), 16), rtol=0.02)


def test_metrics_wait_and_are_told_once(tmp_path):
    late = Late()
    for step in range(1, 8):
        late.add(step, {"loss": jnp.float32(step)})
    assert [s for s, _ in late.take(5)] == [1, 2, 3, 4, 5]
    again = Late(late.state())
    assert again.told(7) == 5
    assert again.take(7) == [(6, {"loss": 6.0}), (7, {"loss": 7.0})]
    assert mean([{"a": 1.0}, {"a": 3.0, "b": np.nan}])["a"] == 2.0
    log = MetricsLog(tmp_path, 0, 0)
    for step in (5, 10):
        log.write(step, {"loss": 1.0})
        log.write(step, {"held_out": np.nan})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    MetricsLog(tmp_path, 10, 5).close()
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert text == ['{"step": 5, "loss": 1.0}', '{"step": 5, "held_out": null}', '{"step": 10, "held_out": null}']
