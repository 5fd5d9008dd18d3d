"""Weights that are placed when they are first used, and let go when a run is done with them."""

import numpy as np
import pytest

from dit_video.generate import held
from dit_video.generate.held import Held
from dit_video.weights.place import numbers

SOURCE = {part: {"kernel": np.zeros((size, 10), np.float32)} for part, size in
          {"text": 50, "dit": 40, "dit_2": 40, "vae": 5}.items()}  # fmt: skip


@pytest.fixture
def made():
    """Makes one with `room` bytes for weights; `calls` are the parts that were placed, in order."""

    def make(room):
        calls = []

        def put(part):
            calls.append(part)
            return SOURCE[part]

        sizes = {part: 4 * numbers(tree) for part, tree in SOURCE.items()}
        weights = Held(put, sizes, lambda: room and room - sum(weights.bytes[part] for part in weights.placed))
        return weights, calls

    return make


def test_small_models_are_there_from_the_start(made):
    weights, calls = made(None)
    assert calls == ["text", "dit", "dit_2", "vae"]
    weights.let_go("text")
    weights["text"]
    assert calls == ["text", "dit", "dit_2", "vae"]


def test_large_ones_come_when_they_are_used_and_the_text_encoder_goes(made, monkeypatch):
    monkeypatch.setattr(held, "LARGE", 1000)
    weights, calls = made(8000)
    assert calls == []
    assert weights.to_come == 1600 + 200
    assert weights["text"] is SOURCE["text"]
    weights.let_go("text")
    weights.let_go("vae")
    assert [*weights.placed] == []
    weights["dit"], weights["vae"], weights["dit"]
    assert calls == ["text", "dit", "vae"]
    assert weights.to_come == 0
    weights["text"]  # once more, for another prompt
    assert calls[-1] == "text"


@pytest.mark.parametrize("room, stays", [(4000, True), (3000, False), (None, True)])
def test_the_second_denoiser_takes_the_firsts_place_where_there_is_no_room(made, monkeypatch, room, stays):
    monkeypatch.setattr(held, "LARGE", 1000)
    weights, _ = made(room)
    weights["dit"]
    assert weights.with_room("dit_2") is SOURCE["dit_2"]
    assert ("dit" in weights.placed) == stays
    assert weights.to_come == (200 if room else 0)


@pytest.mark.parametrize(
    "room, stay", [(5400, ["dit", "dit_2", "vae"]), (4000, ["dit_2", "vae"]), (2300, ["vae"]), (None, None)]
)
def test_denoisers_make_room_for_a_text_encoder_that_comes_again(made, monkeypatch, room, stay):
    """One after the other, and no more than it takes; the VAE stays."""
    monkeypatch.setattr(held, "LARGE", 1000)
    weights, calls = made(room)
    for part in ("dit", "dit_2", "vae"):
        weights[part]
    assert weights.with_room("text") is SOURCE["text"]
    assert sorted(weights.placed) == sorted(["text", *(stay or ["dit", "dit_2", "vae"])])
    weights.let_go("text")
    assert weights.with_room("dit") is SOURCE["dit"]
    assert calls.count("dit") == (1 if stay is None or "dit" in stay else 2)


def test_what_is_broken_is_named(made):
    weights, _ = made(None)
    assert weights.broken() == []
    weights.placed["vae"] = {"kernel": np.array([1.0, np.nan])}
    assert weights.broken() == ["vae"]
