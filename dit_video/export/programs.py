"""What is exported: the parts of a model, and the whole sampler, as pure functions of flat weights and arrays.

    text_encoder(weights, ids, length) -> rows
    denoiser(weights, latents, time, rows, length) -> velocity
    vae_decoder(weights, latents) -> frames
    step(x, velocity, now, then, *memory) -> x, *memory                     (the solver's part of a step)
    sampler(text, dit, vae, ids, length, noise, flow, model, scale) -> frames, latents

Weights are dicts {path: array}, without what a part does not use. In the sampler and where guidance is used, the batch
of ids and lengths holds the prompts and then the negative prompts. Latents are normalised, frames uint8.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from dit_video.core.errors import BadInput
from dit_video.core.types import Latent, Text, Time
from dit_video.diffusion.guidance import guided, in_one_batch
from dit_video.diffusion.sample import scan
from dit_video.diffusion.schedule import Instant
from dit_video.diffusion.solvers import Carry, Solver, solver_named
from dit_video.models.dit import Context
from dit_video.weights.model import Model, abstract
from dit_video.weights.names import flatten, unflatten

Weights = dict[str, Array]
PARTS = ("text", "dit", "vae")
# Tokens of a clip from which a program of fixed sizes has attention in pieces: the logits of a layer grow with their
# square, and would be 100 GB for 81 frames of 832x480 in the smallest Wan. (`chunked` counts rows, so no symbols.)
LONG = 4096
DECODING = ("decoder/", "post_quant_conv/")  # of the VAE's weights: an export only decodes


def portable(model: Model, dtype: str, back: str) -> Model:
    """The model as it is traced for other runtimes: attention and convolutions that every platform has. `back` is that
    of the VAE's convolutions. Raises `BadInput` for models that need more than a prompt."""
    dit = model.dit
    if model.dit_2 is not None or dit.vace_layers or dit.image_dim or dit.in_channels != dit.out_channels:
        raise BadInput(
            f"{model.name}: it needs more than a prompt (a second denoiser, a picture or a control). To StableHLO and "
            "ONNX go models that make video of text; --to diffusers takes them all."
        )
    return replace(
        model,
        dit=replace(dit, dtype=dtype, remat="none", attention="xla", stretch=None),
        vae=replace(model.vae, dtype=dtype, conv=back),
        text=replace(model.text, dtype=dtype),
    )


def tokens(model: Model, shape: Sequence[int]) -> int:
    """Of the denoiser, for a clip of these frames, height and width."""
    latents = model.vae.latent_shape(*shape)[:3]
    return math.prod(size // side for size, side in zip(latents, model.dit.patch, strict=True))


def logits_bytes(model: Model, shape: Sequence[int]) -> int:
    """What attention of a layer holds at once where it is not in pieces, with both branches of guidance."""
    return 4 * (1 + (model.defaults.guidance != 1.0)) * model.dit.heads * tokens(model, shape) ** 2


def sized(name: str, shape: Sequence[int] | None) -> str:
    """The stem of a program's file: its name, and its frames, height and width where these are fixed."""
    return name if shape is None else f"{name}_{'x'.join(map(str, shape))}"


@dataclass(frozen=True)
class Programs:
    """The functions of a model. Of its weights only names and shapes are looked at."""

    model: Model

    @cached_property
    def solver(self) -> Solver:
        return solver_named(self.model.defaults.solver)

    def at(self, shape: Sequence[int]) -> "Programs":
        """These for clips of fixed sizes: attention of long ones is in pieces."""
        if tokens(self.model, shape) <= LONG:
            return self
        return Programs(replace(self.model, dit=replace(self.model.dit, attention="chunked")))

    @property
    def guided(self) -> bool:
        return self.model.defaults.guidance != 1.0

    def weights(self, part: str) -> dict[str, Any]:
        """The arrays of a part that its programs use, by their paths."""
        flat = flatten(self.model.params[part])
        return {path: x for path, x in flat.items() if part != "vae" or path.startswith(DECODING)}

    def module(self, part: str, weights: Weights) -> Any:
        """A part with weights; those that it is not given stay shapes."""
        graph, state = nnx.split(abstract(self.model.parts[part]), nnx.Param)
        return nnx.merge(graph, unflatten(flatten(nnx.to_pure_dict(state)) | weights))

    def text_encoder(self, weights: Weights, ids: Int[Array, "N S"], length: Int[Array, "N"]) -> Float[Array, "N S E"]:
        return self.module("text", weights)(ids, length).rows

    def context(self, weights: Weights, rows: Float[Array, "N S E"], length: Int[Array, "N"]) -> Context:
        return self.module("dit", weights).context(Text(rows, length))

    def denoiser(
        self, weights: Weights, latents: Latent, time: Float[Array, "N"], rows: Float[Array, "N S E"],
        length: Int[Array, "N"],
    ) -> Latent:  # fmt: skip
        """Time is flow time, 1 noise .. 0 data, one number a clip."""
        context = self.context(weights, rows, length)
        return self.module("dit", weights)(latents, Time(time[:, None]), context)

    def vae_decoder(self, weights: Weights, latents: Latent) -> UInt8[Array, "B F Y X 3"]:
        module = self.module("vae", weights)
        video = module.decode(module.denormalize(latents))
        return jnp.clip(jnp.round((video + 1) * 127.5), 0, 255).astype(jnp.uint8)

    def sampler(
        self, text: Weights, dit: Weights, vae: Weights, ids: Int[Array, "N S"], length: Int[Array, "N"],
        noise: Latent, flow: Float[Array, "M"], model: Float[Array, "M"], scale: Float[Array, ""],
    ) -> tuple[UInt8[Array, "B F Y X 3"], Latent]:  # fmt: skip
        """`flow` and `model` are the moments of `Schedule.instants()`, any number of them."""
        context = self.context(dit, self.text_encoder(text, ids, length), length)

        def network(x: Latent, time: Time, memory: Any) -> tuple[Latent, Any]:
            return self.module("dit", dit)(x, time, context), memory

        velocity = guided(in_one_batch(network), scale) if self.guided else network
        latents = scan(velocity, self.solver, noise, Instant(flow, model), data=self.model.dit.predicts == "data").x
        return self.vae_decoder(vae, latents), latents

    def step(self) -> tuple[Callable, Callable]:
        """The solver's part of a step as a function of arrays alone, and what it remembers at the start:
        (x, velocity, now, then, *memory) -> (x, *memory), and x -> memory. Raises `BadInput` for a solver that wants
        the velocity more than once a step."""
        if self.model.defaults.solver == "heun":
            raise BadInput("heun evaluates twice a step; ONNX takes models of unipc, dpmpp_2m or euler.")
        tree = jax.tree.structure(jax.eval_shape(self.solver.init, jax.ShapeDtypeStruct((1, 1, 1, 1, 1), np.float32)))

        def step(x: Latent, v: Latent, now: Float[Array, ""], then: Float[Array, ""], *memory: Array) -> tuple:
            carry = Carry(x, jax.tree.unflatten(tree, memory), ())
            carry = self.solver.step(carry, lambda x, t, old: (v, old), Instant(now, now), Instant(then, then))
            return carry.x, *jax.tree.leaves(carry.solver)

        return step, lambda x: tuple(jax.tree.leaves(self.solver.init(x)))
