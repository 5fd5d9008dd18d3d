"""Fine-tuning: what is frozen stays, adapters learn, a run is a model again and leaves a file that others read."""

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape, Rules, make_mesh
from dit_video.core.types import Text, Time
from dit_video.data.buckets import Bucket
from dit_video.data.loader import Toyworld
from dit_video.data.pool import Pool
from dit_video.generate.mode import abilities
from dit_video.models.dit import flops
from dit_video.nn.leaves import Adapted
from dit_video.train.conditions import Batch, Conditions
from dit_video.train.denoise import Base, Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.loop import train
from dit_video.train.lora import FineTune, LoRA, adapters, attach
from dit_video.train.optim import Optimizer
from dit_video.train.step import initial_params, loss_of, model_flops, on, trained
from dit_video.weights.folder import load_model, read, save_model
from dit_video.weights.lora import merge_files
from dit_video.weights.model import Defaults, abstract
from dit_video.weights.names import flatten, unflatten
from dit_video.weights.runs import Run, load_run

miniature = runpy.run_path(str(Path(__file__).parents[1] / "miniature.py"))
DIT = miniature["DIT"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(miniature["miniature"](), tmp_path_factory.mktemp("models") / "tiny")


TEXT_ALONE = Conditions(text=1.0, first=0.0, picture=0.0, tail=0.0, tail_with_sink=0.0, window=0.0)


def experiment(folder, **objective):
    denoise = Denoise(
        conditions=TEXT_ALONE,
        crops=(Crop(2, 1.0),), pool=Pool(clips=8, chunk=4), tokens=16,
    )  # fmt: skip
    return Experiment(
        objective=FineTune(denoise, **{"keep": "float32", "lora": LoRA(rank=2, targets=("attn", "up")), **objective}),
        data=Toyworld(), buckets=(Bucket(5, 32, 32),), optimizer=Optimizer(lr=0.02, warmup=1, weight_decay=0.0),
        steps=6, batch=4, ema=(0.1,), init=str(folder), eval_batches=1, eval_every=6, sample_every=0,
        mesh=MeshShape(data=1),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr("dit_video.train.loop.make_mesh", lambda shape: make_mesh(shape, jax.devices()[:1]))


def velocity(params, cfg=DIT):
    graph, _ = nnx.split(abstract(cfg), nnx.Param)
    x, text = jnp.ones((1, 2, 4, 4, 4)), Text(jnp.ones((1, 3, 24)), jnp.array([3]))
    return jax.jit(lambda p: nnx.merge(graph, p)(x, Time(jnp.full((1, 1), 0.5), None), text))(params)


def test_adapters_begin_as_nothing_and_are_where_they_are_asked_for(tiny, rng):
    lora = LoRA(rank=3, alpha=6.0, targets=("attn", "down"))
    learnt = nnx.to_pure_dict(nnx.state(adapters(DIT, lora, rngs=nnx.Rngs(0)), nnx.Param))
    shapes = {path: array.shape for path, array in flatten(learnt).items()}
    assert shapes == {
        **{f"blocks/attn/{name}/kernel/a": (2, 32, 3) for name in ("q", "k", "v", "out")},
        **{f"blocks/attn/{name}/kernel/b": (2, 3, 32) for name in ("q", "k", "v", "out")},
        "blocks/down/kernel/a": (2, 48, 3), "blocks/down/kernel/b": (2, 3, 32),
    }  # fmt: skip
    attached = attach(tiny.params["dit"], learnt, lora.scale)
    np.testing.assert_allclose(velocity(attached), velocity(tiny.params["dit"]), atol=1e-6)
    learnt = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32) / 8, learnt)
    flat = dict(flatten(tiny.params["dit"]))
    for path in {name.rpartition("/")[0] for name in flatten(learnt)}:
        flat[path] = flat[path] + 2.0 * flatten(learnt)[f"{path}/a"] @ flatten(learnt)[f"{path}/b"]
    other = velocity(attach(tiny.params["dit"], learnt, lora.scale))
    np.testing.assert_allclose(other, velocity(unflatten(flat)), atol=1e-4)
    assert np.abs(other - velocity(tiny.params["dit"])).max() > 0.01
    with pytest.raises(BadInput, match=r"no matrix is called to_q\. There are: attn, cross, down, k, out, q, up, v"):
        adapters(DIT, LoRA(targets=("attn", "to_q")), rngs=nnx.Rngs(0))
    with pytest.raises(BadInput, match=r"lora\.rank=0"):
        LoRA(rank=0)


