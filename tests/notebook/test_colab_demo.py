"""The notebook: it is its text, and (slow) it runs from top to bottom and shows videos that play."""

import ast
import base64
import importlib.util
import json
import re
import time
import tomllib

import numpy as np
import pytest

from dit_video.core.config import packaged_experiments
from dit_video.data.video import read_video

MINUTES = 6  # on two cores


@pytest.fixture(scope="module")
def text(checkout):
    return (checkout / "experiments" / "colab_demo.py").read_text(encoding="utf-8")


def test_the_notebook_is_its_text(checkout, text):
    path = checkout / "tools" / "notebook.py"
    spec = importlib.util.spec_from_file_location("tools_notebook", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert (checkout / "experiments" / "colab_demo.ipynb").read_text(encoding="utf-8") == tool.notebook(text)
    cells = tool.cells(text)
    assert [cell["cell_type"] for cell in cells[:3]] == ["markdown", "markdown", "code"]
    for cell in cells:
        source = "".join(cell["source"])
        assert source and "# %%" not in source
        if cell["cell_type"] == "code":
            ast.parse(source)
        else:
            assert '"""' not in source


def test_one_switch_and_no_experiment(text):
    assert text.count('DEVICE = "CPU"  # @param ["CPU", "T4", "TPU"]') == 1
    assert "colab_demo" not in packaged_experiments()


def test_the_address_is_the_projects(checkout, text):
    """Where the project has no public address, neither has the notebook."""
    urls = tomllib.loads((checkout / "pyproject.toml").read_text())["project"].get("urls", {})
    address = re.search(r'^ADDRESS = "(.*)"', text, re.MULTILINE)[1]
    assert bool(address) == bool(urls) and all(url in address for url in list(urls.values())[:1])


@pytest.mark.slow
def test_it_runs_and_shows_videos(checkout, tmp_path, monkeypatch):
    """Without an index to install from and without a Hub."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, value in {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(checkout / "experiments" / "colab_demo.ipynb", as_version=4)
    began = time.monotonic()
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    spent = time.monotonic() - began
    showing = [
        cell for cell in notebook.cells if cell.cell_type == "code" and re.search(r"^ *show\(", cell.source, re.M)
    ]
    shown = 0
    for cell in showing:
        if "WAN = False" in cell.source:
            continue
        videos = re.findall(r"data:video/mp4;base64,([\w+/=\s]+)", json.dumps(cell.outputs).replace("\\n", ""))
        assert videos, f"no video in the output of\n{cell.source}"
        for number, video in enumerate(videos):
            path = tmp_path / f"shown_{shown}_{number}.mp4"
            path.write_bytes(base64.b64decode(video))
            footage = read_video(path)
            assert len(footage.frames) > 1 and footage.frames.max() > 100
            assert np.ptp(footage.frames.astype(int), axis=0).max() > 20, "it does not move"
        shown += len(videos)
    assert shown >= 10
    assert spent < MINUTES * 60, f"{spent:.0f} s"
