"""Overrides are typed, unknown fields are named with a suggestion, and plain data comes back as the same config."""

import json
from dataclasses import dataclass, field

import pytest

from dit_video.core import config
from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape, Rules


@dataclass(frozen=True)
class Inner:
    depth: int = 2
    rate: float = 1e-3


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None
    flag: bool = False
    more: Inner | None = Inner()
    later: Inner | None = None
    axes: str | tuple[str, ...] | None = "data"
    pairs: tuple[tuple[str, float], ...] = ()


def test_override_parses_by_annotation():
    out = config.override(
        Outer(), {"inner.depth": "7", "inner.rate": "2e-4", "sizes": "3,4,5", "name": "x", "flag": "true"}
    )
    assert out == Outer(Inner(7, 2e-4), (3, 4, 5), "x", True)
    assert config.override(out, {"name": "none"}).name is None
    assert config.override(out, {"more": "none"}).more is None
    assert config.override(out, {"axes": "fsdp"}).axes == "fsdp"
    assert config.override(out, {"axes": "data,fsdp"}).axes == ("data", "fsdp")
    assert config.override(out, {"pairs": "star=1.5, spins=2"}).pairs == (("star", 1.5), ("spins", 2.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inner.dept": "3"}, "inner.depth"),
        ({"depth": "3"}, "inner.depth"),
        ({"inner.depth": "three"}, "whole number"),
        ({"inner": "3"}, "group of fields"),
        ({"inner": "none"}, "group of fields"),
        ({"more": "3"}, "group of fields"),
        ({"flag": "maybe"}, "true or false"),
        ({"pairs": "star"}, "wants 2 values"),
        ({"pairs": "star=much"}, "a number"),
        ({"later.depth": "3"}, "later.depth: later is none here"),
    ],
)
def test_bad_override_says_what_to_do(change, words):
    with pytest.raises(BadInput, match=words):
        config.override(Outer(), change)


def test_plain_data_and_back():
    cfg = (MeshShape(fsdp=2), Rules(batch="data"))
    assert config.from_dict(json.loads(json.dumps(config.to_dict(cfg)))) == cfg
    assert config.digest(cfg[0]) == config.digest(MeshShape(fsdp=2)) != config.digest(MeshShape())
    assert config.diff(MeshShape(), MeshShape(tensor=4)) == ["tensor: 1 -> 4"]


def test_from_dict_refuses_foreign_classes_and_unknown_fields():
    with pytest.raises(BadInput, match="only classes of dit_video"):
        config.from_dict({"class": "os:system"})
    with pytest.raises(BadInput, match="no field wings"):
        config.from_dict({"class": "dit_video.core.mesh:MeshShape", "wings": 2})


def test_experiment_by_path_and_a_missing_one(tmp_path):
    (tmp_path / "mine.py").write_text("EXPERIMENT = 42\n")
    assert config.load_experiment(str(tmp_path / "mine.py")) == 42
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(BadInput, match="no EXPERIMENT"):
        config.load_experiment(str(tmp_path / "empty.py"))
    with pytest.raises(BadInput, match="toyworld"):
        config.load_experiment("toywrld")
