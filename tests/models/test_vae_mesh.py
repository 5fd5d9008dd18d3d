"""The VAE on eight fake devices: each has a part of every frame, neighbours exchange borders, values are those of one
device, and so are loss and gradients."""

import math
import re
import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dit_video.core.mesh import MeshShape, Rules, batch_sharding, make_mesh, over_frames, ways
from dit_video.models.vae import VAE, VAEConfig
from dit_video.train.vae import VAEObjective

random_weights = runpy.run_path(str(Path(__file__).parents[1] / "miniature.py"))["random_weights"]
PLAIN = VAEConfig(base=4, z=4, mult=(1, 2, 2), temporal=(True, True), res_blocks=1)
RESIDUAL = VAEConfig(
    base=4, decoder_base=8, z=4, mult=(1, 2, 2), temporal=(True, True), res_blocks=1, residual=True, patch=2
)
SMALLER = VAEConfig(base=4, z=4, mult=(1, 2), temporal=(True,), res_blocks=1)
SHORTCUTS = VAEConfig(base=4, decoder_base=8, z=4, mult=(1, 1), temporal=(True,), res_blocks=1, residual=True)
FRAMES = 5


def vae_of(cfg):
    """The module of given weights."""
    graph, state = nnx.split(nnx.eval_shape(lambda: VAE(cfg, rngs=nnx.Rngs(0))))

    def module(params):
        weights = jax.tree.map(lambda a: a, state)
        nnx.replace_by_pure_dict(weights, params)
        return nnx.merge(graph, weights)

    return module


def compiled(function, mesh, *args):
    """The program, and what it gives on the host. On a mesh it is given everything on every device."""
    if mesh is None:
        program = jax.jit(function).lower(*args).compile()
        return program, jax.device_get(program(*args))
    whole = NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        program = jax.jit(function, in_shardings=whole).lower(*args).compile()
    return program, jax.device_get(program(*jax.device_put(args, whole)))


def elements(text, kind):
    """Of what each collective of a kind gives."""
    shapes = re.findall(rf"= \w+\[([\d,]+)\]\S* {kind}(?:-start)?\(", text)
    return [math.prod(map(int, shape.split(","))) for shape in shapes]


@pytest.mark.parametrize("way", ["decode", "encode"])
@pytest.mark.parametrize(
    "cfg, mesh, size, parts",
    [
        pytest.param(PLAIN, MeshShape(1, 1, 8, 1), (16, 4), 8, id="2.1-rows"),
        pytest.param(RESIDUAL, MeshShape(1, 1, 4, 2), (16, 4), 8, id="2.2-two-axes", marks=pytest.mark.slow),
        pytest.param(RESIDUAL, MeshShape(2, 2, 2, 1), (4, 16), 8, id="2.2-columns", marks=pytest.mark.slow),
        pytest.param(PLAIN, MeshShape(1, 1, 4, 1), (3, 8), 4, id="2.1-odd-rows", marks=pytest.mark.slow),
        # Latents of 6x5 do not divide by four, twice their size does: the levels from there on are split; and five
        # frames do not either.
        pytest.param(PLAIN, MeshShape(1, 1, 4, 1), (6, 5), 1, id="2.1-odd", marks=pytest.mark.slow),
        pytest.param(RESIDUAL, MeshShape(1, 1, 1, 8), (5, 3), 1, id="2.2-odd", marks=pytest.mark.slow),
    ],
)
def test_frames_in_parts_are_the_whole(cfg, mesh, size, parts, way):
    module, params, rng = vae_of(cfg), random_weights(cfg, 0), np.random.default_rng(1)
    mesh = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.context * mesh.tensor])
    latents = (1, 1 + (FRAMES - 1) // cfg.stride, *size, cfg.z)
    assert math.prod(ways(axis, mesh) for axis in over_frames(latents, Rules(), mesh)) == parts
    if way == "decode":
        given, run = rng.standard_normal(latents, np.float32), lambda p, z: module(p).decode(z, clip=False)
    else:
        given = rng.uniform(-1, 1, (1, FRAMES, *(side * cfg.factor for side in size), 3)).astype(np.float32)
        run = lambda p, video: module(p).encode(video)  # noqa: E731
    alone, wanted = compiled(run, None, params, given)
    spread, got = compiled(run, mesh, params, given)
    for have, want in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5 * np.abs(want).max())
    if parts == 1:
        return
    # Borders go to neighbours; whole frames are seen by the attention of the narrowest level alone.
    text = spread.as_text()
    assert elements(text, "collective-permute")
    widest = cfg.mult[-1] * max(cfg.base, cfg.decoder_base or 0)
    assert max(elements(text, "all-gather")) <= 3 * math.prod(latents[:4]) * widest
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (spread, alone)]
    assert sizes[0] < 2.5 * sizes[1] / parts  # frames so small are borders mostly


