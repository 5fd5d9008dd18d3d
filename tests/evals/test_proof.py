"""The judge is proven before it is used: right on renders of known scenes in every size, wrong about what is no clip.

All here is slow, and on scenes that nobody looked at while the judge was made. The default suite has the same on fewer
clips (test_measure.py).
"""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from dit_video.cli.eval import Maker
from dit_video.evals.measure import measure
from dit_video.evals.prompts import suite
from dit_video.evals.references import frozen
from dit_video.evals.score import ATTRIBUTES, floor, mark, means
from tests.evals.conftest import rendered

pytestmark = pytest.mark.slow
SEED = 55501
MOTION = ("motion", "direction", "speed")


def known(count, frames=17, height=64, width=64, seed=SEED):
    """Prompts over the whole world, and renders of them."""
    asked = suite(count, "world", height, width, seed=seed)
    return asked, rendered([one.scene for one in asked], frames, height, width)


def shares(asked, clips):
    return means([mark(measure(clip), one) for clip, one in zip(clips, asked, strict=True)])


def mistakes(asked, clips):
    """(prompt, what is wrong) of each clip that is not all right, for the message of a failure."""
    out = []
    for one, clip in zip(asked, clips, strict=True):
        reading = measure(clip)
        wrong = [name for name, each in mark(reading, one).items() if not all(ok for _, ok in each)]
        out += [(one.prompt, wrong, reading.reason)] if wrong else []
    return out


@pytest.mark.parametrize("height, width", [(64, 64), (80, 48), (48, 80)])
def test_right_on_renders_in_every_size(height, width):
    """At least 99.5 % of every attribute, in clips of 17 and of 33 frames together."""
    seeds = (SEED + height, SEED + width + 1)
    both = [known(110, frames, height, width, seed) for frames, seed in zip((17, 33), seeds, strict=True)]
    marks = [mark(measure(clip), one) for asked, clips in both for one, clip in zip(asked, clips, strict=True)]
    share = means(marks)
    low = {name: share[name] for name in (*ATTRIBUTES, "permanence", "identity", "dynamic") if share[name] < 0.995}
    assert not low, [mistakes(asked, clips) for asked, clips in both]


def soft(clip, rng):
    """About what a good autoencoder leaves: edges a little blurred, a little noise."""
    x = ndimage.gaussian_filter(clip.astype(np.float32), (0.1, 0.45, 0.45, 0))
    return np.clip(np.round(x + rng.normal(0, 2.5, x.shape)), 0, 255).astype(np.uint8)


def test_right_after_a_good_autoencoder():
    asked, clips = known(150, seed=SEED + 1)
    rng = np.random.default_rng(SEED)
    spoilt = [soft(clip, rng) for clip in clips]
    share = shares(asked, spoilt)
    assert not {name: share[name] for name in ATTRIBUTES if share[name] < 0.99}, mistakes(asked, spoilt)


def through_the_autoencoder(asked):
    """Renders of these prompts, encoded and decoded with the weights on board."""
    clips = rendered([one.scene for one in asked])
    maker = Maker(None, SimpleNamespace(mesh=None, dtype="auto", quiet=True))
    back = np.concatenate([maker.reconstruct(clips[i : i + 8]) for i in range(0, len(clips), 8)])
    assert (back != clips).any()
    return back


@pytest.fixture(scope="module")
def world_after_the_autoencoder():
    asked = suite(64, "world", seed=SEED + 4)
    return shares(asked, through_the_autoencoder(asked))


# In per cent, 2026-11-22, of 64 clips of which 58 can be read. Most of the clips that fail have a small object.
TODAY = {"colour": 88, "shape": 73, "size": 88, "motion": 84, "direction": 93, "speed": 81, "turn": 33, "count": 88,
         "background": 91, "light": 91, "camera": 91}  # fmt: skip


def today(name):
    """An attribute that is not read as asked yet. An error elsewhere is no expected failure."""
    low = pytest.mark.xfail(strict=True, raises=AssertionError, reason=f"{TODAY[name]} %")
    return pytest.param(name, marks=[low])


@pytest.mark.parametrize("name", [today(name) if name in TODAY else name for name in ATTRIBUTES])
def test_right_in_the_whole_world_after_the_autoencoder_on_board(world_after_the_autoencoder, name):
    """Asked: 99 % of every attribute. None is reached with this autoencoder."""
    assert world_after_the_autoencoder[name] >= 0.99


def test_right_after_the_autoencoder_on_board():
    """What holds of 40 plain renders: 99 % of every attribute here, but for the motion of one that bounces (97.5 %),
    which 40 clips do not tell from 99 %."""
    asked = suite(40, "plain", seed=SEED + 4)
    back = through_the_autoencoder(asked)
    share = shares(asked, back)
    low = {name: share[name] for name in ("colour", "shape", "direction", "background") if share[name] < 0.99}
    assert not low and min(share["motion"], share["main"]) >= 0.95, mistakes(asked, back)


def test_floors():
    """Foreign prompts: chance. A frozen clip: no motion, the rest untouched. Frames in random order, or the first half
    twice: no motion."""
    asked, clips = known(100, seed=SEED + 2)
    readings = [measure(clip) for clip in clips]
    chance = floor(readings, asked)
    assert chance["all"] == 0 and chance["main"] < 0.03
    for name, values in (("colour", 8), ("shape", 5), ("size", 3), ("light", 3), ("background", 7)):
        assert chance[name] < 1 / values + 0.08, name
    moving = [i for i, one in enumerate(asked) if all(w["motion"] != "still" for w in one.objects)]
    some = [asked[i] for i in moving]
    still = shares(some, frozen(clips[moving]))
    assert max(still[name] for name in MOTION) <= 0.02 and still["dynamic"] <= 0.02
    assert min(still[name] for name in ("colour", "shape", "background")) >= 0.98
    rng = np.random.default_rng(SEED)
    shuffled = shares(some, [clips[i][rng.permutation(17)] for i in moving])
    assert max(shuffled[name] for name in MOTION) <= 0.08
    straight = [i for i in moving if all(w["motion"] in ("moves", "grows", "shrinks") for w in asked[i].objects)]
    looped = shares([asked[i] for i in straight], [clips[i][[*range(9), *range(8)]] for i in straight])
    assert looped["motion"] <= 0.1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda clip, level, rng: ndimage.gaussian_filter(clip, (0, 5 * level, 5 * level, 0)),
        lambda clip, level, rng: clip * (1 - 0.8 * level),
        lambda clip, level, rng: clip + rng.normal(0, 120 * level, clip.shape),
    ],
    ids=["blurred", "darkened", "noisy"],
)
def test_worse_clips_never_score_better(spoil):
    asked, clips = known(40, seed=SEED + 3)
    rng, scores = np.random.default_rng(SEED), []
    for level in (0.0, 0.25, 0.5, 1.0):
        worse = [np.clip(np.round(spoil(clip.astype(np.float32), level, rng)), 0, 255) for clip in clips]
        scores.append(shares(asked, [clip.astype(np.uint8) for clip in worse])["all"])
    assert scores[0] >= 0.975
    assert all(after <= before + 0.025 for before, after in pairwise(scores)), scores
    assert scores[-1] <= 0.25, scores
