"""The denoiser against `WanTransformer3DModel` of diffusers, with random weights, in float32."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.types import Text, Time
from dit_video.models.dit import DiT
from dit_video.weights.names import flatten, to_foreign, to_ours, unflatten
from dit_video.weights.names_dit import dit_table, from_diffusers, to_diffusers

pytestmark = pytest.mark.parity

CASES = [
    # heads, head_dim, layers, ffn, channels, text_dim, patch, cross_attn_norm | latent T, H, W | text rows
    ((2, 12, 1, 32, 4, 8, (1, 2, 2), True), (1, 2, 2), (3,)),
    ((3, 16, 2, 64, 16, 24, (1, 2, 2), True), (3, 4, 6), (1, 7, 16)),
    ((2, 20, 3, 48, 8, 16, (1, 2, 2), False), (5, 6, 4), (12, 2)),
    ((1, 128, 2, 96, 16, 32, (1, 2, 2), True), (2, 8, 8), (512, 30)),
    ((4, 32, 2, 64, 6, 16, (2, 2, 1), True), (4, 4, 3), (5, 9)),
]


def reference(case):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    heads, head_dim, layers, ffn, channels, text_dim, patch, cross_attn_norm = case
    torch.manual_seed(heads * 100 + layers)
    torch.set_num_threads(2)
    model = diffusers.WanTransformer3DModel(
        patch_size=patch, num_attention_heads=heads, attention_head_dim=head_dim, in_channels=channels,
        out_channels=channels, text_dim=text_dim, freq_dim=32, ffn_dim=ffn, num_layers=layers,
        cross_attn_norm=cross_attn_norm,
    )  # fmt: skip
    with torch.no_grad():  # norms start at one and zero, where a mistake would not show
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(0.3 * torch.randn_like(p))
            elif p.ndim == 2:
                p.mul_(2.0)
    return torch, model.eval()


def ours(model):
    cfg = from_diffusers(dict(model.config))
    dit = nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(dit)
    shapes = {path: leaf.shape for path, leaf in flatten(nnx.to_pure_dict(state)).items()}
    weights = to_ours(dit_table(cfg), {k: v.detach().numpy() for k, v in model.state_dict().items()}, shapes)
    nnx.replace_by_pure_dict(state, unflatten({k: jnp.asarray(v) for k, v in weights.items()}))
    return cfg, weights, nnx.merge(graph, state)


@pytest.mark.parametrize("case, size, lengths", CASES)
def test_is_the_reference(case, size, lengths):
    torch, model = reference(case)
    cfg, _, dit = ours(model)
    B, C = len(lengths), cfg.in_channels
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, *size, C), dtype=np.float32)
    rows = rng.standard_normal((B, -(-max(lengths) // 16) * 16, cfg.text_dim), dtype=np.float32)
    for b, n in enumerate(lengths):
        rows[b, n:] = 0
    padded = np.concatenate([rows, np.zeros((B, 512 - rows.shape[1], cfg.text_dim), np.float32)], 1)
    t = rng.uniform(0, 1, B).astype(np.float32)
    mask = rng.integers(0, 2, (B, size[0], 1, 1)) * np.ones((1, 1, *size[1:]), int)
    first = np.broadcast_to(mask, (B, *size))[:, :: cfg.patch[0], :: cfg.patch[1], :: cfg.patch[2]]
    text = Text(jnp.asarray(rows), jnp.asarray(lengths))

    def theirs(timestep):
        latents = torch.from_numpy(x.transpose(0, 4, 1, 2, 3).copy())
        with torch.no_grad():
            out = model(latents, torch.from_numpy(timestep), torch.from_numpy(padded), return_dict=False)[0]
        return out.numpy().transpose(0, 2, 3, 4, 1)

    scalar = dit(jnp.asarray(x), Time(jnp.asarray(t)[:, None]), text)
    close(scalar, theirs(1000 * t))
    values = jnp.stack([jnp.asarray(t), jnp.zeros(B)], 1)
    each = dit(jnp.asarray(x), Time(values, jnp.asarray(np.broadcast_to(mask, (B, *size)))), text)
    tokens = (1000 * t[:, None] * (1 - first.reshape(B, -1))).astype(np.float32)
    close(each, theirs(tokens))
    assert np.abs(scalar - each).max() > 1e-3


def close(ours, theirs):
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < 1e-4, error


def test_config_and_weights_go_there_and_back():
    _, model = reference(CASES[1][0])
    cfg, weights, _ = ours(model)
    config = to_diffusers(cfg)
    assert {k: config[k] for k in config if k != "_class_name"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items() if k in config
    }
    back = to_foreign(dit_table(cfg), weights)
    assert set(back) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(back[name], tensor.numpy())