@pytest.mark.parametrize("way", ["decode", pytest.param("encode", marks=pytest.mark.slow)])
@pytest.mark.parametrize("cfg", [PLAIN, pytest.param(RESIDUAL, marks=pytest.mark.slow)])
def test_a_piece_whose_sides_do_not_divide_is_split_over_time(cfg, way):
    """Latents of 6x5 on four devices: each has a frame of the piece, and takes what its kernels see before it from its
    neighbour, or from the past of the piece."""
    module, params, rng = vae_of(cfg), random_weights(cfg, 0), np.random.default_rng(1)
    mesh, size = make_mesh(MeshShape(1, 1, 4, 1), jax.devices()[:4]), (6, 5)
    if way == "decode":
        given = rng.standard_normal((1, 5, *size, cfg.z), np.float32)
        piece = lambda p, x, past: module(p).decode_piece(x, past, clip=False)  # noqa: E731
    else:
        given = rng.uniform(-1, 1, (1, 17, *(side * cfg.factor for side in size), 3)).astype(np.float32)

        def piece(p, x, past):
            mean, logvar, past = module(p).encode_piece(x, past)
            return (mean, logvar), past

    _, past = jax.device_get(jax.jit(piece)(params, given[:, :1], None))
    alone, wanted = compiled(piece, None, params, given[:, 1:], past)
    spread, got = compiled(piece, mesh, params, given[:, 1:], past)
    assert over_frames((1, 4, *size, cfg.z), Rules(), mesh)[1] == "context"
    for have, want in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5 * np.abs(want).max())
    assert elements(spread.as_text(), "collective-permute")
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (spread, alone)]
    assert sizes[0] < 0.6 * sizes[1]


def lesson(cfg):
    """Parameters, clips and a key; whether a convolution is folded does not matter to them."""
    clips = np.random.default_rng(2).uniform(-1, 1, (8, FRAMES, 8, 16, 3)).astype(np.float32)
    return random_weights(cfg, 0), clips, jax.random.key(3)


def learn(cfg):
    module, objective = vae_of(cfg), VAEObjective(kl=0.1, scales=1)
    return jax.jit(jax.value_and_grad(lambda params, clips, key: objective.terms(module(params), clips, key)[0]))


@cache
def one_device(cfg):
    return jax.device_get(learn(cfg)(*lesson(cfg)))


LESSONS = [
    (MeshShape(1, 2, 2, 2), SMALLER),
    (MeshShape(8), SMALLER),
    (MeshShape(1, 8), SMALLER),
    (MeshShape(2, 2, 1, 2), SMALLER),
    (MeshShape(1, 1, 4, 2), SMALLER),
    (MeshShape(2, 1, 4, 1), SMALLER),
    (MeshShape(1, 2, 2, 2), replace(SMALLER, conv="direct")),
    (MeshShape(2, 1, 2, 2), SHORTCUTS),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh, cfg",
    LESSONS,
    ids=lambda value: str(value) if isinstance(value, MeshShape) else f"{value.conv}-{value.residual}",
)
def test_loss_and_gradients_are_those_of_one_device(mesh, cfg):
    mesh, (params, clips, key) = make_mesh(mesh, jax.devices()), lesson(cfg)
    params, key = jax.device_put((params, key), NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        got = learn(cfg)(params, jax.device_put(clips, batch_sharding(mesh)), key)
    wanted = jax.tree_util.tree_flatten_with_path(one_device(replace(cfg, conv="folded")))[0]
    for (path, want), have in zip(wanted, jax.tree.leaves(jax.device_get(got)), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5 * max(1.0, np.abs(want).max()), err_msg=str(path))
