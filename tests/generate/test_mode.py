"""Which way a clip is made: a table of models, lengths and memory, and what is refused."""

import types
from dataclasses import replace

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.core.mesh import Rules
from dit_video.generate.mode import choose, pass_bytes, slots_of
from dit_video.generate.programs import Programs
from dit_video.models.dit import DiTConfig
from dit_video.models.text import TextConfig
from dit_video.models.vae import VAEConfig
from dit_video.weights.model import Defaults, Model

GIB = 2**30
BOARD = Model(
    dit=DiTConfig(heads=4, head_dim=32, depth=6, ffn_dim=512, text_dim=128),
    vae=VAEConfig(base=16, mult=(1, 2, 4), temporal=(True, True), patch=2, res_blocks=1),
    text=TextConfig(), params={}, tokenizer=None,
)  # fmt: skip
WAN = replace(
    BOARD, dit=DiTConfig(attention="chunked", dtype="bfloat16"), vae=VAEConfig(), expand_timesteps=False,
    defaults=Defaults(height=480, width=832, num_frames=81, max_frames=81, fps=16.0, conditions=()),
)  # fmt: skip
TI2V = replace(
    WAN, expand_timesteps=True, defaults=replace(WAN.defaults, num_frames=121, max_frames=121, conditions=("first",))
)
BOARD_SIZE, WAN_SIZE = (64, 64), (480, 832)


@pytest.mark.parametrize(
    "model, frames, size, memory, mode, window",
    [
        (BOARD, 1, BOARD_SIZE, None, "single", 5),
        (BOARD, 17, BOARD_SIZE, None, "single", 5),
        (BOARD, 33, BOARD_SIZE, 2 * GIB, "single", 5),
        (BOARD, 37, BOARD_SIZE, None, "extend", 5),
        (BOARD, 1441, BOARD_SIZE, 2 * GIB, "extend", 5),
        (BOARD, 1441, (512, 512), 1.2 * GIB, "extend", 4),  # a pass of five latent frames does not fit
        (BOARD, 33, (512, 512), 2 * GIB, "extend", 5),  # no longer than in training, but too much at once
        (WAN, 81, WAN_SIZE, 7 * GIB, "single", 21),
        (WAN, 161, WAN_SIZE, 24 * GIB, "single", 21),  # up to twice: with RIFLEx
        (WAN, 169, WAN_SIZE, 24 * GIB, "window", 21),
        (WAN, 81, WAN_SIZE, 1.7 * GIB, "window", 6),
        (WAN, 1441, WAN_SIZE, None, "window", 21),
        (TI2V, 121, WAN_SIZE, None, "single", 31),
        (TI2V, 485, WAN_SIZE, None, "window", 31),  # takes a first frame, but was not trained to go on from a tail
    ],
)
def test_auto(model, frames, size, memory, mode, window):
    plan = choose(model, frames, *size, memory)
    assert (plan.mode, plan.window) == (mode, window), plan.why
    assert plan.why
    latent = (size[0] // model.vae.factor, size[1] // model.vae.factor)
    if memory is not None:
        slots = slots_of(frames, 4) if mode == "single" else window
        assert pass_bytes(model.dit, slots, *latent) <= memory
    assert (plan.stretch is not None) == (mode == "single" and frames > model.defaults.max_frames)
    # the same sizes, the same answer
    assert choose(model, frames, *size, memory) == plan


def test_auto_counts_the_share_of_a_device():
    """What is too much for one device is not for four that split its tokens, nor the pieces of a longer clip."""
    assert choose(WAN, 81, *WAN_SIZE, 1.9 * GIB).mode == "window"
    plan = choose(WAN, 81, *WAN_SIZE, 1.9 * GIB, ways=4)
    assert (plan.mode, plan.window) == ("single", 21) and "a pass and device" in plan.why
    assert choose(WAN, 1441, *WAN_SIZE, 1.7 * GIB).window < choose(WAN, 1441, *WAN_SIZE, 1.7 * GIB, ways=2).window


def test_a_mesh_splits_clips_where_they_divide_and_tokens(tiny):
    """Unless its devices share a memory."""
    chips = np.array([types.SimpleNamespace(platform="tpu")])
    mesh = types.SimpleNamespace(devices=chips, shape={"data": 2, "fsdp": 1, "context": 4, "tensor": 1})
    programs = Programs(tiny.dit, tiny.vae, tiny.text, mesh, Rules())
    assert [programs.ways(clips) for clips in (1, 2)] == [4, 8]
    chips[0].platform = "cpu"
    assert programs.ways(2) == 1


def test_a_mode_can_be_named():
    assert choose(BOARD, 1441, *BOARD_SIZE, None, "single").stretch is None
    assert choose(BOARD, 65, *BOARD_SIZE, None, "single", rope="ntk").stretch.method == "ntk"
    assert choose(BOARD, 33, *BOARD_SIZE, None, "single", rope="ntk").stretch is None
    plan = choose(BOARD, 65, *BOARD_SIZE, None, "window", window=9, overlap=4)
    assert (plan.window, plan.overlap) == (9, 4)
    assert choose(BOARD, 65, *BOARD_SIZE, None, "extend", overlap=1).overlap == 2


@pytest.mark.parametrize(
    "model, given, message",
    [
        (WAN, {"asked": "extend"}, "not trained to go on from a tail. Use window or single"),
        (BOARD, {"asked": "longer"}, "single, window, extend, auto"),
        (BOARD, {"rope": "yarn"}, "riflex, ntk"),
        (BOARD, {"asked": "window", "window": 2}, "at least 3"),
        (BOARD, {"asked": "window", "overlap": 5}, "share 0 to 4"),
    ],
)
def test_what_cannot_be_is_told(model, given, message):
    with pytest.raises(BadInput, match=message):
        choose(model, 65, *BOARD_SIZE, None, **given)


def test_memory_grows_with_length_and_guidance():
    board = [pass_bytes(BOARD.dit, slots, 8, 8) for slots in (5, 9, 91)]
    assert board == sorted(board)
    assert pass_bytes(BOARD.dit, 91, 8, 8, guided=False) < board[-1]
    # attention in chunks is linear in the tokens
    chunked = replace(BOARD.dit, attention="chunked")
    a, b, c = (pass_bytes(chunked, n, 64, 64) for n in (10, 20, 30))
    assert c - b == b - a
