"""The notebook's kernel computes nothing: a TPU serves one process at a time, and its commands are processes."""

import ast
import subprocess
import sys
from importlib import metadata

import pytest


@pytest.fixture(scope="module")
def cells(checkout):
    """The code of each cell."""
    parts = (checkout / "experiments" / "colab_demo.py").read_text(encoding="utf-8").split("\n# %%")
    return [part for part in parts[1:] if not part.startswith(" [markdown]")]


def test_what_the_kernel_imports_takes_no_device(cells):
    """No JAX among it, so that none is held while commands run."""
    imports = [
        ast.unparse(node)
        for cell in cells
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Import | ast.ImportFrom) and "IPython" not in ast.unparse(node)
    ]
    assert any("dit_video" in line for line in imports)
    code = "\n".join([*imports, "print('jax' in sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not any("VideoPipeline" in cell for cell in cells)


def test_memory_is_not_taken_ahead(cells):
    """Said before the first command is run."""
    before, said, _ = "\n".join(cells).partition('os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"')
    assert said and "shell(" not in before and "jax" not in before


@pytest.mark.parametrize("device, wanted", [("CPU", "cpu"), ("T4", "gpu"), ("TPU", "tpu")])
def test_doctor_looks_for_what_was_chosen(cells, device, wanted):
    """A GPU that the notebook is not to use, and that JAX does not see, is no reason to stop."""
    (cell,) = (cell for cell in cells if "dit-video doctor" in cell)
    said = []
    exec(cell, {"DEVICE": device, "shell": said.append})
    assert said == [f"dit-video doctor --device {wanted}"]


def test_a_checkout_is_no_installation(cells, monkeypatch):
    """What lies in the folder can be imported, and its dependencies may be missing."""
    (cell,) = (cell for cell in cells if "def installed" in cell)
    (function,) = (
        node for node in ast.parse(cell).body if isinstance(node, ast.FunctionDef) and node.name == "installed"
    )
    there = {"metadata": metadata}
    exec(ast.unparse(function), there)
    assert there["installed"]("jax") and not there["installed"]("no-such-distribution")
    assert 'if not installed("dit_video")' in cell and 'find_spec("dit_video")' not in cell
