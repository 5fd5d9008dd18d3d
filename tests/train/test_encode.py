"""Large clips are encoded in pieces: the same latents, in memory that does not grow with their length."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_video.data.buckets import AT_ONCE, Bucket
from dit_video.data.build import Bytes
from dit_video.data.loader import Toyworld, stack
from dit_video.train import encode
from dit_video.train.given import encode_frames
from dit_video.weights.model import abstract

FRAME = 32 * 32


def clips(frames, n=2):
    rng = np.random.default_rng(0)
    return {"frames": rng.integers(0, 256, (n, frames, 32, 32, 3), np.uint8)}, np.array([[1, frames - 1]] * n)


@pytest.fixture
def graph(tiny):
    return nnx.split(abstract(tiny.vae), nnx.Param)[0]


def test_wans_sizes_go_alone_and_those_on_board_together():
    assert [Bucket(81, *size).at_once(16) for size in ((720, 1280), (480, 832))] == [1, 1]
    assert Bucket(81, 480, 832).at_once(16, 4) == 4, "one a device"
    assert Bucket(1, 720, 1280).at_once(16) == 4
    assert Bucket(33, 64, 64).at_once(16) == Bucket(17, 80, 48).at_once(16, 8) == 16
    assert Bucket(81, 480, 832).at_once(1, 1) == 1


@pytest.mark.parametrize("at_once", [2 * 5 * FRAME, FRAME])
def test_pieces_give_the_same_latents(graph, tiny, monkeypatch, at_once):
    arrays, numbers = clips(13)
    args = graph, tiny.params["vae"], arrays, 0, Bytes()
    whole = encode.encode_clips(*args, numbers)
    given = encode_frames(*args, True)
    monkeypatch.setattr(encode, "AT_ONCE", at_once)
    assert whole[0][0].shape == (2, 4, 4, 4, 4) and whole[1][0].shape == (2, 2, 4, 4, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), encode.encode_clips(*args, numbers), whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), encode_frames(*args, True), given)


def test_memory_does_not_grow_with_frames(graph, tiny, monkeypatch):
    """That of the largest program."""
    found, compiled = [], {}

    def counted(program):
        def call(graph, *args):
            shapes = str(jax.tree.map(np.shape, args))
            if shapes not in compiled:
                compiled[shapes] = program.lower(graph, *args).compile()
            memory = compiled[shapes].memory_analysis()
            found.append(memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes)
            return compiled[shapes](*args)

        return call

    monkeypatch.setattr(encode, "_encode", counted(encode._encode))
    monkeypatch.setattr(encode, "_encode_piece", counted(encode._encode_piece))

    def most(frames):
        found.clear()
        video = np.zeros((1, frames, 32, 32, 3), np.float32)
        encode.encode_video(graph, tiny.params["vae"], jax.device_put(video))
        return max(found)

    whole = most(33)
    monkeypatch.setattr(encode, "AT_ONCE", 5 * FRAME)
    assert most(33) == most(17) < whole / 3


def test_devices_share_a_chunk(tiny):
    """Each counts its own clips, of what is drawn too."""
    mesh = jax.make_mesh((4,), ("clips",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    reader = Toyworld().open((replace(Bucket(5, 32, 32)),))
    arrays = jax.device_put(stack([reader.load(i) for i in range(4)]).arrays, NamedSharding(mesh, P("clips")))
    video, alone = encode._pixels(arrays, 0, reader, np.full((4, 1), 3))
    assert encode._pixels_of(video) == 5 * FRAME and encode._pixels_of(alone) == FRAME < AT_ONCE
