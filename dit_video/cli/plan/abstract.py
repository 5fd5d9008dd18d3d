"""The programs of a run, compiled from shapes alone: those that `dit-video train` and `generate` would run."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_video.core.mesh import batch_sharding, shardings, ways
from dit_video.core.types import Extra
from dit_video.models.image_encoder import ImageConfig
from dit_video.models.vae import VAEConfig
from dit_video.train.conditions import Batch
from dit_video.train.denoise import Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.lora import FineTune, sized
from dit_video.train.step import compiled_halves, layout, on, trained
from dit_video.train.vae import Reconstruct
from dit_video.weights.folder import load_model
from dit_video.weights.place import placed
from dit_video.weights.runs import load_vae, open_base

Shapes = Any  # a tree of ShapeDtypeStruct with shardings

# Where a model is named on the command line only, its VAE is told by its channels.
WAN_VAE = {
    16: VAEConfig(conv="direct"),
    48: VAEConfig(160, 256, 48, (1, 2, 4, 4), temporal=(False, True, True), patch=2, residual=True, conv="direct"),
}


@dataclass(frozen=True)
class Program:
    """A compiled program: its text, its bytes on one device, the seconds that compiling took."""

    name: str
    text: str
    arguments: int
    temporaries: int
    outputs: int  # that are not written into arguments
    seconds: float


@dataclass(frozen=True)
class Train:
    """The shapes of a run: what a step takes, each array with its place on the mesh."""

    experiment: Experiment
    objective: Any
    mesh: Mesh
    state: Shapes
    frozen: Shapes
    batch: Shapes
    size: str  # of the batch, for people
    clips: int
    tokens: int  # of all clips, of the denoiser; 0 for a VAE

    def programs(self) -> list[Callable[[], Program]]:
        """The halves of a step, each compiled when it is called."""
        e, mesh = self.experiment, self.mesh
        parts = trained(self.objective, e.rules)
        optimizer = e.optimizer.build(e.steps)
        _, where = layout(self.objective, parts, optimizer, mesh, e.rules, e.ema)
        gradients, update = compiled_halves(
            self.objective, parts, optimizer, where, e.ema, e.accumulate, e.matmul_precision
        )
        whole = NamedSharding(mesh, P())
        key = placed_at(jax.eval_shape(lambda: jax.random.key(0)), whole)
        metrics = placed_at(jax.eval_shape(lambda: {"loss": jnp.zeros(())}), whole)
        first = (self.frozen, self.state.params, self.state.step, self.batch, key)
        return [
            lambda: compiled("gradients", gradients, first, mesh),
            lambda: compiled("update", update, (self.state, self.state.ema[0], metrics), mesh),
        ]


def compiled(name: str, function: Any, arguments: tuple, mesh: Mesh) -> Program:
    """Lowers and compiles a jitted function for the devices of the mesh. Raises what the compiler raises."""
    began = time.perf_counter()
    with on(mesh):
        program = function.lower(*arguments).compile()
    memory = program.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(
        name, program.as_text(), memory.argument_size_in_bytes, memory.temp_size_in_bytes, outputs,
        time.perf_counter() - began,
    )  # fmt: skip


def placed_at(shapes: Shapes, where: Any) -> Shapes:
    """Shapes with one sharding, or with a tree of them."""
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, shapes)
    return jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where)


def device_bytes(shapes: Shapes) -> int:
    """Bytes of a tree of placed shapes on one device."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(shapes)
    )


def train(experiment: Experiment, mesh: Mesh) -> Train:
    """The shapes of its heaviest step on a mesh. Raises `BadInput` where sizes do not fit, `MissingError` for a model
    that the experiment takes its sizes from and that is not here."""
    objective = filled(experiment)
    parts = trained(objective, experiment.rules)
    optimizer = experiment.optimizer.build(experiment.steps)
    shapes, where = layout(objective, parts, optimizer, mesh, experiment.rules, experiment.ema)
    together = experiment.accumulate * ways(experiment.rules.batch, mesh)
    batch, size, tokens = heaviest(experiment, objective, together)
    return Train(
        experiment, objective, mesh, placed_at(shapes, where), frozen(experiment, objective, mesh),
        placed_at(batch, batch_sharding(mesh, experiment.rules)), size, jax.tree.leaves(batch)[0].shape[0], tokens,
    )  # fmt: skip


