"""Decoding in pieces: the values of the whole in time, blended in space, planned for memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dit_video.core.errors import BadInput, NonFinite
from dit_video.core.mesh import MeshShape, Rules, make_mesh
from dit_video.generate.decode import Strip, Tiles, _joined, decode_frames, piece_bytes, starts, strips_of, tiles_for
from dit_video.generate.programs import Programs, to_uint8
from dit_video.models.vae import VAEConfig


@pytest.fixture(scope="module")
def programs(tiny):
    return Programs(tiny.dit, tiny.vae, tiny.text, None, Rules())


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(0).standard_normal((8, 6, 4, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tiny, latents):
    """All 29 frames at once."""
    vae = tiny.module("vae")
    return np.asarray(jax.jit(lambda z: vae.decode(vae.denormalize(z)))(latents[None]))[0]


def joined(programs, tiny, strip, *how):
    return np.concatenate(list(decode_frames(programs, tiny.params["vae"], strip, *how)))


@pytest.mark.parametrize("skip, drop", [(0, 0), (9, 0), (3, 5), (28, 0)])
def test_pieces_are_the_whole(programs, tiny, latents, whole, skip, drop):
    """Eight slots as 3 + 2 + 2 + 1, of which the last is filled up; frames in front and behind are left out."""
    got = joined(programs, tiny, Strip(latents, skip, drop), None, 2)
    want = to_uint8(whole)[skip : 29 - drop]
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= 1
    assert (got != want).mean() < 1e-3


def test_pieces_on_a_mesh_are_the_whole(tiny, latents, whole):
    """Eight slots as 3 + 2 + 2 + 1, each device with half of every frame; what is kept between pieces lies alike."""
    mesh = make_mesh(MeshShape(1, 1, 2, 1), jax.devices()[:2])
    spread = Programs(tiny.dit, tiny.vae, tiny.text, mesh, Rules())
    with spread.on_mesh():
        got = joined(spread, tiny, Strip(latents), None, 2)
    assert np.abs(got.astype(int) - to_uint8(whole)).max() <= 1
    assert sorted(function._cache_size() for function in spread.compiled.values()) == [1, 1]  # the first piece, others
    assert spread.parts(1, 6, 4) == 1, "what a CPU calls devices has one memory"


def test_tiles_are_blended(programs, tiny, latents, whole):
    """Tiles see less around them: near, but without an edge where they meet. Tiles as large as the frame are it."""
    same = joined(programs, tiny, Strip(latents), Tiles(6, 4, 2), 2)
    assert np.abs(same.astype(int) - to_uint8(whole)).max() <= 1
    tiled = joined(programs, tiny, Strip(latents), Tiles(4, 4, 2), 2).astype(float)
    assert tiled.shape == whole.shape
    step = np.abs(np.diff(tiled, axis=1)).mean((0, 2, 3))
    assert step.max() < 2 * np.abs(np.diff(to_uint8(whole).astype(float), axis=1)).mean((0, 2, 3)).max()
    assert np.corrcoef(tiled.ravel(), whole.ravel())[0, 1] > 0.8


def test_tiles_go_over_into_each_other_evenly():
    """Tiles of one value each, two pixels a latent: along both sides a ramp over what neighbours share, flat else.
    Across, the three share two and three latents; down, the two share two."""
    corners = [(y, x) for y in starts(10, 6, 2) for x in starts(13, 6, 2)]
    assert corners == [(0, 0), (0, 4), (0, 7), (4, 0), (4, 4), (4, 7)]
    parts = [np.full((1, 12, 12, 3), 10 * (y > 0) + 100 * (0, 4, 7).index(x), np.float32) for y, x in corners]
    down = np.r_[[0] * 8, 10 * np.arange(1, 5) / 5, [10] * 8]
    across = np.r_[[0] * 8, 100 * np.arange(1, 5) / 5, 100, 100, 100 + 100 * np.arange(1, 7) / 7, [200] * 6]
    made = _joined(parts, corners, (10, 13), (6, 6))
    np.testing.assert_allclose(made, np.tile((down[:, None] + across)[None, ..., None], 3), rtol=1e-5, atol=1e-4)


def test_tiles_cover_a_side():
    assert starts(6, 8, 2) == [0]
    assert starts(8, 8, 2) == [0]
    for size in range(9, 60):
        begin = starts(size, 8, 2)
        assert begin[0] == 0
        assert begin[-1] == size - 8
        assert max(np.diff(begin)) <= 6
    with pytest.raises(BadInput, match="cannot share 4"):
        Tiles(4, 8, 4)


def test_memory_chooses_slots_then_tiles():
    wan = VAEConfig()
    assert tiles_for(wan, 60, 104, None) == (None, 4)
    assert tiles_for(wan, 60, 104, piece_bytes(wan, 60, 104)) == (None, 4)
    assert tiles_for(wan, 60, 104, piece_bytes(wan, 60, 104) - 1) == (None, 2)
    tiles, slots = tiles_for(wan, 60, 104, 2 * 2**30)
    assert slots == 1
    assert piece_bytes(wan, tiles.height, tiles.width, 1) <= 2 * 2**30 < piece_bytes(wan, 60, 104, 1)
    with pytest.raises(BadInput, match="MiB at least"):
        tiles_for(wan, 60, 104, 2**20)
    ways = lambda height, width: 8 if width % 8 == 0 else 1  # noqa: E731
    assert tiles_for(wan, 60, 104, piece_bytes(wan, 60, 104) // 8, ways) == (None, 4)
    tiles, _ = tiles_for(wan, 60, 104, piece_bytes(wan, 60, 104, 1) // 10, ways)
    assert tiles.width % 8 and piece_bytes(wan, tiles.height, tiles.width, 1) <= piece_bytes(wan, 60, 104, 1) // 10


def test_saved_latents_know_their_streams():
    latents = np.zeros((7, 2, 2, 4), np.float32)
    (one,) = strips_of(latents, {})
    assert (one.latents.shape[0], one.skip, one.drop) == (7, 0, 0)
    first, second = strips_of(latents, {"strips": [[3, 0, 0], [4, 1, 2]]})
    assert (len(first.latents), len(second.latents), second.skip, second.drop) == (3, 4, 1, 2)
    with pytest.raises(BadInput, match="says 8"):
        strips_of(latents, {"strips": [[3, 0, 0], [5, 1, 2]]})


def test_broken_pixels_are_told(programs, tiny, latents):
    broken = latents.copy()
    broken[4] = np.nan
    with pytest.raises(NonFinite, match="from frame 9 on"):
        joined(programs, tiny, Strip(broken), None, 2)


def test_footage_is_on_the_device_a_piece_at_a_time(programs, tiny, monkeypatch):
    """29 frames as 9 + 8 + 8 + 4, as bytes, and the latents of the whole."""
    frames = np.random.default_rng(1).integers(0, 255, (29, 32, 32, 3), np.uint8)
    want = np.asarray(jax.jit(programs.encode)(tiny.params["vae"], frames[None]))[0]
    prepare, sent, most = programs.prepare, [], []

    def noted(wanted):
        ((_, _, (_, piece, _)),) = wanted.values()
        sent.append((piece.dtype, piece.shape[1]))
        most.append(max((array.size for array in jax.live_arrays() if array.shape[-3:] == (32, 32, 3)), default=0))
        return prepare(wanted)

    monkeypatch.setattr(programs, "prepare", noted)
    got = programs.encode_stream(tiny.params["vae"], frames, 2)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert sent == [(np.uint8, 9), (np.uint8, 8), (np.uint8, 8), (np.uint8, 4)]
    assert max(most) <= frames[:9].size


CHILD = """
import json, sys, threading
import jax, numpy as np
from flax import nnx
from dit_video.core.mesh import Rules
from dit_video.generate.decode import Strip, decode_frames
from dit_video.generate.programs import Programs
from dit_video.models.dit import DiTConfig
from dit_video.models.text import TextConfig
from dit_video.models.vae import VAE, VAEConfig

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

