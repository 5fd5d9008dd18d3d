"""Every experiment is a frozen constant that survives a round trip, can be overridden, and traces on its own mesh."""

import argparse
import ast
import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from dit_video.cli import data
from dit_video.core import config
from dit_video.core.types import Extra
from dit_video.data.buckets import parse_buckets
from dit_video.data.folder import Folder
from dit_video.models.image_encoder import ImageConfig
from dit_video.train.conditions import Batch
from dit_video.train.lora import FineTune
from dit_video.train.step import TrainState, loss_of, make_step, trained
from dit_video.train.vae import Reconstruct
from dit_video.weights.folder import load_model
from dit_video.weights.model import abstract
from dit_video.weights.released import RELEASES
from dit_video.weights.runs import load_vae

NAMES = sorted(config.packaged_experiments())


@pytest.fixture(params=NAMES)
def experiment(request):
    return config.load_experiment(request.param)


def test_there_are_some():
    assert "toyworld" in NAMES


def test_is_frozen_and_hashable(experiment):
    assert dataclasses.is_dataclass(experiment)
    assert hash(experiment) == hash(dataclasses.replace(experiment))
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.seed = 1


def test_survives_being_written_down(experiment):
    again = config.from_dict(config.to_dict(experiment))
    assert again == experiment
    assert config.digest(again) == config.digest(experiment)


def test_steps_and_seed_can_be_given(experiment):
    changed = config.override(experiment, {"steps": "7", "seed": "3"})
    assert (changed.steps, changed.seed) == (7, 3)
    assert sorted(line.partition(":")[0] for line in config.diff(experiment, changed)) == ["seed", "steps"]


@pytest.mark.parametrize("name", NAMES)
def test_docstring_gives_the_command(name):
    path = config.packaged_experiments()[name]
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"dit-video train experiments/{name}.py" in text or f"dit-video train {name}" in text, text


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("wan_")])
def test_clips_for_a_released_model_have_its_rate(name):
    experiment = config.load_experiment(name)
    dit = experiment.objective.denoise.dit
    (rate,) = {
        release.defaults.fps
        for (_, heads, channels, _), release in RELEASES.items() if (heads, channels) == (dit.heads, dit.in_channels)
    }  # fmt: skip
    if isinstance(experiment.data, Folder):
        assert experiment.data.fps == rate
        return
    text = ast.get_docstring(ast.parse(config.packaged_experiments()[name].read_text())) or ""
    (line,) = (line for line in text.splitlines() if "data build" in line)
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers(dest="verb"))
    args = parser.parse_args(line.split()[1:])
    assert args.fps == rate
    assert {str(bucket) for bucket in parse_buckets(args.buckets)} <= {
        str(dataclasses.replace(bucket, share=1.0)) for bucket in experiment.buckets
    }


def shape(*size: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype)


def batches(experiment, objective) -> list:
    """The shapes of every batch that the run compiles for, by what its loss takes."""
    out, b = [], experiment.batch
    if isinstance(objective, FineTune):
        return batches(experiment, objective.denoise)
    for bucket in experiment.buckets:
        slots, h, w = 1 + (bucket.frames - 1) // 4, bucket.height // 8, bucket.width // 8
        if isinstance(objective, Reconstruct):
            for cut in objective.cuts:
                height, width = (cut.size, cut.size) if cut.size else (bucket.height, bucket.width)
                out.append(shape(max(1, round(b * cut.clips)), cut.frames, height, width, 3))
            continue
        for crop in objective.crops:
            dit = objective.dit
            t, c = min(crop.slots, slots), dit.out_channels
            extra = Extra(shape(b, 1, h, w, c), shape(b, 1))
            beside = shape(b, t, h, w, dit.in_channels - c) if dit.in_channels > c else None
            image = shape(b, ImageConfig().tokens, dit.image_dim) if dit.image_dim else None
            for given in (None,) if beside else (None, extra):
                ids, length = shape(b, objective.tokens, dtype=jnp.int32), shape(b, dtype=jnp.int32)
                known = shape(b, t, h, w, dtype=bool)
                out.append(Batch(shape(b, t, h, w, c), known, ids, length, given, beside, image))
    return out


def complete(experiment):
    """The objective with the sizes of the weights that it starts from."""
    objective = experiment.objective
    if isinstance(objective, FineTune):
        return dataclasses.replace(
            objective, denoise=complete(dataclasses.replace(experiment, objective=objective.denoise))
        )
    if experiment.init is None:
        return objective
    if isinstance(objective, Reconstruct):
        return dataclasses.replace(objective, vae=objective.vae or load_vae(experiment.init)[0])
    start = load_model(experiment.init)
    return dataclasses.replace(objective, dit=objective.dit or start.dit, text=objective.text or start.text)


def test_traces_on_its_own_mesh(experiment):
    """The whole training step of one shape, and the loss of all, on an abstract mesh of eight devices: no memory, no
    compilation."""
    objective = complete(experiment)
    names = tuple(f.name for f in dataclasses.fields(experiment.mesh))
    mesh = AbstractMesh(experiment.mesh.resolve(8), names, axis_types=(AxisType.Auto,) * len(names))
    parts = trained(objective, experiment.rules)
    optimizer = experiment.optimizer.build(experiment.steps)
    params = {name: nnx.to_pure_dict(state) for name, state in parts.abstract.items()}
    state = jax.eval_shape(
        lambda p: TrainState(jnp.zeros((), jnp.int32), p, tuple(p for _ in experiment.ema), optimizer.init(p)), params
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    fixed = objective.fixed() if isinstance(objective, FineTune) else {}
    frozen = {name: nnx.to_pure_dict(nnx.state(abstract(cfg), nnx.Param)) for name, (_, cfg) in fixed.items()} or None

    def loss(frozen, *args):
        return loss_of(objective, parts, frozen)(*args)

    def step(frozen, *args):
        whole = loss_of(objective, parts, frozen)
        return make_step(whole, optimizer, experiment.ema, experiment.accumulate)(*args)

    shapes = {str(batch): batch for batch in batches(experiment, objective)}
    if isinstance(objective, FineTune) and experiment.init is None:  # public sizes: seconds for each shape
        largest = max(shapes, key=lambda name: sum(x.size for x in jax.tree.leaves(shapes[name])))
        shapes = {largest: shapes[largest]}
    with jax.sharding.use_abstract_mesh(mesh):
        for batch in shapes.values():
            value, _ = jax.eval_shape(loss, frozen, params, batch, key)
            assert (value.shape, value.dtype) == ((), jnp.float32)
        after, metrics = jax.eval_shape(step, frozen, state, next(iter(shapes.values())), key)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["loss"].shape == ()
