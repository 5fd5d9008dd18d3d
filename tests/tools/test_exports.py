"""What is exported gives the same frames in other runtimes: what was measured, and models of Wan's structures in
diffusers."""

import json

import pytest


def test_what_is_stored_is_near(checkout):
    """In every runtime; sixteen prompts of the weights on board."""
    for file in sorted((checkout / "tools" / "results").glob("exports*.json")):
        data = json.loads(file.read_text())
        share = data["columns"].index("pixels within 2/255 of generate's")
        assert data["rows"]
        assert all(float(row[share].removesuffix(" %")) >= 99.9 for row in data["rows"]), file
    onboard = json.loads((checkout / "tools" / "results" / "exports.json").read_text())["rows"]
    assert {(row[0], row[1]) for row in onboard} == {("stablehlo", 16), ("onnx", 16)}


def test_what_is_stored_says_how_it_is_made_again(load, checkout, monkeypatch, tmp_path):
    """Interpreters as placeholders: they are asked for."""
    tool, seen = load("exports.py"), []
    monkeypatch.setitem(tool["main"].__globals__, "rows", lambda *_: [["onnx", 2, "100.000 %", 0, 2, 1.0, 1.0]])
    monkeypatch.setattr("measure.store", lambda name, folder, **data: seen.append((name, folder, data["made_by"])))
    results = checkout / "tools" / "results"
    for given in ("--count 2 --onnx PYTHON", "--model a --count 3 --stablehlo PYTHON --onnx PYTHON --converter PYTHON"):
        for more, folder in (([], results), (["--out", str(tmp_path)], tmp_path)):
            with pytest.raises(SystemExit, match="0"):
                tool["main"]([*given.replace("PYTHON", "env/bin/python").split(), *more])
            assert seen.pop() == ("exports", folder, f"python tools/exports.py {given}")


def test_an_interpreter_that_has_this_package_proves_nothing(load, tmp_path):
    """Whether it has it is asked of the interpreter itself, in a folder of its own."""
    check = load("exports.py")["without_this_package"]
    for name, code in (("with", 0), ("without", 1)):
        python = tmp_path / name
        python.write_text(f'#!/bin/sh\n[ ! -e dit_video ] && [ -z "$PYTHONPATH" ] && exit {code}\n')
        python.chmod(0o755)
    check(str(tmp_path / "without"))
    with pytest.raises(SystemExit, match="has dit_video"):
        check(str(tmp_path / "with"))


@pytest.mark.parity
@pytest.mark.parametrize("variant", ["t2v", "ti2v", "t2v_a14b"])
def test_a_small_wan_in_diffusers(load, variant, tmp_path):
    """Frames of random weights that have all greys in them."""
    for package in ("torch", "diffusers", "transformers"):
        pytest.importorskip(package)
    tool = load("exports.py")
    model = tool["small"](variant, tmp_path / "model")
    ((ours, theirs),) = load("same_frames.py")["pairs"](str(model), ["a red circle moves right"], tmp_path / "again")
    assert ours.shape == (13, 48, 32, 3)
    assert 20 < ours.std() < 60
    clips, near, most, _ = tool["judged"]([theirs], [ours])
    assert (clips, near) == (1, "100.000 %"), most
