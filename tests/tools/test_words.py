"""What a word is worth: nothing to a denoiser that is told nothing."""

from dataclasses import replace

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module")
def tool(load):
    return load("words.py")


@pytest.fixture(scope="module")
def model(tiny):
    return replace(tiny, defaults=replace(tiny.defaults, num_frames=5, height=32, width=32))


def test_each_value_is_said_of_each_other(tool, model):
    found = tool["growth"](model, "motion", ("still", "spins"), 2)
    assert {shown: [*others] for shown, others in found.items()} == {"still": ["spins"], "spins": ["still"]}
    assert all(value != 0 for others in found.values() for value in others.values())


def test_a_word_that_is_not_heard_costs_nothing(tool, model):
    deaf = jax.tree.map(np.zeros_like, model.params["text"])
    found = tool["growth"](replace(model, params={**model.params, "text": deaf}), "shape", ("circle", "square"), 2)
    assert found == {"circle": {"square": 0.0}, "square": {"circle": 0.0}}


def test_what_is_said(tool):
    assert tool["said"]({"colour": "red", "shape": "star", "motion": "moves"}) == "a red star moves right"
    assert tool["said"]({"colour": "red", "shape": "star", "motion": "spins"}) == "a red star spins"
