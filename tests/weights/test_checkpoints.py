"""Checkpoints: what comes back is what was saved, or the checkpoint before it; and runs as models."""

import dataclasses
import json
import logging
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dit_video.core.errors import BadInput, MissingError, Partial
from dit_video.core.mesh import MeshShape, make_mesh
from dit_video.data.loader import Toyworld
from dit_video.data.store import Store
from dit_video.train.denoise import Denoise
from dit_video.train.experiment import Experiment
from dit_video.weights.checkpoints import Broken, Checkpoints, checksums, flatten
from dit_video.weights.find import find_model
from dit_video.weights.folder import load_model, save_model
from dit_video.weights.runs import (
    Run,
    choose_ema,
    load_run,
    load_vae,
    open_base,
    save_vae,
)


def state(step):
    rng = np.random.default_rng(step)
    return {
        "params": {"w": jnp.asarray(rng.standard_normal((64, 48)), jnp.float32), "blocks": {0: jnp.ones(3)}},
        "step": jnp.asarray(step, jnp.int32),
    }


def wanted(tree):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in flatten(tree).items()}


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step), {"data": {"place": step}}, wait=True)
    yield checkpoints
    checkpoints.close()


def test_the_newest_stay_and_those_of_every_so_many_steps(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, every=20)
    for step in range(5, 50, 5):
        checkpoints.save(step, state(step), {}, wait=True)
    assert checkpoints.steps() == [20, 40, 45]
    checkpoints.close()


def latest(checkpoints, step=None):
    return checkpoints.latest(lambda s: checkpoints.restore(s, wanted(state(0))), step)


def equal(flat, tree):
    jax.tree.map(np.testing.assert_array_equal, dict(flat), flatten(tree))


def test_round_trip(saved):
    step, flat = latest(saved)
    assert step == 30
    equal(flat, state(30))
    assert saved.about(30)["data"] == {"place": 30}
    assert latest(saved, 10)[0] == 10
    with pytest.raises(BadInput, match="no step 25"):
        latest(saved, 25)


def test_the_state_may_be_donated_while_it_is_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    tree = state(1)
    double = jax.jit(lambda t: jax.tree.map(lambda x: x * 2, t), donate_argnums=0)
    checkpoints.save(1, tree, {})
    double(tree)
    checkpoints.manager.wait_until_finished()
    equal(checkpoints.restore(1, wanted(state(0))), state(1))
    checkpoints.close()


