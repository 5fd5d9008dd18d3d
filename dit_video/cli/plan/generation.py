"""What a clip costs: the text encoder, the sampler's step and the VAE's decoding, compiled for the devices."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dit_video.cli.plan.abstract import Program, Shapes, device_bytes, filled, placed_at, vae_of
from dit_video.cli.plan.costs import Cost
from dit_video.cli.plan.predict import Plan, Target, refused, with_change
from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape, make_mesh, over_frames, shardings
from dit_video.core.types import Text
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.sample import start
from dit_video.diffusion.schedule import Instant
from dit_video.diffusion.solvers import UniPC
from dit_video.generate.decode import SLOTS
from dit_video.generate.programs import Given, Programs
from dit_video.models.dit import flops
from dit_video.models.image_encoder import ImageConfig
from dit_video.train.experiment import Experiment
from dit_video.train.lora import FineTune
from dit_video.train.vae import Reconstruct
from dit_video.weights.place import placed

STEPS = 50  # the default of the Wan family


def plan_generation(experiment: Experiment, target: Target, steps: int | None = None, search: bool = True) -> Plan:
    """A clip of the experiment's first bucket, with guidance, both branches in one batch. With `search`, where it does
    not fit, the first of `meshes` that makes it fit is compiled too, and named. Raises `BadInput` for an experiment
    that trains no denoiser."""
    if isinstance(experiment.objective, Reconstruct):
        raise BadInput(
            "--generate: this experiment trains a VAE, which makes no clip by itself. Plan its training without "
            "--generate, or a clip with an experiment of a denoiser, such as toyworld."
        )
    steps = STEPS if steps is None else steps
    plan = _plan_generation(experiment, target, steps)
    if plan.fits or not search:
        return plan
    otherwise = "larger devices, more of them, or a smaller clip: no other mesh is enough"
    return with_change(
        plan,
        meshes(experiment, len(target.devices)),
        lambda changed: _plan_generation(changed, target, steps),
        otherwise,
    )


def meshes(experiment: Experiment, devices: int) -> Iterator[tuple[str, Experiment]]:
    """Meshes that save memory, as flags, the cheapest in time first: weights over all devices, then also the clip's
    tokens over 2, 4, ... of them."""
    _, _, context, tensor = now = experiment.mesh.resolve(devices)
    heads = _holder(filled(experiment)).dit.heads
    while devices % (context * tensor) == 0 and heads % (context * tensor) == 0:
        sizes = (1, devices // (context * tensor), context, tensor)
        if sizes != now:
            mesh = MeshShape(*sizes)
            yield " ".join(f"--mesh.{k} {v}" for k, v in asdict(mesh).items()), replace(experiment, mesh=mesh)
        context *= 2


def _holder(objective: Any) -> Any:
    """What holds the denoiser's config."""
    return objective.denoise if isinstance(objective, FineTune) else objective


def _plan_generation(experiment: Experiment, target: Target, steps: int) -> Plan:
    holder = _holder(filled(experiment))
    dit, bucket = replace(holder.dit, remat="none"), experiment.buckets[0]
    vae = replace(vae_of(experiment, dit.out_channels), conv="direct", dtype="bfloat16")
    mesh = make_mesh(experiment.mesh, target.devices)
    programs = Programs(dit, vae, holder.text, mesh, experiment.rules)
    weights = {
        name: placed(nnx.to_pure_dict(state), shardings(state, mesh, experiment.rules), "bfloat16")
        for name, (_, state) in programs.abstract.items()
    }
    whole, solver = NamedSharding(mesh, P()), UniPC()

    def shape(*size: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, dtype, sharding=whole)

    t, h, w = 1 + (bucket.frames - 1) // vae.stride, bucket.height // vae.factor, bucket.width // vae.factor
    noise = shape(1, t, h, w, dit.out_channels)
    frames = shape(1, t, h, w, dit.in_channels - dit.out_channels) if dit.in_channels > dit.out_channels else None
    image = shape(2, dit.image_len or ImageConfig().tokens, dit.image_dim) if dit.image_dim else None
    hbm = {"parameters": sum(map(device_bytes, weights.values())), "optimizer": 0, "ema": 0, "activations": 0}
    every: list[Program] = []

    def make(name: str, function: Callable, part: str, *args: Shapes) -> Shapes:
        began = time.perf_counter()
        with jax.set_mesh(mesh):
            done = jax.jit(function).lower(weights[part], *args).compile()
        memory = done.memory_analysis()
        program = Program(
            name, done.as_text(), memory.argument_size_in_bytes - device_bytes(weights[part]),
            memory.temp_size_in_bytes, memory.output_size_in_bytes, time.perf_counter() - began,
        )  # fmt: skip
        every.append(program)
        return placed_at(done.out_info, done.output_shardings)

    try:
        ids = shape(2, holder.tokens, dtype=jnp.int32), shape(2, dtype=jnp.int32)
        text = make("text", programs.read, "text", *ids)
        context = make("context", programs.context, "dit", Text(*text), image)
        moment = Instant(shape(), shape())
        carry = placed_at(jax.eval_shape(partial(start, solver=solver), noise), whole)
        given = Given(context, shape(), beside=frames)
        step = programs.advance(solver, Guidance())
        make("step", lambda dit, *args: step(dit, *args, None), "dit", carry, moment, moment, given)
        piece = shape(1, SLOTS, h, w, vae.z)
        past = jax.eval_shape(lambda vae, z: programs.decode_piece(vae, z, None)[1], weights["vae"], piece)
        past_at = jax.tree.map(lambda a: NamedSharding(mesh, over_frames(a.shape, experiment.rules, mesh)), past)
        make("decode", programs.decode_piece, "vae", piece, placed_at(past, past_at))
    except jax.errors.JaxRuntimeError as error:
        hbm["activations"] = max((p.temporaries for p in every), default=0)
        hbm["total"] = hbm["parameters"] + refused(error)
        return Plan(target, describe(bucket, steps), hbm, False, Cost())
    hbm["activations"] = max(p.temporaries for p in every)
    hbm["total"] = hbm["parameters"] + max(p.arguments + p.temporaries + p.outputs for p in every)
    times = {"text": 1, "context": 1, "step": steps, "decode": math.ceil(t / SLOTS)}
    parts = {p.name: target.costs(p, mesh) * times[p.name] for p in every}
    model = 2 * steps * flops(dit, (t, h, w), holder.tokens)
    tokens = int(np.prod([size // side for size, side in zip((t, h, w), dit.patch, strict=True)]))
    return Plan(
        target, describe(bucket, steps), hbm, hbm["total"] <= target.hbm, sum(parts.values(), Cost()), parts, model,
        tokens, sum(p.seconds for p in every),
    )  # fmt: skip


def describe(bucket: Any, steps: int) -> str:
    return f"a clip of {bucket.frames} frames of {bucket.width}x{bucket.height}, {steps} steps with guidance"