def test_gradients_go_to_the_adapters_alone():
    leaf = Adapted(jnp.eye(3), jnp.ones((3, 1)), jnp.ones((1, 3)), 0.5)
    grads = jax.grad(lambda w: w[...].sum())(leaf)
    assert not np.asarray(grads.weight).any()
    np.testing.assert_allclose(grads.a, np.full((3, 1), 1.5))


@pytest.fixture
def traced():
    """Of an objective shapes alone: (parameters, batch, key, what is frozen)."""
    shape = jax.ShapeDtypeStruct

    def shapes(objective, rules):
        key = jax.eval_shape(lambda: jax.random.key(0))
        fixed = {
            name: nnx.to_pure_dict(nnx.state(abstract(cfg), nnx.Param)) for name, (_, cfg) in objective.fixed().items()
        }
        params = jax.eval_shape(lambda k: initial_params(objective, rules, k), key)
        batch = Batch(
            shape((2, 2, 4, 4, 4), jnp.float32), shape((2, 2, 4, 4), bool), shape((2, 8), jnp.int32),
            shape((2,), jnp.int32), None,
        )  # fmt: skip
        return params, batch, key, fixed

    return shapes


def test_what_is_frozen_follows_the_rules_of_the_experiment(traced):
    """Tokens that are not split over the mesh are not exchanged."""
    objective = FineTune(Denoise(dit=DIT, text=miniature["TEXT"]), LoRA(rank=2, targets=("attn",)))
    counts = []
    for rules in (Rules(), Rules(tokens=None, width=None, space=None)):
        params, batch, key, fixed = traced(objective, rules)
        with on(make_mesh(MeshShape(data=1, context=2), jax.devices()[:2])):
            loss = lambda f, *args, rules=rules: loss_of(objective, trained(objective, rules), f)(*args)[0]  # noqa: E731
            counts.append(str(jax.make_jaxpr(loss)(fixed, params, batch, key)).count("all_to_all"))
    assert counts[0] > 0 and counts[1] == 0


@pytest.mark.parametrize("lora, times", [(LoRA(rank=2, targets=("attn",)), 2), (None, 3)])
def test_flops_are_the_denoisers_forward_and_back(traced, lora, times):
    """Kernels count, and what is frozen has no backward pass."""
    objective = FineTune(Denoise(dit=replace(DIT, attention="splash"), text=miniature["TEXT"]), lora)
    params, batch, key, fixed = traced(objective, Rules())
    found = model_flops(objective, Rules(), params, batch, key, fixed)
    assert found == times * 2 * flops(DIT, (2, 4, 4), 8)


@pytest.mark.parametrize("keep", ["float32", "int8"])
def test_steps_change_the_adapters_and_lower_the_loss(tiny, rng, keep):
    denoise = Denoise(dit=DIT, text=miniature["TEXT"])
    objective = FineTune(denoise, LoRA(rank=2, targets=("attn", "up")), keep=keep)
    base = Base(tiny.vae, None, tiny.tokenizer, tiny)
    frozen = objective.frozen(base, make_mesh(MeshShape(data=1), jax.devices()[:1]), Rules())
    parts = trained(objective, Rules())
    params = initial_params(objective, Rules(), jax.random.key(0))
    assert list(params) == ["lora"]
    data = rng.standard_normal((4, 2, 4, 4, 4)).astype(np.float32)
    ids = rng.integers(2, 100, (4, 8)).astype(np.int32)
    batch = jax.tree.map(jnp.asarray, Batch(data, np.zeros((4, 2, 4, 4), bool), ids, np.full(4, 8, np.int32), None))
    step = jax.jit(jax.value_and_grad(lambda p, f: loss_of(objective, parts, f)(p, batch, jax.random.key(1))[0]))
    first, grads = step(params, frozen)
    if keep == "float32":  # at first it is the model's own loss
        whole = {name: nnx.merge(nnx.split(abstract(cfg), nnx.Param)[0], tiny.params[name])
                 for name, cfg in (("dit", DIT), ("text", miniature["TEXT"]))}  # fmt: skip
        own = jax.jit(lambda: denoise.loss(whole, batch, jax.random.key(1))[0])()
        np.testing.assert_allclose(first, own, rtol=1e-5)
    assert not any(np.asarray(g).any() for path, g in flatten(grads).items() if path.endswith("/a"))  # b is zero
    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, step(params, frozen)[1])
    assert float(step(params, frozen)[0]) < float(first) - 1e-3


