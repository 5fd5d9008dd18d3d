"""The average of two models' weights."""

import runpy
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from dit_video.weights.folder import load_model, save_model


def test_weights_are_averaged_and_the_rest_is_the_firsts(checkout, tiny, tmp_path, monkeypatch, capsys):
    double = {name: jax.tree.map(lambda x: 2 * x, tiny.params[name]) for name in ("dit", "text", "vae")}
    save_model(tiny, tmp_path / "a")
    save_model(replace(tiny, params=tiny.params | double, dit=replace(tiny.dit, remat="block")), tmp_path / "b")
    tool = runpy.run_path(str(checkout / "tools" / "average.py"))
    models = [str(tmp_path / name) for name in ("a", "b", "out")]
    monkeypatch.setattr(sys, "argv", ["average.py", *models, "--share", "0.25"])
    tool["main"]()
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    made = load_model(tmp_path / "out")
    for name, times in (("dit", 1.25), ("text", 1.25), ("vae", 1.0)):
        for have, want in zip(jax.tree.leaves(made.params[name]), jax.tree.leaves(tiny.params[name]), strict=True):
            np.testing.assert_allclose(have, times * want, rtol=2e-3, atol=1e-4)
    assert (made.dit, made.defaults) == (tiny.dit, tiny.defaults)

    save_model(replace(tiny, text=replace(tiny.text, eps=1e-5)), tmp_path / "b", force=True)
    with pytest.raises(SystemExit, match="are of other sizes"):
        tool["main"]()
