"""`dit-video plan`: what it tries where something does not fit, on the devices that there are, and what it says of
memory that nobody knows."""

import json
from dataclasses import replace

import jax
import pytest

from dit_video.cli.main import main
from dit_video.cli.plan import generation, predict
from dit_video.cli.plan.costs import Cost
from dit_video.cli.plan.generation import meshes, plan_generation
from dit_video.cli.plan.predict import Plan, Target, plan_training
from dit_video.core.config import load_experiment
from dit_video.core.mesh import MeshShape
from dit_video.data.buckets import Bucket

PARTS = {"parameters", "optimizer", "ema", "activations", "total"}


def here(hbm, count=1):
    return Target("cpu", count, jax.devices()[:count], None, hbm)


def never(target):
    return Plan(target, "", {"total": 1}, False, Cost())


def test_one_device_is_not_divided(monkeypatch):
    """The devices of a context axis would come from an axis that has but one."""
    tried = []

    def planned(experiment, target):
        tried.append(experiment.mesh.resolve(len(target.devices)))
        return never(target)

    monkeypatch.setattr(predict, "_plan_training", planned)
    plan = plan_training(replace(load_experiment("toyworld"), mesh=MeshShape()), here(1.0))
    assert plan.change.startswith("more chips")
    assert len(tried) > 2 and set(tried) == {(1, 1, 1, 1)}


def test_memory_that_nobody_knows_is_null():
    report = never(here(float("inf"))).report()
    assert report["hbm_limit"] is None and json.loads(json.dumps(report))["hbm_limit"] is None


def test_meshes_for_a_clip_are_of_the_devices_there():
    experiment = replace(load_experiment("toyworld"), mesh=MeshShape())
    heads = experiment.objective.dit.heads
    assert not list(meshes(experiment, 1))
    found = dict(meshes(experiment, 8))
    assert next(iter(found)) == "--mesh.data 1 --mesh.fsdp 8 --mesh.context 1 --mesh.tensor 1"
    assert len(found) > 1 and all(heads % changed.mesh.context == 0 for changed in found.values())
    assert all(changed.mesh.resolve(8) for changed in found.values())


def test_a_mesh_for_a_clip_is_sought_unless_it_is_not_to_be(monkeypatch):
    tried = []

    def planned(experiment, target, steps):
        tried.append(experiment.mesh)
        return replace(never(target), fits=experiment.mesh.context == 2)

    monkeypatch.setattr(generation, "_plan_generation", planned)
    experiment = replace(load_experiment("toyworld"), mesh=MeshShape())
    target = replace(here(1.0), devices=[None] * 4)
    assert plan_generation(experiment, target).change.startswith("--mesh.data 1 --mesh.fsdp 2 --mesh.context 2")
    assert len(tried) == 3
    assert plan_generation(experiment, target, search=False).change is None and len(tried) == 4
    assert plan_generation(experiment, replace(target, devices=[None])).change.startswith("larger devices")


def test_no_search_is_for_clips_too(monkeypatch):
    seen = {}

    def planned(experiment, target, steps, search):
        seen["search"] = search
        return never(target)

    monkeypatch.setattr(generation, "plan_generation", planned)
    assert main(["plan", "toyworld", "--topology", "local", "--generate", "--no_search", "--json"]) == 2
    assert seen == {"search": False}


@pytest.mark.parametrize("full", [False, True])
def test_memory_of_a_clip_has_every_part(monkeypatch, full):
    """Also where the compiler gave up."""
    if full:
        error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm.")

        def refuse(*_, **__):
            raise error

        monkeypatch.setattr(generation, "placed_at", refuse)
    experiment = load_experiment("toyworld")
    dit = replace(experiment.objective.dit, heads=2, head_dim=8, depth=2, ffn_dim=32, freq_dim=16)
    experiment = replace(experiment, buckets=(Bucket(5, 32, 32),), objective=replace(experiment.objective, dit=dit))
    plan = plan_generation(experiment, here(1e12), 2, search=False)
    assert set(plan.hbm) >= PARTS and plan.hbm["optimizer"] == plan.hbm["ema"] == 0
    assert plan.fits is not full and plan.hbm["total"] > plan.hbm["activations"] > 0