def damage(folder, how):
    """Changes the largest file of a step, or what is told about it."""
    about = folder / "about" / "metadata"
    if how in ("a key", "a digit"):
        text = about.read_text()
        old, new = ('"shapes"', '"chapes"') if how == "a key" else ('"place"', '"place" ')
        new = new if how == "a key" else re.sub(r'("place": ?)\d', r"\g<1>7", text[text.index(old) :][:12])
        old = old if how == "a key" else text[text.index(old) :][:12]
        assert old in text and old != new
        about.write_text(text.replace(old, new))
        return
    file = max((p for p in (folder / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    if how == "flipped":
        for place in np.random.default_rng(0).integers(len(data) // 4, 3 * len(data) // 4, 8):
            data[place] ^= 0x10
    else:
        del data[len(data) // 2 :]
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["flipped", "truncated", "a key", "a digit"])
def test_a_damaged_step_is_left_for_the_one_before(saved, how, caplog):
    damage(saved.path / "30", how)
    with pytest.raises(Broken):
        saved.restore(30, wanted(state(0)))
    step, flat = latest(saved)
    assert step == 20
    equal(flat, state(20))
    damage(saved.path / "20", how)
    damage(saved.path / "10", how)
    with pytest.raises(
        Broken, match=r"none of the steps 10, 20, 30 can be read.*Copy them again.*--resume never"
    ) as none:
        latest(saved)
    assert none.value.exit_code == 2
    with pytest.raises(Broken, match=r"step 20 .*\. Give another step, or none for the newest"):
        latest(saved, 20)


def test_a_full_disk_under_several_processes_is_told_and_ends_the_run(saved, monkeypatch):
    def full(*args, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(saved.manager, "save", full)
        with pytest.raises(Partial, match=r"No space left on device\. Those that are there stay\. Make room") as told:
            saved.save(40, state(40), {})
        assert told.value.exit_code == 6
    assert saved.steps() == [10, 20, 30]


def test_a_step_without_its_description_or_arrays(saved):
    shutil.rmtree(saved.path / "30" / "about")
    assert latest(saved)[0] == 20
    shutil.rmtree(saved.path / "20" / "state")
    assert latest(saved)[0] == 10


def test_what_a_kill_leaves_behind_is_not_a_step(saved):
    saved.close()
    shutil.copytree(saved.path / "30", saved.path / "40.orbax-checkpoint-tmp-1")
    again = Checkpoints(saved.path)
    assert again.steps() == [10, 20, 30]
    again.close()


def test_only_the_newest_stay_and_later_ones_can_be_forgotten(saved):
    saved.save(40, state(40), {}, wait=True)
    assert saved.steps() == [20, 30, 40]
    saved.forget_after(20)
    assert saved.steps() == [20]
    saved.save(30, state(31), {}, wait=True)
    equal(latest(saved)[1], state(31))


def test_checksums_see_every_bit_and_no_layout():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 48)), jnp.float32)
    whole = int(checksums({"x": x})["x"])
    mesh = make_mesh(MeshShape(2, 2, 2))
    for spec in (P("data"), P(("data", "fsdp"), "context"), P(None, "fsdp")):
        assert int(checksums({"x": jax.device_put(x, NamedSharding(mesh, spec))})["x"]) == whole
    bits = np.asarray(x).view(np.uint32)
    for place, bit in np.random.default_rng(1).integers(0, [64 * 48, 32], (20, 2)):
        changed = bits.copy()
        changed.ravel()[place] ^= np.uint32(1) << np.uint32(bit)
        assert int(checksums({"x": jnp.asarray(changed.view(np.float32))})["x"]) != whole
    assert int(checksums({"x": x[::-1]})["x"]) != whole


def test_checksums_on_the_host_are_those_on_devices(monkeypatch):
    monkeypatch.setattr("dit_video.weights.sums._AT_ONCE", 1000)
    x = 50 * np.random.default_rng(0).standard_normal((64, 48))
    host = {str(kind): x.astype(kind) for kind in (np.float32, jnp.bfloat16, np.float16, np.int32, np.int8, bool)}
    host["float32, turned"] = host[str(np.float32)].T
    assert checksums(host) == checksums(jax.tree.map(jnp.asarray, host))
    assert len(set(checksums(host).values())) == len(host)


def test_restoring_onto_another_mesh(saved):
    mesh = make_mesh(MeshShape(2, 4))
    where = {"params/w": P("fsdp", "data"), "params/blocks/0": P(), "step": P()}
    flat = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where[name]))
        for name, x in wanted(state(0)).items()
    }
    restored = saved.restore(20, flat)
    equal(restored, state(20))
    assert restored["params/w"].sharding.spec == P("fsdp", "data")


def test_choosing_an_average():
    assert choose_ema([0.99, 0.999], None) == "ema/1"
    assert choose_ema([0.99, 0.999], "0.99") == "ema/0"
    assert choose_ema([0.99, 0.999], "none") == "params"
    with pytest.raises(BadInput, match=r"0.99, 0.999"):
        choose_ema([0.99, 0.999], 0.5)


@pytest.fixture
def run(tmp_path, tiny):
    """A denoiser's run folder whose averages are known: the trained weights times 2 and times 3."""
    run = Run(tmp_path / "run")
    run.create()
    run.save_base(tiny.vae, tiny.params["vae"], tiny.tokenizer)
    objective = Denoise(dit=tiny.dit, text=tiny.text, defaults=tiny.defaults)
    run.save_experiment(Experiment(objective=objective, data=Toyworld(), ema=(0.9, 0.99)))
    params = {name: tiny.params[name] for name in ("dit", "text")}
    times = lambda k: jax.tree.map(lambda x: jnp.asarray(k * x), params)  # noqa: E731
    checkpoints = run.checkpoints()
    checkpoints.save(5, {"params": times(1), "ema": (times(2), times(3))}, {}, wait=True)
    checkpoints.close()
    return run


@pytest.mark.parametrize("ema, factor", [(None, 3), (0.9, 2), ("none", 1)])
def test_a_run_is_a_model(run, tiny, ema, factor):
    model = load_run(run.path, ema)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(model.params)), "large ones do not fit a device"
    for name in ("dit", "text"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, factor * b), model.params[name], tiny.params[name])
    jax.tree.map(np.testing.assert_array_equal, model.params["vae"], tiny.params["vae"])
    assert (model.dit, model.text, model.defaults) == (tiny.dit, tiny.text, tiny.defaults)
    assert model.tokenizer.model == tiny.tokenizer.model
    assert model.scheduler["flow_shift"] == 3.0
    assert model.name == str(run.path), "what a clip says it was made with is found again"