@pytest.mark.slow
def test_a_run_learns_and_is_a_model_again(folder, tmp_path):
    run = tmp_path / "run"
    summary = train(experiment(folder), run)
    start, tuned = load_model(folder), load_run(run)
    assert summary["parameters"] == 2 * (4 * 2 * (32 + 32) + 2 * (32 + 48))
    changed = {
        f"{part}/{path}"
        for part in start.params
        for path, leaf in flatten(read(tuned.params[part])).items()
        if not np.array_equal(leaf, flatten(start.params[part])[path])
    }
    assert changed == {*(f"dit/blocks/attn/{n}/kernel" for n in ("q", "k", "v", "out")), "dit/blocks/up/kernel"}
    # the file that is left says the same
    merged = merge_files(start, [str(run / "lora")])
    for path, leaf in flatten(merged.params["dit"]).items():
        np.testing.assert_allclose(leaf, flatten(read(tuned.params["dit"]))[path], atol=1e-6, err_msg=path)
    assert load_model(run).params["dit"]["head"]["kernel"].shape == start.params["dit"]["head"]["kernel"].shape


@pytest.mark.slow
def test_the_whole_denoiser_can_learn_too(folder, tmp_path):
    again = replace(experiment(folder, lora=None), steps=2)
    train(again, tmp_path / "run")
    start, tuned = load_model(folder), load_run(tmp_path / "run")
    assert not np.array_equal(tuned.params["dit"]["time_in"]["kernel"], start.params["dit"]["time_in"]["kernel"])
    np.testing.assert_array_equal(
        np.asarray(tuned.params["text"]["embed"]["embedding"]), start.params["text"]["embed"]["embedding"]
    )
    train(replace(again, steps=3), tmp_path / "run")  # goes on from its checkpoint


@pytest.mark.parametrize("conditions, given", [(Conditions(), {"first", "tail", "mask"}), (TEXT_ALONE, set())])
def test_from_scratch_a_model_can_be_given_what_training_showed_it(conditions, given):
    """Though the model whose sizes it has knows one time for all of a clip."""
    whole = miniature["miniature"]()
    start = replace(whole, expand_timesteps=False, defaults=replace(whole.defaults, conditions=()))
    base = Base(start.vae, start.params["vae"], start.tokenizer, start)
    made = FineTune(Denoise(conditions=conditions), lora=None, scratch=True).model({"dit": start.params["dit"]}, base)
    assert given <= abilities(made) and ("first" in abilities(made)) == bool(given)
    assert not {"first", "tail"} & abilities(start)


@pytest.mark.slow
def test_a_run_from_scratch_can_be_given_it_too(tmp_path):
    whole = miniature["miniature"]()
    start = replace(whole, expand_timesteps=False, defaults=replace(whole.defaults, conditions=()))
    there = experiment(save_model(start, tmp_path / "start"), lora=None, scratch=True)
    shown = replace(there.objective.denoise, conditions=Conditions())
    train(replace(there, steps=1, objective=replace(there.objective, denoise=shown)), tmp_path / "run")
    assert abilities(load_run(tmp_path / "run")) == abilities(whole) | {"free"}
    train(replace(there, steps=1), tmp_path / "text")
    assert abilities(load_run(tmp_path / "text")) == {"free"}


@pytest.fixture
def begun(folder, tmp_path):
    """(run with a checkpoint, its experiment), as if it had been trained."""
    run, there = Run(tmp_path / "run"), experiment(folder)
    run.create()
    run.save_experiment(replace(there, objective=there.objective.resolve(there, run)[0]))
    learnt = {"lora": nnx.to_pure_dict(nnx.state(adapters(DIT, there.objective.lora, rngs=nnx.Rngs(0)), nnx.Param))}
    checkpoints = run.checkpoints()
    checkpoints.save(1, {"params": learnt, "ema": (learnt,)}, {}, wait=True)
    checkpoints.close()
    return run, there


def rewritten(run, change):
    data = run.experiment()
    change(data)
    (run.path / "experiment.json").write_text(json.dumps(data))


