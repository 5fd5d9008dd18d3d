"""The causal VAE: parity with diffusers, causality, pieces against whole, rules and statistics."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.errors import BadInput
from dit_video.models.vae import VAE, VAEConfig
from dit_video.weights.names import flatten, to_foreign, to_ours, unflatten
from dit_video.weights.names_vae import VAE_NAMES

SMALL = VAEConfig(base=8, z=4, mult=(1, 2, 4), res_blocks=1, temporal=(True, True), patch=2)


def build(cfg: VAEConfig, seed: int = 0) -> VAE:
    """A VAE with no weight at zero, so that every path matters."""
    vae = VAE(cfg, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(vae)
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(
        lambda p: p + rng.normal(0, 0.5 / max(1, np.prod(p.shape[:-1])) ** 0.5, p.shape).astype("f"), params
    )
    return nnx.merge(graph, noisy)


def clip(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)), jnp.float32)


def relative(a, b) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parity
@pytest.mark.parametrize("frames", [1, 5, 17])
@pytest.mark.parametrize(
    "cfg",
    [
        replace(SMALL, decoder_base=12),
        VAEConfig(base=8, z=4, mult=(1, 2, 4, 4), res_blocks=1, temporal=(False, True, True), attn_scales=(0.5,)),
    ],
    ids=["patch2", "patch1"],
)
def test_same_values_as_diffusers(cfg, frames):
    torch = pytest.importorskip("torch")
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    theirs = AutoencoderKLWan(
        base_dim=cfg.base, decoder_base_dim=cfg.decoder_base, z_dim=cfg.z, dim_mult=list(cfg.mult),
        num_res_blocks=cfg.res_blocks, attn_scales=list(cfg.attn_scales), temperal_downsample=list(cfg.temporal),
        patch_size=cfg.patch if cfg.patch > 1 else None, in_channels=3 * cfg.patch**2, out_channels=3 * cfg.patch**2,
        scale_factor_spatial=cfg.factor, scale_factor_temporal=cfg.stride,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.02 * torch.randn_like(p))
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    graph, params = nnx.split(VAE(cfg, rngs=nnx.Rngs(0)))
    shapes = {k: v.shape for k, v in flatten(nnx.to_pure_dict(params)).items()}
    ours = to_ours(VAE_NAMES, state, shapes)
    back = to_foreign(VAE_NAMES, ours)
    assert back.keys() == state.keys() and all(np.array_equal(back[k], state[k]) for k in state)
    nnx.replace_by_pure_dict(params, unflatten(ours))

    video = clip(1, frames, 32, 16)
    mean, logvar = jax.jit(lambda p, v: nnx.merge(graph, p).encode(v))(params, video)
    decoded = jax.jit(lambda p, z: nnx.merge(graph, p).decode(z))(params, mean)
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(np.array(video)).permute(0, 4, 1, 2, 3)).latent_dist
        pixels = theirs.decode(posterior.mean).sample
    assert relative(mean, posterior.mean.permute(0, 2, 3, 4, 1)) < 1e-4
    assert relative(logvar, posterior.logvar.permute(0, 2, 3, 4, 1)) < 1e-4
    assert relative(decoded, pixels.permute(0, 2, 3, 4, 1)) < 1e-4
    assert np.abs(decoded).mean() > 0.01


def test_shapes_follow_the_config():
    vae = build(SMALL)
    mean, logvar = vae.encode(clip(2, 5, 16, 24))
    assert mean.shape == logvar.shape == (2, *SMALL.latent_shape(5, 16, 24)) == (2, 2, 2, 3, 4)
    assert vae.decode(mean).shape == (2, 5, 16, 24, 3)
    assert VAEConfig().stride == 4 and VAEConfig().factor == 8  # Wan 2.1
    assert VAEConfig().latent_shape(81, 480, 832) == (21, 60, 104, 16)


def test_the_future_does_not_reach_the_past():
    vae = build(SMALL)
    video = clip(1, 9, 16, 16)
    changed = video.at[:, 5:].multiply(-1)  # latent slot 2 holds frames 5..8
    a, b = (vae.encode(v)[0] for v in (video, changed))
    np.testing.assert_allclose(a[:, :2], b[:, :2], atol=1e-6)
    assert np.abs(a[:, 2] - b[:, 2]).max() > 1e-3
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 2, 4)), jnp.float32)
    other = z.at[:, 2].multiply(-1)
    a, b = (vae.decode(v, clip=False) for v in (z, other))
    np.testing.assert_allclose(a[:, :5], b[:, :5], atol=1e-6)
    assert np.abs(a[:, 5:] - b[:, 5:]).max() > 1e-3


def test_the_first_frame_alone_is_an_image():
    vae = build(SMALL)
    video = clip(1, 5, 16, 16)
    np.testing.assert_allclose(vae.encode(video)[0][:, :1], vae.encode(video[:, :1])[0], atol=1e-5)
    z = vae.encode(video)[0]
    np.testing.assert_allclose(vae.decode(z)[:, :1], vae.decode(z[:, :1]), atol=1e-5)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_pieces_equal_the_whole(slots):
    vae = build(SMALL)
    video = clip(1, 21, 16, 16)
    mean, logvar = vae.encode(video)
    pieces = list(vae.encode_stream(video, slots))
    assert len(pieces) > 1
    np.testing.assert_allclose(np.concatenate([m for m, _ in pieces], 1), mean, atol=2e-5)
    np.testing.assert_allclose(np.concatenate([v for _, v in pieces], 1), logvar, atol=2e-5)
    pieces = list(vae.decode_stream(mean, slots))
    assert [p.shape[1] for p in pieces][:2] == [1 + 4 * slots, 4 * min(slots, 5 - slots)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), vae.decode(mean), atol=2e-5)


def test_both_convolutions_give_the_same_video():
    folded, direct = build(SMALL), build(replace(SMALL, conv="direct"))
    video = clip(1, 9, 16, 16)
    mean = folded.encode(video)[0]
    np.testing.assert_allclose(mean, direct.encode(video)[0], atol=1e-4)
    np.testing.assert_allclose(folded.decode(mean), direct.decode(mean), atol=1e-4)


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


def test_bfloat16_is_near_float32():
    video = clip(1, 5, 16, 16)
    exact, rough = build(SMALL), build(replace(SMALL, dtype="bfloat16"))
    mean = exact.encode(video)[0]
    assert relative(rough.encode(video)[0], mean) < 0.05
    assert rough.decode(mean).dtype == jnp.float32
