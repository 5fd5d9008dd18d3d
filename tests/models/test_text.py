"""The text encoder on its own: padding, position, length, buckets. The reference's numbers are elsewhere."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.mesh import MeshShape, batch_sharding, make_mesh, shardings
from dit_video.models.text import TextConfig, TextEncoder, distance_buckets, relative_buckets
from dit_video.weights.names import flatten

SMALL = TextConfig(vocab=60, width=24, heads=3, head_dim=16, ffn_dim=40, depth=2)


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(SMALL, rngs=nnx.Rngs(0))


def encode(encoder, ids, length):
    return nnx.jit(lambda m, i, n: m(i, n))(encoder, jnp.asarray(ids), jnp.asarray(length))


def test_rows_past_the_length_are_zero_and_padding_changes_nothing(encoder):
    ids = np.array([[5, 9, 13, 1, 0, 0, 0, 0], [7, 1, 0, 0, 0, 0, 0, 0]])
    text = encode(encoder, ids, [4, 2])
    assert text.rows.shape == (2, 8, 24)
    assert np.all(text.rows[0, 4:] == 0)
    assert np.all(text.rows[1, 2:] == 0)
    alone = encode(encoder, ids[1:, :2], [2])
    np.testing.assert_allclose(text.rows[1, :2], alone.rows[0], atol=1e-5)
    other_pad = np.where(np.arange(8) < np.array([[4], [2]]), ids, 33)  # what stands in the padding is not looked at
    np.testing.assert_allclose(encode(encoder, other_pad, [4, 2]).rows, text.rows, atol=1e-6)


def test_order_matters_and_rows_have_unit_size(encoder):
    one, other = encode(encoder, [[5, 9, 13, 1], [9, 5, 13, 1]], [4, 4]).rows
    assert np.abs(one[2] - other[2]).max() > 1e-3  # the same word, after the same words in another order
    np.testing.assert_allclose(np.mean(np.square(one), -1), 1, rtol=1e-2)


def test_at_the_start_a_row_is_mostly_its_own_word(encoder):
    rows = encode(encoder, [[5, 9, 13, 1], [5, 20, 21, 22]], [4, 4]).rows
    cosine = lambda a, b: float(jnp.sum(a * b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))  # noqa: E731
    assert cosine(rows[0, 0], rows[1, 0]) > 0.5  # the same word among others
    assert cosine(rows[0, 0], rows[0, 1]) < 0.6  # another word in the same sentence


def test_buckets_are_exact_near_and_logarithmic_far():
    near = distance_buckets(16, 128)
    assert near[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert near[128] == 15
    assert np.all(np.diff(near) >= 0)
    table = np.asarray(relative_buckets(300, 32, 128))
    assert table[0, 0] == 0
    assert table[0, 1] == 17  # to the right: the upper half
    assert table[1, 0] == 1
    assert table[0, 299] == 31
    assert table[299, 0] == 15


def test_every_weight_names_its_axes_and_gets_a_gradient(encoder):
    graph, params = nnx.split(encoder, nnx.Param)

    def loss(params):
        return jnp.sum(jnp.sin(nnx.merge(graph, params)(jnp.array([[5, 9, 13, 1]]), jnp.array([4])).rows))

    for path, grad in flatten(nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))).items():
        assert np.abs(grad).max() > 0, path
    for path, variable in nnx.to_flat_state(params):
        axes = variable.get_metadata()["axes"]
        leading = 1 if path[0] == "blocks" else 0
        assert len(axes) + leading == variable.get_value().ndim, path


def test_compute_dtype_leaves_the_weights_in_float32():
    encoder = TextEncoder(replace(SMALL, dtype="bfloat16"), rngs=nnx.Rngs(0))
    assert encode(encoder, [[5, 1]], [2]).rows.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(encoder, nnx.Param))} == {jnp.dtype("float32")}


MORE = [MeshShape(8), MeshShape(1, 8), MeshShape(1, 4, 1, 2), MeshShape(2, 1, 2, 2), MeshShape(1, 1, 4, 2)]


@pytest.mark.parametrize(
    "shape", [MeshShape(2, 2, 1, 2), *(pytest.param(m, marks=pytest.mark.slow) for m in MORE)], ids=str
)
def test_the_same_rows_and_gradients_on_a_mesh(shape):
    encoder = TextEncoder(replace(SMALL, heads=4), rngs=nnx.Rngs(0))
    graph, params = nnx.split(encoder, nnx.Param)
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 60, (8, 16)))
    length = jnp.array([16, 3, 1, 9, 2, 16, 5, 8])

    def loss(params, ids, length):
        rows = nnx.merge(graph, params)(ids, length).rows
        return jnp.sum(jnp.sin(rows)), rows

    step = jax.value_and_grad(loss, has_aux=True)
    (_, expected), expected_grads = jax.jit(step)(params, ids, length)
    mesh = make_mesh(shape)
    spread = jax.device_put(nnx.to_pure_dict(params), shardings(params, mesh))
    nnx.replace_by_pure_dict(params, spread)
    kernel = spread["blocks"]["attn"]["q"]["kernel"]
    width, heads = 24 // (shape.fsdp * shape.context), 64 // shape.tensor
    assert kernel.addressable_shards[0].data.shape == (2, width, heads)  # stacked layers whole, width and heads split
    with jax.set_mesh(mesh):
        on_batch = jax.device_put((ids, length), batch_sharding(mesh))
        (_, rows), grads = jax.jit(step)(params, *on_batch)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parity
def test_the_buckets_of_transformers():
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.umt5.modeling_umt5")
    configuration = pytest.importorskip("transformers").UMT5Config(d_model=8, num_heads=1, d_kv=8)
    attention = modeling.UMT5Attention(configuration, has_relative_attention_bias=True)
    offset = torch.arange(600)[None, :] - torch.arange(600)[:, None]
    np.testing.assert_array_equal(
        np.asarray(relative_buckets(600, 32, 128)), attention._relative_position_bucket(offset).numpy()
    )
