"""The notebook: it is its text, and (slow) it runs from top to bottom and shows videos that play."""

import ast
import base64
import importlib.util
import json
import re
import shutil
import time
import tomllib

import numpy as np
import pytest

from dit_video.core.config import packaged_experiments
from dit_video.data.video import read_video

MINUTES = 6  # on two cores

# In the page: every video is waited for until it has gone on by a third of a second; then a frame of it is looked at.
PLAY = """
const done = arguments[arguments.length - 1];
Promise.all([...document.querySelectorAll("video")].map(async video => {
  const began = performance.now();
  await video.play();
  while (video.currentTime < 0.3 && performance.now() - began < 20000) await new Promise(go => setTimeout(go, 50));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const paint = canvas.getContext("2d");
  paint.drawImage(video, 0, 0);
  return {time: video.currentTime, light: Math.max(...paint.getImageData(0, 0, canvas.width, canvas.height).data
                                                     .filter((_, i) => i % 4 < 3))};
})).then(done, error => done(String(error)));
"""


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


@pytest.fixture(scope="module")
def executed(checkout, tmp_path_factory):
    """The notebook with its outputs, and the seconds it took; without an index to install from and without a Hub."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(checkout / "experiments" / "colab_demo.ipynb", as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}.items():
            patch.setenv(name, value)
        began = time.monotonic()
        nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook, time.monotonic() - began


def shows(cell):
    """Does a cell show videos? That of the public weights is switched off."""
    return cell.cell_type == "code" and re.search(r"^ *show\(", cell.source, re.M) and "WAN = False" not in cell.source


@pytest.mark.slow
def test_it_runs_and_shows_videos(executed, tmp_path):
    notebook, spent = executed
    shown = 0
    for cell in filter(shows, notebook.cells):
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


@pytest.mark.slow
def test_its_videos_play_in_a_browser(executed, tmp_path):
    """Headless Chromium opens what each cell put out: time goes on in every video, and it is not black."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if browser is None or driver is None:
        pytest.skip("not installed: apt-get install chromium chromium-driver")
    outputs = [output.get("data", {}) for cell in filter(shows, executed[0].cells) for output in cell.outputs]
    page = tmp_path / "shown.html"
    page.write_text("<!doctype html>" + "".join(data.get("text/html", "") for data in outputs), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as window:
        window.set_script_timeout(60)
        window.get(page.as_uri())
        seen = window.execute_async_script(PLAY)
    assert len(seen) >= 10
    assert all(video["time"] > 0.2 and video["light"] > 100 for video in seen), seen
