"""`dit-video train`: fields from the command line, and errors before anything is compiled."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dit_video.cli.main import main
from dit_video.cli.train import write_samples
from dit_video.core.config import load_experiment
from dit_video.data.buckets import Bucket
from dit_video.data.loader import stack
from dit_video.data.video import read_video
from dit_video.train import loop


@pytest.fixture
def called(monkeypatch):
    """What the trainer is given, without training."""
    calls = []

    def fake(experiment, workdir, resume="auto", sample=None, profile=None):
        assert profile in (None, (10, 15))
        calls.append((experiment, workdir, resume))
        return {"steps": experiment.steps}

    monkeypatch.setattr(loop, "train", fake)
    monkeypatch.setattr("dit_video.cli.generate.prepare_jax", lambda device: None)
    return calls


def test_fields_and_flags_reach_the_experiment(called, capsys):
    line = (
        "train toyworld --workdir runs/x --steps 7 --objective.pool.clips=64 --mesh.data 2 --init board --resume never"
    )
    assert main([*line.split(), "--vae", "runs/vae", "--json", "--profile", "10:15"]) == 0
    ((experiment, workdir, resume),) = called
    assert (experiment.steps, experiment.objective.pool.clips, experiment.mesh.data) == (7, 64, 2)
    assert (experiment.init, experiment.vae, resume, str(workdir)) == ("board", "runs/vae", "never", "runs/x")
    assert json.loads(capsys.readouterr().out) == {"path": "runs/x", "steps": 7}


def test_the_folder_is_named_after_the_experiment(called, capsys):
    assert main(["train", "experiments/finetune_folder.py", "--data.path", "clips/"]) == 0
    ((experiment, workdir, _),) = called
    assert (experiment.data.path, str(workdir)) == ("clips/", "runs/finetune_folder")
    assert capsys.readouterr().out == "runs/finetune_folder\n"


def test_each_core_is_a_device_where_the_experiment_says_so_and_nobody_else_runs(called, monkeypatch):
    asked, alone = [], [True]
    monkeypatch.setattr("dit_video.core.cores.one_device_a_core", lambda device, fits: asked.append((device, fits)))
    monkeypatch.setattr("dit_video.core.cluster.join_cluster", lambda wait: None if alone[0] else "a cluster")
    assert main(["train", "toyworld", "--device", "cpu", "--batch", "6"]) == 0
    ((device, fits),) = asked
    assert (device, [n for n in range(1, 7) if fits(n)]) == ("cpu", [1, 2, 3, 6])
    assert main(["train", "toyworld", "--cores", "false"]) == 0
    assert main(["train", "toyworld_vae"]) == 0
    alone[0] = False
    assert main(["train", "toyworld"]) == 0
    assert len(asked) == 1
    assert main(["train", "toyworld", "--mesh.data", "2", "--batch", "8", "--accumulate", "2"]) == 0
    assert [n for n in (1, 2, 4) if called[-1][0].fits(n)] == [2]


def test_dtype_is_that_of_the_computation(called, capsys):
    assert main(["train", "toyworld", "--dtype", "bfloat16"]) == 0
    objective = called[0][0].objective
    assert (objective.dit.dtype, objective.text.dtype) == ("bfloat16", "bfloat16")
    assert main(["train", "wan_lora", "--dtype", "float32"]) == 0
    denoise = called[1][0].objective.denoise
    assert (denoise.dit.dtype, denoise.text.dtype) == ("float32", "float32")
    for name in ("finetune_folder", "lora_folder"):
        assert main(["train", name, "--dtype", "bfloat16"]) == 2
    assert "--matmul_precision bfloat16 rounds the factors" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, message",
    [
        ("train toyworlds", "toyworld"),
        ("train toyworld --stepz 5", "Did you mean steps"),
        ("train toyworld --optimizer.learning_rate 1", "unknown field"),
        ("train toyworld --steps many", "a whole number"),
        ("train toyworld --objective.dit 5", "a group of fields"),
        ("train toyworld --profile 15:10", "as in 10:15"),
    ],
)
def test_bad_input_is_found_before_anything_runs(called, capsys, line, message):
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err
    assert not called


def test_the_others_are_joined_before_jax_computes(called, monkeypatch):
    order = []
    monkeypatch.setattr("dit_video.core.cluster.join_cluster", lambda wait: order.append(wait))
    monkeypatch.setattr("dit_video.cli.generate.prepare_jax", lambda device: order.append(device))
    assert main(["train", "toyworld", "--wait", "12"]) == 0
    assert order == [12.0, "auto"]


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dit_video.cli.generate.prepare_jax", lambda device: None)
    (tmp_path / "file").write_text("")
    assert main(["train", "toyworld", "--workdir", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def of_toyworld(**changes):
    return dataclasses.replace(load_experiment("toyworld"), buckets=(Bucket(5, 32, 32),), **changes)


def test_samples_show_the_prompts_of_the_run_or_captions_of_its_clips(tiny, tmp_path):
    prompts = ("a red circle moves up", "a blue star moves left")
    write_samples(tiny, of_toyworld(prompts=prompts), tmp_path, 3)
    made = [read_video(tmp_path / f"step_000003_{i}.mp4") for i in range(2)]
    assert [one.metadata["prompt"] for one in made] == list(prompts) and made[0].frames.shape == (5, 32, 32, 3)
    assert np.asarray(Image.open(tmp_path / "step_000003.png")).std() > 1
    untold = of_toyworld(prompts=())
    write_samples(tiny, untold, tmp_path, 4)
    told = [read_video(tmp_path / f"step_000004_{i}.mp4").metadata["prompt"] for i in range(4)]
    assert told == untold.data.open(untold.buckets).captions(4)


def test_samples_of_a_vae_are_clips_beside_what_it_makes_of_them(tiny, tmp_path):
    e = of_toyworld()
    write_samples(tiny.module("vae"), e, tmp_path, 5)
    sheet = np.asarray(Image.open(tmp_path / "step_000005.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["step_000005.png"]
    strip = 5 * 32 + 4 * 2  # frames, and gaps between them
    left, right = sheet[:32, :strip], sheet[:32, -strip:]
    reader = e.data.open(e.buckets, held_out=True)
    clip = np.asarray(reader.frames(stack([reader.load(0)]).arrays, 0))[0]
    np.testing.assert_allclose(left[:, :32], (clip[0] + 1) * 127.5, atol=1)
    assert np.abs(left.astype(float) - right).mean() > 1
