"""The causal VAE on its own: causality, pieces against whole, rules and statistics. The reference is elsewhere."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.errors import BadInput
from dit_video.models.vae import VAE, VAEConfig
from dit_video.weights.names import flatten, unflatten

SMALL = VAEConfig(base=8, z=4, mult=(1, 2, 4), res_blocks=1, temporal=(True, True), patch=2)
RESIDUAL = VAEConfig(base=8, decoder_base=12, z=4, mult=(1, 2, 2), res_blocks=1, temporal=(True, True), residual=True)


@cache
def build(cfg: VAEConfig, seed: int = 0) -> VAE:
    """A VAE with no weight at zero, so that every path matters."""
    graph, params = nnx.split(nnx.eval_shape(lambda: VAE(cfg, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> jax.Array:
        spread = 0.1 if len(shape) == 1 else np.prod(shape[:-1]) ** -0.5
        return jnp.asarray(path.endswith("gamma") + rng.normal(0, spread, shape), jnp.float32)

    values = {path: draw(path, x.shape) for path, x in flatten(nnx.to_pure_dict(params)).items()}
    nnx.replace_by_pure_dict(params, unflatten(values))
    return nnx.merge(graph, params)


@cache
def program(cfg: VAEConfig, name: str):
    """`encode`, or `decode` without the cut to [-1, 1], compiled once a shape."""
    graph, params = nnx.split(build(cfg))
    run = jax.jit(
        lambda p, x: nnx.merge(graph, p).encode(x) if name == "encode" else nnx.merge(graph, p).decode(x, False)
    )
    return lambda x: run(params, x)


def clip(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)), jnp.float32)


def relative(a, b) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_shapes_follow_the_config():
    vae = build(SMALL)
    mean, logvar = jax.eval_shape(vae.encode, clip(2, 5, 16, 24))
    assert mean.shape == logvar.shape == (2, *SMALL.latent_shape(5, 16, 24)) == (2, 2, 2, 3, 4)
    assert jax.eval_shape(vae.decode, mean).shape == (2, 5, 16, 24, 3)
    assert VAEConfig().stride == 4 and VAEConfig().factor == 8  # Wan 2.1
    assert VAEConfig().latent_shape(81, 480, 832) == (21, 60, 104, 16)


def test_the_future_does_not_reach_the_past():
    video = clip(1, 13, 16, 16)
    changed = video.at[:, 5:].multiply(-1)  # latent slots 2 and 3 hold frames 5..12
    a, b = (program(SMALL, "encode")(v)[0] for v in (video, changed))
    np.testing.assert_allclose(a[:, :2], b[:, :2], atol=1e-6)
    assert np.abs(a[:, 2] - b[:, 2]).max() > 1e-3
    other = a.at[:, 2:].multiply(-1)
    a, b = (program(SMALL, "decode")(z) for z in (a, other))
    np.testing.assert_allclose(a[:, :5], b[:, :5], atol=1e-6)
    assert np.abs(a[:, 5:] - b[:, 5:]).max() > 1e-3


def test_the_first_frame_alone_is_an_image():
    video = clip(1, 13, 16, 16)
    encode, decode = program(SMALL, "encode"), program(SMALL, "decode")
    z = encode(video)[0]
    np.testing.assert_allclose(z[:, :1], encode(video[:, :1])[0], atol=1e-5)
    np.testing.assert_allclose(decode(z)[:, :1], decode(z[:, :1]), atol=1e-5)


@pytest.mark.parametrize("cfg, slots", [(SMALL, 1), (SMALL, 2), (RESIDUAL, 1)])
def test_pieces_equal_the_whole(cfg, slots):
    vae, video = build(cfg), clip(1, 13, 16, 16)
    mean, logvar = program(cfg, "encode")(video)
    cuts = {1: [0, 5, 9, 13], 2: [0, 9, 13]}[slots]
    encode, decode, past, pieces = jax.jit(vae.encode_piece), jax.jit(vae.decode_piece), None, []
    for begin, end in pairwise(cuts):
        *piece, past = encode(video[:, begin:end], past)
        pieces.append(piece)
    assert [m.shape[1] for m, _ in pieces] == {1: [2, 1, 1], 2: [3, 1]}[slots]
    np.testing.assert_allclose(np.concatenate([m for m, _ in pieces], 1), mean, atol=2e-5)
    np.testing.assert_allclose(np.concatenate([v for _, v in pieces], 1), logvar, atol=2e-5)
    whole, past, made = jnp.clip(program(cfg, "decode")(mean), -1, 1), None, []
    for piece, _ in pieces:
        frames, past = decode(piece, past)
        made.append(frames)
    np.testing.assert_allclose(np.concatenate(made, 1), whole, atol=2e-5)


def test_both_convolutions_give_the_same_video():
    direct, video = replace(SMALL, conv="direct"), clip(1, 13, 16, 16)
    mean = program(SMALL, "encode")(video)[0]
    np.testing.assert_allclose(mean, program(direct, "encode")(video)[0], atol=1e-4)
    np.testing.assert_allclose(program(SMALL, "decode")(mean), program(direct, "decode")(mean), atol=1e-4)


def test_attention_stands_where_attn_scales_says():
    """The reference makes such encoders but cannot run them: its attention takes no cache."""
    cfg = replace(SMALL, attn_scales=(0.5,))
    graph, params = nnx.split(nnx.eval_shape(lambda: VAE(cfg, rngs=nnx.Rngs(0))))
    names = [path for path in flatten(nnx.to_pure_dict(params)) if "down_blocks" in path and "to_qkv/kernel" in path]
    assert names == ["encoder/down_blocks/3/to_qkv/kernel"]  # after the block at half size
    z = jax.eval_shape(lambda p, v: nnx.merge(graph, p).encode(v)[0], params, clip(1, 5, 16, 16))
    assert z.shape == (1, 2, 2, 2, 4)


def test_normalised_latents_and_back():
    cfg = replace(SMALL, latents_mean=(1.0, -2.0, 0.0, 3.0), latents_std=(2.0, 0.5, 1.0, 4.0))
    vae = build(cfg)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 2, 4)), jnp.float32)
    np.testing.assert_allclose(vae.normalize(z)[..., 1], (z[..., 1] + 2) / 0.5, rtol=1e-5)
    np.testing.assert_allclose(vae.denormalize(vae.normalize(z)), z, atol=1e-5)
    np.testing.assert_array_equal(build(SMALL).normalize(z), z)


@pytest.mark.parametrize(
    "shape, says", [((1, 6, 16, 16), "4k\\+1"), ((1, 5, 12, 16), "height=12"), ((1, 5, 16, 20), "width=20")]
)
def test_clips_off_the_rules(shape, says):
    with pytest.raises(BadInput, match=says):
        build(SMALL).encode(clip(*shape))


def test_configs_that_cannot_be():
    with pytest.raises(BadInput, match="temporal"):
        VAEConfig(mult=(1, 2), temporal=(True, True))
    with pytest.raises(BadInput, match="latents_mean"):
        VAEConfig(latents_mean=(1.0,))
    with pytest.raises(BadInput, match="attn_scales"):
        replace(RESIDUAL, attn_scales=(0.5,))
    for mult in ((1, 2, 4), (1, 3, 3)):  # the last level has no block of positions; 4 positions do not make 3 channels
        with pytest.raises(BadInput, match="last two equal"):
            replace(RESIDUAL, mult=mult, temporal=(False, False))


def test_bfloat16_is_near_float32():
    rough, video = replace(SMALL, dtype="bfloat16"), clip(1, 13, 16, 16)
    mean = program(SMALL, "encode")(video)[0]
    near = program(rough, "encode")(video)[0]
    assert near.dtype == jnp.float32
    assert 1e-5 < relative(near, mean) < 0.05
