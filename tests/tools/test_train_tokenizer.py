"""The script that trains the small tokenizer: whole words for captions, spelling for the rest, the same bytes again."""

import runpy

import numpy as np
import pytest

from dit_video.data.toyworld.captions import caption
from dit_video.data.toyworld.splits import sample_scene
from dit_video.models.tokenizer import UNKNOWN, train


@pytest.fixture(scope="module")
def script():
    from pathlib import Path

    return runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools/train_tokenizer.py"))


@pytest.fixture(scope="module")
def tokenizer(script):
    return train(script["corpus"](500, seed=0), 768)


def test_the_words_of_captions_are_whole(script, tokenizer):
    words = script["grammar_words"]()
    assert {"red", "circle", "crimson", "anticlockwise", "handheld", "bouncing"} <= words
    split = [word for word in words if len(tokenizer.pieces(word)) > 1]
    assert len(split) < 0.05 * len(words), split


def test_captions_never_seen_are_short_and_known(tokenizer):
    rng = np.random.default_rng(9)
    captions = [caption(sample_scene(rng, split="any"), rng, "heldout") for _ in range(60)]
    ids, length, _ = tokenizer.encode(captions)
    assert UNKNOWN not in ids
    assert length.mean() < 20
    unseen = tokenizer.pieces("an astronaut rides a horse")
    assert len(unseen) < 14  # a few pieces a word, not letters