def test_another_average_is_named_behind_an_at(run, tiny):
    for open_run in (open_base, load_model):
        model = open_run(f"{run.path}@0.9")
        np.testing.assert_allclose(model.params["dit"]["table"], 2 * tiny.params["dit"]["table"])
        assert model.name == f"{run.path}@0.9", "what a clip says it was made with is found again"
    with pytest.raises(BadInput, match="ema=0.5: this run has 0.9, 0.99, and 'none'"):
        open_base(f"{run.path}@0.5")
    with pytest.raises(BadInput, match="no such folder"):
        open_base(f"{run.path}/nowhere@0.9")


def test_a_run_is_found_by_its_name_and_leaves_as_a_folder(run, tiny, tmp_path):
    assert load_model(run.path).dit == tiny.dit
    save_model(load_run(run.path, "none"), tmp_path / "out", dtypes={"dit": "float16", "vae": "float16"})
    left = load_model(tmp_path / "out")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), left.params["dit"], tiny.params["dit"])
    jax.tree.map(np.testing.assert_array_equal, left.params["text"], tiny.params["text"])


def test_a_vae_comes_from_a_run_a_model_or_a_folder_of_its_own(run, tiny, tmp_path):
    stats = dataclasses.replace(tiny.vae, latents_mean=(0.1,) * 4, latents_std=(2.0,) * 4)
    save_vae(tmp_path / "alone" / "vae", stats, tiny.params["vae"])
    for path, config in ((run.path, tiny.vae), (tmp_path / "alone", stats), (tmp_path / "alone" / "vae", stats)):
        got, params = load_vae(str(path))
        # The folder says mean 0 and std 1 where our config says nothing.
        assert (got.base, got.mult, got.latents_mean or (0.0,) * 4) == (
            config.base,
            config.mult,
            config.latents_mean or (0.0,) * 4,
        )
        jax.tree.map(np.testing.assert_array_equal, params, tiny.params["vae"])


def test_of_a_run_in_a_store_what_makes_it_a_model_is_fetched(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for other in ("4", "6.damaged.1"):
        shutil.copytree(run.path / "checkpoints" / "5", run.path / "checkpoints" / other)
    (run.path / "metrics.jsonl").write_text("{}")
    store = Store(f"memory://{tmp_path.name}/run")
    store.send(run.path, "experiment.json")
    model = open_base(str(store))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 3 * b), model.params["dit"], tiny.params["dit"])
    assert {p.name for p in find_model(str(store)).iterdir()} == {"experiment.json", "vae", "tokenizer", "checkpoints"}
    assert [p.name for p in (find_model(str(store)) / "checkpoints").iterdir()] == ["5"]


@pytest.mark.parametrize("how", ["flipped", "cut off"])
def test_of_a_run_in_a_store_the_step_before_a_damaged_one_is_fetched(run, tiny, tmp_path, monkeypatch, caplog, how):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    steps = run.path / "checkpoints"
    for other in ("4", "7", "9"):
        shutil.copytree(steps / "5", steps / other)
    for other in ("7", "9"):
        if how == "flipped":
            damage(steps / other, how)
        else:  # while it was sent
            for part in ("state", "_CHECKPOINT_METADATA"):
                (shutil.rmtree if (steps / other / part).is_dir() else os.remove)(steps / other / part)
    store = Store(f"memory://{tmp_path.name}/run")
    store.send(run.path, "experiment.json")
    with caplog.at_level(logging.INFO, "dit_video"):
        model = open_base(str(store))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 3 * b), model.params["dit"], tiny.params["dit"])
    assert "fetching step 7, the one before" in caplog.text and "fetching step 5, the one before" in caplog.text
    assert sorted(p.name for p in (find_model(str(store)) / "checkpoints").iterdir()) == ["5", "7", "9"]
    with monkeypatch.context() as patch:
        patch.setattr(Store, "fetch", lambda *_: pytest.fail("it is there already"))
        open_base(str(store))
    for name in store.names():
        if name.startswith(("checkpoints/4/", "checkpoints/5/")):
            store.fs.rm_file(store.path(name))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(Broken if how == "flipped" else (Broken, MissingError)):
        open_base(str(store))


def test_runs_that_cannot_be_models(run, tmp_path):
    with pytest.raises(MissingError, match="no experiment.json"):
        load_run(tmp_path)
    with pytest.raises(BadInput, match="no step 6"):
        load_run(run.path, step=6)
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(MissingError, match="no checkpoint yet"):
        load_run(run.path)
    data = json.loads((run.path / "experiment.json").read_text())
    data["objective"] = {"vae": None}
    (run.path / "experiment.json").write_text(json.dumps(data))
    with pytest.raises(BadInput, match="run of a VAE"):
        load_run(run.path)
    (run.path / "experiment.json").write_text("{ broken")
    with pytest.raises(BadInput, match=r"experiment.json cannot be read"):
        load_run(run.path)