def test_a_run_goes_on_with_what_it_started_from_wherever_that_is(begun, folder, tmp_path):
    run, there = begun
    digest = load_model(folder).digest
    assert run.experiment()["objective"]["digest"] == digest
    whole = miniature["miniature"]()
    params = whole.params | {"dit": jax.tree.map(lambda x: x + 1, whole.params["dit"])}
    other, moved = save_model(replace(whole, params=params), tmp_path / "other"), tmp_path / "moved"
    shutil.copytree(folder, moved)
    resume = lambda init: there.objective.resolve(replace(there, init=str(init)), run)[0]  # noqa: E731
    assert resume(moved) == resume(folder)
    told = rf"{re.escape(str(folder))} \({digest}\), and {re.escape(str(other))} has other weights \(\w{{12}}\)"
    with pytest.raises(BadInput, match=told):
        resume(other)

    assert load_run(run.path).name == str(run.path)
    for init, message in ((other, told), (tmp_path / "gone", r"cannot be opened: unknown model .* written as `init`")):
        rewritten(run, lambda data, init=init: data.update(init=str(init)))
        message = message.replace(re.escape(str(folder)), re.escape(str(init)))
        with pytest.raises(BadInput, match=message):
            load_run(run.path)
    rewritten(run, lambda data: data.update(init=str(moved)))
    load_run(run.path)

    rewritten(run, lambda data: data["objective"].pop("digest"))  # of an earlier version: the name tells
    resume(moved)
    with pytest.raises(BadInput, match=r"started from .*moved \(digest unknown\), and .* has other weights"):
        resume(folder)


def test_the_digest_of_a_model_whose_files_tell_none(folder, tmp_path):
    there, digests = experiment(folder), []
    for name in ("a", "b"):
        (shutil.copytree(folder, tmp_path / name) / "manifest.json").unlink()
        resolved, _ = there.objective.resolve(replace(there, init=str(tmp_path / name)), Run(tmp_path / "run"))
        digests.append(resolved.digest)
    assert digests[0] == digests[1] and len(digests[0]) == 16


def test_what_cannot_be_tuned_says_so(folder, tmp_path):
    with pytest.raises(BadInput, match=r"fine-tuning starts from a model: --init MODEL"):
        train(replace(experiment(folder), init=None), tmp_path / "a")
    with pytest.raises(BadInput, match=r"--vae board: a model that is fine-tuned keeps its VAE"):
        train(replace(experiment(folder), vae="board"), tmp_path / "a")
    with pytest.raises(BadInput, match="no matrix is called to_q"):
        train(experiment(folder, lora=LoRA(targets=("to_q",))), tmp_path / "b")
    there = experiment(folder).objective
    for name, value in (("tokenizer", "board"), ("defaults", Defaults(guidance=7.0))):
        given = replace(there, denoise=replace(there.denoise, **{name: value}))
        with pytest.raises(BadInput, match=rf"objective\.denoise\.{name}: .* keeps its own"):
            given.resolve(experiment(folder), Run(tmp_path / "c"))
    with pytest.raises(BadInput, match=r"height=40 of 5x40x32 .* Nearest: 32 or 48"):
        there.resolve(replace(experiment(folder), buckets=(Bucket(5, 40, 32),)), Run(tmp_path / "c"))
    with pytest.raises(BadInput, match=r"lora\.alpha=0.*must be above 0"):
        LoRA(alpha=0)


@pytest.mark.parametrize(
    "objective, name, message",
    [
        (FineTune(), "vace", r"control branch \(VACE\)"),
        (Denoise(), "vace", r"control branch \(VACE\)"),
        (Denoise(), "t2v_a14b", r"two denoisers: it is fine-tuned .* experiments/wan_lora\.py"),
        (Denoise(), "i2v", r"given frames as further channels: .*experiments/wan_i2v_lora\.py"),
        (FineTune(), "t2v_a14b", r"two denoisers .* --objective\.expert 1 \(times from 0\.875 up"),
        (FineTune(expert=3), "t2v_a14b", r"two denoisers"),
        (FineTune(expert=1), "t2v", r"has one denoiser"),
    ],
)
def test_models_of_structures_that_are_not_trained_are_refused(objective, name, message, tmp_path, monkeypatch):
    variant = runpy.run_path(str(Path(__file__).parents[1] / "weights" / "variants.py"))["variant"](name)
    for opening in ("lora.open_base", "denoise.load_model"):
        monkeypatch.setattr(f"dit_video.train.{opening}", lambda name: variant)
    run = Run(tmp_path / "run")
    if isinstance(objective, FineTune):
        objective = replace(objective, denoise=Denoise(conditions=TEXT_ALONE))
    with pytest.raises(BadInput, match=rf"models/x .*{message}"):
        objective.resolve(replace(experiment(tmp_path), objective=objective, init="models/x"), run)
