"""Ten videos of the weights on board, each asked for in another way: another process makes the same frames of what
their files say."""

import json
import os
import subprocess
import sys

import pytest

# One process for all calls of a verb: what it costs is the start.
LINES = """\
import json, sys
from dit_video.cli.main import main
codes = [main(line) for line in json.loads(sys.argv[1])]
sys.exit(f"{codes} were the exit codes" if any(codes) else 0)
"""
FEW = ["--num_inference_steps", "2", "--seed"]
CALLS = [
    ["a blue star", "a green ring bounces", *FEW, "1", "--output", "pair.mp4"],
    ["a pink triangle spins", *FEW, "2", "--num_frames", "1", "--output", "still.png"],
    ["a pink triangle moves left", *FEW, "3", "--image", "still.png", "--num_frames", "9", "--output", "moved.mp4"],
    ["a yellow square grows", *FEW, "4", "--aspect", "9:16", "--num_frames", "5", "--output", "tall.gif"],
    ["a white ring moves up", *FEW, "5", "--num_frames", "33", "--long", "window", "--window", "3",
     "--output", "long.mp4"],
    ["a red circle moves right", *FEW, "6", "--extend", "moved.mp4", "--num_frames", "9", "--output", "on.mp4"],
    ["a red circle", *FEW, "7", "--solver", "heun", "--guidance_scale", "1", "--output", "plain.mp4"],
    ["a purple star", "--num_inference_steps", "3", "--seed", "8", "--shift", "5", "--fps", "12", "--guidance_scale",
     "4.5", "--negative_prompt", "a circle", "--num_frames", "9", "--output", "other.mp4"],
    ["a pink triangle spins", *FEW, "9", "--image", "still.png", "--last_image", "still.png", "--num_frames", "9",
     "--output", "between.mp4"],
]  # fmt: skip
NAMES = ("pair_0.mp4", "pair_1.mp4", *(call[-1] for call in CALLS[1:]))


def run(folder, verb, lines):
    """What the calls print with --json, one object a line."""
    calls = [[verb, *line, "--json", "--quiet"] for line in lines]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LINES, json.dumps(calls)], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_ten_videos_are_made_again(tmp_path):
    run(tmp_path, "generate", CALLS)
    reports = run(tmp_path, "inspect", [[name, "--rerun"] for name in NAMES])
    assert len(reports) == len(NAMES) == 10
    stored = {json.loads((tmp_path / name).with_suffix(".json").read_text())["frames_sha256"] for name in NAMES}
    assert len(stored) == 10
    assert {report["rerun"]["frames_sha256"] for report in reports} == stored
    assert all(report["rerun"]["identical"] and not report["rerun"]["changed"] for report in reports)
