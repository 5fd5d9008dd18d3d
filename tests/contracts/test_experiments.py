"""Every experiment is a frozen constant that survives a round trip, can be overridden, and traces on its own mesh."""

import dataclasses

import pytest

from dit_video.core import config

NAMES = sorted(config.packaged_experiments())


@pytest.fixture(params=NAMES)
def experiment(request):
    return config.load_experiment(request.param)


def test_there_are_some():
    assert "toyworld" in NAMES


def test_is_frozen_and_hashable(experiment):
    assert dataclasses.is_dataclass(experiment)
    assert hash(experiment) == hash(dataclasses.replace(experiment))
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.seed = 1


def test_survives_being_written_down(experiment):
    again = config.from_dict(config.to_dict(experiment))
    assert again == experiment
    assert config.digest(again) == config.digest(experiment)


def test_steps_and_seed_can_be_given(experiment):
    changed = config.override(experiment, {"steps": "7", "seed": "3"})
    assert (changed.steps, changed.seed) == (7, 3)
    assert sorted(line.partition(":")[0] for line in config.diff(experiment, changed)) == ["seed", "steps"]


@pytest.mark.parametrize("name", NAMES)
def test_docstring_gives_the_command(name):
    import ast

    path = config.packaged_experiments()[name]
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"dit-video train experiments/{name}.py" in text or f"dit-video train {name}" in text, text