cfg = VAEConfig()
programs = Programs(DiTConfig(), cfg, TextConfig(), None, Rules())
vae = nnx.to_pure_dict(jax.jit(lambda: nnx.split(VAE(cfg, rngs=nnx.Rngs(0)))[1])())
z = np.random.default_rng(0).standard_normal((17, 8, 8, 16)).astype(np.float32)
most, over = [0], threading.Event()

def watch():
    while not over.wait(0.005):
        most[-1] = max(most[-1], held())

threading.Thread(target=watch, daemon=True).start()
frames = []
for piece in decode_frames(programs, vae, Strip(z), None, 1):
    frames.append(piece)
    most.append(0)
over.set()
whole = programs.prepare({"decode": ((), programs.decode, (vae, z[None, :5]))})["decode"](vae, z[None, :5])[0]
away = np.abs(np.concatenate(frames)[:17].astype(int) - np.asarray(whole[0])).max()
print(json.dumps({"frames": sum(map(len, frames)), "away": int(away), "most": most[:-1]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux tells of a process")
def test_the_released_size_streams_in_flat_memory():
    """Random weights of Wan 2.1's VAE at 64x64, in a process of its own, as `generate` and `decode` do it: of 65 frames
    the first 17 are those that are decoded whole, and later pieces take no more memory than the first ones."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("XLA")} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["frames"], len(told["most"])) == (65, 16)
    assert told["away"] <= 1
    assert max(told["most"][8:]) < 1.05 * max(told["most"][2:8]), told["most"]
