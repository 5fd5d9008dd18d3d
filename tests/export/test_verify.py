"""An export is run as its user would, and what it makes is compared."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from dit_video.core.errors import BadInput, DitVideoError
from dit_video.export.folder import save_manifest
from dit_video.export.verify import compare, run_export, verify
from dit_video.weights.find import verify_files

RUN = """\
import argparse, pathlib, sys
import numpy as np
assert "dit_video" not in sys.modules
parser = argparse.ArgumentParser()
for name in ("output", "seed", "num_frames", "height", "width"):
    parser.add_argument("--" + name)
parser.add_argument("--prompt", nargs="+")
args = parser.parse_args()
path = pathlib.Path(args.output)
for i, prompt in enumerate(args.prompt):
    if prompt == "fail":
        sys.exit("no such prompt")
    size = (int(args.num_frames), int(args.height), int(args.width), 3)
    frames = np.full(size, len(prompt) + int(args.seed), np.uint8)
    np.save(path if len(args.prompt) == 1 else path.with_stem(f"{path.stem}_{i}"), frames)
"""


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.py").write_text(RUN)
    save_manifest(tmp_path / "out", {"format": "stablehlo", "measured": None})
    return tmp_path / "out"


def reference(off):
    return lambda prompts, seed: [np.full((5, 4, 6, 3), len(prompt) + seed + off, np.uint8) for prompt in prompts]


def test_what_was_measured_stands_in_the_manifest(out):
    measured = verify(out, sys.executable, reference(2), (5, 4, 6), ("a", "abc"), seed=4)
    assert measured["pixels_within_2_of_255"] == 1.0 and measured["largest_difference"] == 2
    assert measured["clips"] == 2 and measured["frames"] == 10 and measured["identical_clips"] == 0
    assert json.loads((out / "manifest.json").read_text())["measured"] == measured
    assert verify_files(out)


def test_frames_too_far_away(out):
    with pytest.raises(DitVideoError, match=r"0\.00 % of the pixels .* not to be trusted"):
        verify(out, sys.executable, reference(3), (5, 4, 6), ("a",))
    assert json.loads((out / "manifest.json").read_text())["measured"]["largest_difference"] == 3


def test_a_damaged_file_is_not_run(out):
    (out / "run.py").write_text(RUN + "\n")
    with pytest.raises(BadInput, match=r"run\.py not as written"):
        verify(out, sys.executable, reference(0), (5, 4, 6))


def test_last_words(out):
    with pytest.raises(DitVideoError, match=r"(?s)failed in .*no such prompt"):
        run_export(sys.executable, out, ["fail"], 0, ["--num_frames=5", "--height=4", "--width=6"])


def test_a_folder_and_an_interpreter_relative_to_here(out, monkeypatch):
    monkeypatch.chdir(out.parent)
    sizes = ["--num_frames=5", "--height=4", "--width=6"]
    assert run_export(os.path.relpath(sys.executable), Path("out"), ["abc"], 0, sizes)[0].max() == 3


def test_one_colour_apart_is_a_pixel_apart():
    black = np.zeros((1, 10, 10, 3), np.uint8)
    other = black.copy()
    other[0, 0, 0, 1] = 3
    assert compare([other], [black])["pixels_within_2_of_255"] == 0.99
