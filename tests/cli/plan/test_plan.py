"""`dit-video plan`: for the devices here, and, where the TPU compiler is installed, for a slice."""

import json
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dit_video.cli.main import main
from dit_video.cli.plan import predict
from dit_video.cli.plan.abstract import filled
from dit_video.cli.plan.chips import CHIPS
from dit_video.cli.plan.costs import Cost
from dit_video.cli.plan.devices import slice_target
from dit_video.cli.plan.generation import plan_generation
from dit_video.cli.plan.predict import Plan, Target, changes, plan_training, refused
from dit_video.core.config import load_experiment
from dit_video.core.errors import MissingError
from dit_video.core.mesh import MeshShape
from dit_video.core.slices import parse_slice
from dit_video.data.buckets import Bucket
from dit_video.models.dit import flops
from dit_video.models.text import TextConfig
from dit_video.train.denoise import Crop

needs_compiler = pytest.mark.skipif(find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed")


def small(name: str = "toyworld", **dit):
    """An experiment of a moment's compile time."""
    experiment = load_experiment(name)
    sizes = {"heads": 2, "head_dim": 8, "depth": 2, "ffn_dim": 32, "freq_dim": 16, "text_dim": 16}
    objective = replace(
        experiment.objective,
        dit=replace(experiment.objective.dit, **{**sizes, **dit}),
        text=TextConfig(vocab=768, width=16, heads=2, head_dim=8, ffn_dim=32, depth=1),
        crops=(Crop(5),),
        tokens=8,
    )
    return replace(experiment, objective=objective, buckets=(Bucket(17, 32, 32),), batch=8, ema=(0.9, 0.99))


def here(hbm: float, count: int = 1) -> Target:
    return Target("cpu", count, jax.devices()[:count], None, hbm)


@pytest.fixture(scope="module")
def plan():
    return plan_training(small(), here(1e12, 2))


def test_memory_of_a_step_by_part(plan):
    hbm = plan.hbm
    assert plan.fits and plan.change is None
    assert hbm["ema"] == hbm["parameters"]  # two averages, half of each on a half of the data axis
    assert 2 * hbm["optimizer"] > hbm["parameters"]  # Muon's one moment, AdamW's two, in halves too
    assert hbm["total"] > hbm["parameters"] + hbm["ema"] + hbm["optimizer"] + hbm["gradients"]
    assert hbm["activations"] > 0
    assert plan.mfu is None  # a CPU has no data sheet


def test_flops_are_those_of_the_model(plan):
    objective = small().objective
    grid = (5, 4, 4)  # the VAE on board: 4 x in time, 8 x in space
    assert plan.tokens == 8 * (5 + 1) * 2 * 2  # an extra latent frame, patches of 1 x 2 x 2
    dit = 3 * 8 * flops(objective.dit, grid, objective.tokens, extra=1)
    assert dit < plan.model_flops < 2 * dit  # the text encoder learns too


def test_what_would_make_it_fit_is_named(monkeypatch):
    """The first change that fits, with those before it; all of them are tried where none does."""
    tried = []

    def planned(experiment, target):
        tried.append(experiment)
        remat = experiment.objective.dit.remat
        return Plan(target, "", {"total": 1}, remat == "attention", Cost(), compile_seconds=1.0)

    monkeypatch.setattr(predict, "_plan_training", planned)
    experiment = replace(small(remat="none"), mesh=MeshShape(data=1, fsdp=2))
    found = plan_training(experiment, here(1.0, 2))
    assert found.change == "--objective.dit.remat attention"
    assert found.compile_seconds == 2.0
    assert [e.objective.dit.remat for e in tried] == ["none", "dots", "attention"]
    assert plan_training(experiment, here(1.0, 2), search=False).change is None


def test_changes_are_flags_that_an_experiment_takes():
    found = list(changes(load_experiment("wan_14b_v5p_32")))
    assert all(flags.startswith("--") for flags, _ in found)
    assert any(e.objective.denoise.dit.remat == "block" for _, e in found)


@pytest.mark.parametrize(
    "mesh", [MeshShape(1, 1, 4, 1), MeshShape(1, 4, 1, 1), MeshShape(2, 2, 1, 1), MeshShape(2, -1, 1, 1)]
)
def test_no_change_wants_other_devices(mesh):
    experiment = replace(load_experiment("wan_14b_v5p_32"), mesh=mesh, batch=4)
    for flags, changed in changes(experiment):
        assert changed.mesh.resolve(4), flags


def test_what_the_compiler_said_when_it_gave_up():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm. Exceeded by 4.25G."
    assert refused(RuntimeError(said)) == 20 * 2**30
    alone = "the total memory required for HLO temporaries (596.05G) exceeds available HBM (15.75G)."
    assert refused(RuntimeError(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, {alone}")) == int(596.05 * 2**30)
    with pytest.raises(RuntimeError, match="something else"):
        refused(RuntimeError("something else"))


def test_efficiency_and_price():
    target = Target("v5e:2x2", 4, [None] * 4, CHIPS["v5e"], 16e9)
    plan = Plan(target, "", {"total": 1}, True, Cost(seconds=2.0), model_flops=4 * 197e12)
    assert plan.mfu == pytest.approx(0.5)
    assert plan.price(1.8) == pytest.approx(1.8 * 4 * 2000 / 3600)
    assert replace(plan, fits=False).mfu is None


def test_json_and_exit_code(plan, capsys, monkeypatch):
    arguments = ["plan", "toyworld", "--topology", "local", "--mesh.data", "8"]
    monkeypatch.setattr(predict, "plan_training", lambda experiment, target, search: plan)
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is True
    assert {"parameters", "optimizer", "ema", "activations", "total"} <= set(report["hbm_bytes"])
    assert {"topology", "chips", "hbm_limit", "step_seconds", "by", "model_flops", "mfu", "compile_seconds"} <= set(
        report
    )
    tight = replace(plan, fits=False, change="--batch 1")
    monkeypatch.setattr(predict, "plan_training", lambda experiment, target, search: tight)
    assert main(arguments) == 2
    assert "does NOT fit; it would with: --batch 1" in capsys.readouterr().out


@pytest.fixture
def planned(monkeypatch):
    """`planned(...)`: the experiment that a command line would plan."""
    seen = []

    def keep(experiment, target, search):
        seen.append(experiment)
        return Plan(target, "", {"total": 1}, True, Cost())

    monkeypatch.setattr(predict, "plan_training", keep)

    def planned(*line):
        assert main(["plan", *line, "--topology", "local", "--json"]) == 0
        return seen[-1]

    return planned


def test_the_line_of_train_is_taken(planned, capsys):
    """What `--data` names changes no shape, and need not be here; the dtype is that of everything computed."""
    objective = planned("toyworld", "--data", "no/such/folder", "--dtype", "bfloat16", "--device", "cpu").objective
    assert objective.dit.dtype == objective.text.dtype == "bfloat16"
    assert main(["plan", "finetune_folder", "--dtype", "bfloat16", "--topology", "local"]) == 2
    assert "--matmul_precision bfloat16" in capsys.readouterr().err
    assert main(["plan", "toyworld", "--topology", "v5e:2x2", "--device", "cpu"]) == 2
    assert "--topology local" in capsys.readouterr().err


def test_on_a_cpu_a_plan_is_of_the_devices_that_training_makes(planned, monkeypatch):
    asked = []
    monkeypatch.setattr("dit_video.core.cores.one_device_a_core", lambda device, fits: asked.append((device, fits(2))))
    planned("toyworld")
    assert asked == [("auto", True)]
    planned("toyworld", "--cores", "false")
    monkeypatch.setattr("dit_video.cli.plan.generation.plan_generation", lambda e, target, *_, **__: Plan(
        target, "", {"total": 1}, True, Cost()))  # fmt: skip
    assert main(["plan", "toyworld", "--topology", "local", "--generate", "--json"]) == 0
    assert len(asked) == 1  # a clip is made on one


def test_a_vae_makes_no_clip(capsys):
    assert main(["plan", "toyworld_vae", "--generate", "--topology", "local"]) == 2
    assert "a VAE, which makes no clip" in capsys.readouterr().err


def test_an_unknown_slice(capsys):
    assert main(["plan", "toyworld", "--topology", "v5e:3x3"]) == 2
    assert "no such slice" in capsys.readouterr().err


def test_without_the_compiler_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("dit_video.cli.plan.devices.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install"):
        slice_target(parse_slice("v5e:2x2"))


def test_collectives_go_between_the_devices_of_the_mesh(monkeypatch):
    """Its programs count devices in the mesh's order, which is not the slice's."""
    mesh = SimpleNamespace(devices=np.array([[SimpleNamespace(coords=(i, 0, 0), core_on_chip=0) for i in (2, 0, 1)]]))
    monkeypatch.setattr(predict, "parse", lambda text: None)
    monkeypatch.setattr(predict, "cost", lambda module, wiring, efficiency: wiring)
    target = Target("v5e:4x4", 16, [], CHIPS["v5e"], 16e9)
    assert target.costs(SimpleNamespace(text=""), mesh).places == ((2, 0, 0, 0), (0, 0, 0, 0), (1, 0, 0, 0))


def test_sizes_are_those_of_the_model_that_training_starts_from():
    experiment = replace(load_experiment("wan_lora"), init="board")
    dit, asked = filled(experiment).denoise.dit, experiment.objective.denoise.dit
    assert (dit.heads, dit.depth) == (8, 6) != (asked.heads, asked.depth)
    assert (dit.dtype, dit.remat) == (asked.dtype, asked.remat)


def test_a_clip_from_a_given_frame():
    """Image-to-video: frames as channels beside the noise, and a picture's tokens."""
    experiment = load_experiment("wan_i2v_lora")
    denoise = experiment.objective.denoise
    sizes = {"heads": 2, "head_dim": 8, "depth": 2, "ffn_dim": 32, "freq_dim": 16, "text_dim": 16, "image_dim": 16}
    text = TextConfig(vocab=768, width=16, heads=2, head_dim=8, ffn_dim=32, depth=1)
    denoise = replace(denoise, dit=replace(denoise.dit, **sizes), text=text, tokens=8)
    experiment = replace(
        experiment, objective=replace(experiment.objective, denoise=denoise), buckets=(Bucket(17, 32, 32),), vae="board"
    )
    assert denoise.dit.in_channels > denoise.dit.out_channels
    plan = plan_generation(experiment, here(1e12), 2)
    assert plan.fits and plan.hbm["total"] > plan.hbm["parameters"] > 0


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_limit_is_the_compilers(name):
    """What it says when it gives up."""
    target = slice_target(parse_slice(name))
    place = jax.sharding.SingleDeviceSharding(target.devices[0])
    shape = jax.ShapeDtypeStruct((400_000, 400_000), np.float16, sharding=place)
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x @ x, out_shardings=place).lower(shape).compile()
    assert f"({target.hbm / 2**30:.2f}G)" in str(error.value) and refused(error.value) > target.hbm


@needs_compiler
@pytest.mark.slow
def test_on_a_slice_remat_alone_moves_the_prediction():
    """A small model compiled for a TPU: every term is there; what is computed again costs compute and saves memory."""
    target = slice_target(parse_slice("v5e:2x2"))

    def planned(remat):
        experiment = small(heads=4, head_dim=128, ffn_dim=1024, dtype="bfloat16", remat=remat)
        made = plan_training(replace(experiment, batch=4, buckets=(Bucket(17, 256, 256),)), target)
        c = made.cost
        assert made.fits
        assert 0 < made.mfu < 1
        assert max(c.compute, c.memory) <= c.seconds <= c.compute + c.memory + c.collectives
        return made

    kept, again = planned("none"), planned("block")
    assert kept.cost.flops * 4 > kept.model_flops * 0.9
    assert again.cost.flops > 1.2 * kept.cost.flops
    assert again.cost.compute > kept.cost.compute
    assert again.cost.memory < kept.cost.memory  # what is computed again is not read again: so small, that is faster
    assert again.hbm["activations"] < 0.7 * kept.hbm["activations"]
    assert again.model_flops == kept.model_flops
