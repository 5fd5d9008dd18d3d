"""The distance between distributions: its mathematics against a plain double loop, and what it is large for."""

from hashlib import sha256

import numpy as np
import pytest

from dit_video.evals.distribution import difference, distance, mmd
from dit_video.evals.features import FEATURES, convolutions, features
from dit_video.evals.features import frozen as network
from dit_video.evals.references import frozen


def test_mmd_is_that_of_a_double_loop(rng):
    """Float64, one pair of rows at a time, by the definition."""
    x, y = rng.normal(size=(7, 5)), rng.normal(size=(9, 5)) + 0.4

    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / 5 + 1) ** 3

    within = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    across = np.mean([k(a, b) for a in x for b in y])
    assert mmd(x, y) == pytest.approx(within[0] + within[1] - 2 * across, rel=1e-12)
    assert mmd(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(mmd(x, y), rel=1e-5)
    with pytest.raises(ValueError, match="two rows"):
        mmd(x[:1], y)


def test_mmd_is_unbiased(rng):
    """Around zero for one distribution, and what theory says for two: of (xy + 1)^3 the squared distance is that of the
    first three moments, with weights 3, 3, 1."""
    same = [mmd(rng.normal(size=(20, 1)), rng.normal(size=(20, 1))) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20
    apart = [mmd(rng.normal(size=(40, 1)), rng.normal(size=(40, 1)) + 0.5) for _ in range(400)]
    first, second, third = 0.5**2, 0.25**2, (3 * 0.5 + 0.125) ** 2
    assert np.mean(apart) == pytest.approx(3 * first + 3 * second + third, abs=4 * np.std(apart) / 20)


def test_two_clips_that_cannot_be_read_do_not_outweigh_all_others(rng):
    """Nor does it matter whether a render is among those that cannot be read."""
    flags = lambda n, bad: np.concatenate([np.eye(n)[:, :bad].sum(1, keepdims=True), rng.normal(size=(n, 9))], 1)  # noqa: E731
    reference, found = flags(400, 0), flags(400, 24)
    alone = distance(flags(400, 2), reference, least=0.3)["value"]
    assert abs(alone) < 0.05
    assert distance(found, flags(400, 1), least=0.3)["value"] == pytest.approx(
        distance(found, reference, least=0.3)["value"], abs=0.1
    )


def test_distance_does_not_care_for_units(rng):
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 4)) + 0.3
    scale = np.array([1.0, 7.0, 40.0, 3.0])
    assert distance(x, y)["value"] == pytest.approx(distance(x * scale, y * scale)["value"], rel=0.05)
    assert distance(x, y)["low"] < distance(x, y)["value"] < distance(x, y)["high"]


def test_the_difference_of_two_models_is_surer_than_their_distances(rng):
    """Halves of both are the same clips, so that what they have in common is in no difference."""
    reference, same = rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    ours, theirs = {"features": (same + 0.6, reference)}, {"features": (same + 0.3, reference)}
    gain, alone = difference(ours, theirs)["features"], distance(same + 0.6, reference)
    assert gain["value"] == pytest.approx(alone["value"] - distance(same + 0.3, reference)["value"], abs=2e-4)
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert gain["high"] - gain["low"] < alone["high"] - alone["low"]
    assert set(difference(ours, ours)["features"].values()) == {0.0, 60}


def test_the_frozen_network_is_frozen():
    """Distances of another day were measured with these weights."""
    weights, seen = network(), sha256()
    for name in sorted(weights):
        seen.update(name.encode() + np.ascontiguousarray(weights[name], "<f4").tobytes())
    assert seen.hexdigest() == "cf37429a1f70563fff4ee8227522bf064a821505caa45e272b61cb1237ef6e8c"
    assert all((weights[name] == value).all() for name, value in convolutions().items())


def test_features_are_fixed_and_see_colours_and_motion(clips):
    seen = features(clips)
    assert seen.shape == (42, FEATURES)
    np.testing.assert_allclose(features(clips[:3]), seen[:3], atol=1e-5)
    half, other = seen[::2], seen[1::2]
    apart = distance(half, other)["value"]
    assert distance(features(clips[::2][..., ::-1]), other)["value"] > apart  # red for blue
    assert distance(features(frozen(clips[::2])), other)["value"] > apart
    assert distance(features(np.full_like(clips[::2], 128)), other)["value"] > apart + 0.3