def filled(experiment: Experiment) -> Any:
    """The objective with the sizes that it takes from the model that it starts from."""
    objective = experiment.objective
    if isinstance(objective, FineTune):
        if experiment.init is None:
            return replace(objective, denoise=filled(replace(experiment, objective=objective.denoise)))
        start = open_base(experiment.init)
        dit = sized(objective.denoise.dit, getattr(start, objective.part))
        text = sized(objective.denoise.text, start.text)
        return replace(objective, denoise=replace(objective.denoise, dit=dit, text=text))
    if isinstance(objective, Reconstruct):
        return objective if objective.vae else replace(objective, vae=load_vae(experiment.init)[0])
    if objective.dit and objective.text:
        return objective
    start = load_model(experiment.init)
    return replace(objective, dit=objective.dit or start.dit, text=objective.text or start.text)


def frozen(experiment: Experiment, objective: Any, mesh: Mesh) -> Shapes:
    """What the step uses and does not learn, as it is kept."""
    if not isinstance(objective, FineTune):
        return None
    out = {}
    for name, (kind, cfg) in objective.fixed().items():
        state = nnx.state(nnx.eval_shape(lambda k=kind, c=cfg: k(c, experiment.rules, rngs=nnx.Rngs(0))), nnx.Param)
        out[name] = placed(nnx.to_pure_dict(state), shardings(state, mesh, experiment.rules), objective.keep)
    return out


def vae_of(experiment: Experiment, channels: int) -> VAEConfig:
    """Of the denoiser's latents."""
    name = experiment.vae or experiment.init
    if name is None and isinstance(experiment.objective, FineTune):
        return WAN_VAE[channels]
    return load_vae(name)[0]


def heaviest(experiment: Experiment, objective: Any, together: int) -> tuple[Shapes, str, int]:
    """The batch of the most tokens (or pixels) that the run will see: shapes, words for it, tokens. together: clips
    come in multiples of that many."""
    if isinstance(objective, FineTune):
        objective = objective.denoise
    found = []
    for bucket in experiment.buckets:
        if isinstance(objective, Reconstruct):
            for cut in objective.cuts:
                height, width = (cut.size, cut.size) if cut.size else (bucket.height, bucket.width)
                clips = cut.used(experiment.batch, together)
                video = jax.ShapeDtypeStruct((clips, cut.frames, height, width, 3), jnp.float32)
                found.append((video.size, video, f"{clips} x {cut.frames} frames of {width}x{height}", 0))
        elif isinstance(objective, Denoise):
            found.append(_latents(experiment, objective, bucket))
    _, batch, size, tokens = max(found, key=lambda item: item[0])
    return batch, size, tokens


def _latents(experiment: Experiment, objective: Denoise, bucket: Any) -> tuple[int, Shapes, str, int]:
    dit = objective.dit
    vae = vae_of(experiment, dit.out_channels)
    b, h, w, c = experiment.batch, bucket.height // vae.factor, bucket.width // vae.factor, dit.out_channels
    shape, beside = jax.ShapeDtypeStruct, dit.in_channels - c
    whole = 1 + (bucket.frames - 1) // vae.stride
    slots = whole if beside and dit.image_len else min(max(crop.slots for crop in objective.crops), whole)
    more = sum(objective.conditions.split()[1].values()) > 0
    extra = Extra(shape((b, 1, h, w, c), jnp.float32), shape((b, 1), jnp.float32)) if more else None
    batch = Batch(
        shape((b, slots, h, w, c), jnp.float32), shape((b, slots, h, w), jnp.bool_),
        shape((b, objective.tokens), jnp.int32), shape((b,), jnp.int32), extra,
        shape((b, slots, h, w, beside), jnp.float32) if beside else None,
        shape((b, dit.image_len or ImageConfig().tokens, dit.image_dim), jnp.float32) if dit.image_dim else None,
    )  # fmt: skip
    t, y, x = dit.patch
    tokens = b * (slots // t + more) * (h // y) * (w // x)
    frames = 1 + (slots - 1) * vae.stride
    return tokens, batch, f"{b} x {frames} frames of {bucket.width}x{bucket.height}", tokens
