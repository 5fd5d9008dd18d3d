"""What is compiled: a model as pure functions of weights and arrays. Four programs make a video.

`read` (a prompt to the text encoder's rows), `context` (those to the denoiser's keys and values), `advance` (one step
with guidance, its times as arguments, so any number of steps and any scale is one program, and either of two denoisers'
weights), `decode` (latents to pixels); with a picture `encode`, and `see` where the model has an encoder of pictures. A
clip that is longer than a pass of the denoiser takes `velocity` (of one window) and `finish` (the solver's part of a
step, piece by piece) in place of `advance`, and `encode_piece` and `decode_piece`. They are compiled ahead, those of a
pass at the same time, and kept for every pipeline with the same sizes.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from dit_video.core.mesh import Rules, over_frames, ways
from dit_video.core.types import Extra, Latent, Text, Time
from dit_video.diffusion.cache import Reuse, cached
from dit_video.diffusion.guidance import Guidance, Velocity, in_one_batch
from dit_video.diffusion.known import known
from dit_video.diffusion.sample import at_moment, step_function
from dit_video.diffusion.schedule import Instant
from dit_video.diffusion.solvers import Carry, Solver
from dit_video.models.dit import Context, Control, DiT, DiTConfig
from dit_video.models.image_encoder import ImageConfig, ImageEncoder
from dit_video.models.text import TextConfig, TextEncoder
from dit_video.models.vae import VAE, VAEConfig, spans
from dit_video.weights.model import abstract

Weights = Any  # nested dicts of arrays
Key = tuple[Any, ...]


class Given(NamedTuple):
    """What a step is given beside the latents."""

    context: Context
    scale: Float[Array, ""]  # of guidance
    clean: Latent | None = None  # under the mask: known
    mask: Bool[Array, "B T H W"] | None = None
    extra: Extra | None = None  # pictures and the sink
    beside: Float[Array, "B T H W M"] | None = None  # channels that stand behind the noise's
    control: Control | None = None


def twice(given: Given) -> Given:
    """For both branches of guidance in one batch: what stands a clip, once more."""
    extra, beside, control = given.extra, given.beside, given.control
    latents = None if control is None else control.latents
    extra, beside, latents = jax.tree.map(lambda a: jnp.concatenate([a, a]), (extra, beside, latents))
    return given._replace(extra=extra, beside=beside, control=control and control._replace(latents=latents))


def prompted(context: Context) -> Context:
    """The first half of the clips: without negative prompts."""
    half = lambda a, axis: jax.lax.slice_in_dim(a, 0, a.shape[axis] // 2, axis=axis)  # noqa: E731
    layers = jax.tree.map(lambda a: half(a, 1), context.layers())
    control = context.control and prompted(context.control)
    return layers._replace(bias=None if context.bias is None else half(context.bias, 0), control=control)


def from_pixels(pixels: UInt8[Array, "B T H W 3"] | Float[Array, "B T H W 3"]) -> Float[Array, "B T H W 3"]:
    """0..255 to [-1, 1]; what is in [-1, 1] already stays."""
    return pixels.astype(jnp.float32) / 127.5 - 1 if pixels.dtype == jnp.uint8 else pixels


def to_pixels(video: Float[Array, "B T H W 3"]) -> UInt8[Array, "B T H W 3"]:
    """[-1, 1] to 0..255."""
    return jnp.clip(jnp.round((video + 1) * 127.5), 0, 255).astype(jnp.uint8)


def to_uint8(video: Float[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    """The same on the host."""
    return np.clip(np.round((video + 1) * 127.5), 0, 255).astype(np.uint8)


class Programs:
    """The functions of one set of sizes, and what was compiled of them."""

    def __init__(
        self, dit: DiTConfig, vae: VAEConfig, text: TextConfig, mesh: Mesh | None, rules: Rules,
        image: ImageConfig | None = None,
    ):  # fmt: skip
        self.configs = {"dit": (DiT, dit), "vae": (VAE, vae), "text": (TextEncoder, text)}
        self.configs |= {} if image is None else {"image": (ImageEncoder, image)}
        self.mesh, self.rules = mesh, rules
        self.stride, self.data = vae.stride, dit.predicts == "data"
        self.compiled: dict[Key, Callable] = {}

    @cached_property
    def abstract(self) -> dict[str, tuple[nnx.GraphDef, nnx.State]]:
        """Of each module: its graph, and the shapes and logical axes of its weights. No weight is made."""

        def make(module, cfg):
            if self.rules == Rules():
                return abstract(cfg)  # made already when the weights were read
            return nnx.eval_shape(lambda: module(cfg, self.rules, rngs=nnx.Rngs(0)))

        return {name: nnx.split(make(*config), nnx.Param) for name, config in self.configs.items()}

    def module(self, name: str, weights: Weights) -> Any:
        return nnx.merge(self.abstract[name][0], weights)

    def read(self, text: Weights, ids: Int[Array, "N S"], length: Int[Array, "N"]) -> Text:
        """Prompts, encoded."""
        return self.module("text", text)(ids, length)

    def see(self, image: Weights, pictures: Float[Array, "N Y X 3"]) -> Float[Array, "1 I E"]:
        """Tokens of pictures, one picture's behind the other's."""
        tokens = self.module("image", image)(pictures)
        return tokens.reshape(1, -1, tokens.shape[-1])

    def context(self, dit: Weights, text: Text, image: Float[Array, "N I E"] | None) -> Context:
        """What does not depend on time, once a run."""
        return self.module("dit", dit).context(text, image)

    def decode(self, vae: Weights, latents: Latent) -> tuple[UInt8[Array, "B T H W 3"], Bool[Array, ""]]:
        """Pixels, and whether they were finite."""
        module = self.module("vae", vae)
        video = module.decode(module.denormalize(latents), clip=False)  # cut, infinity would be white
        return to_pixels(video), jnp.isfinite(video).all()

    def decode_piece(self, vae: Weights, latents: Latent, past: Any) -> tuple[Float[Array, "B T H W 3"], Any]:
        """Pixels in [-1, 1] of the latents that follow `past` (None: the clip's first), and the past of the next. NaN
        where they are not finite: infinity, cut, would be white."""
        module = self.module("vae", vae)
        video, past = module.decode_piece(module.denormalize(latents), past, clip=False)
        return jnp.where(jnp.isfinite(video), jnp.clip(video, -1.0, 1.0), jnp.nan), past

    def decode_next(self, vae: Weights, latents: Latent, past: Any) -> tuple[Float[Array, "B T H W 3"], Any]:
        """`decode_piece`, compiled."""
        ready = self.prepare({"decode_piece": ((), self.decode_piece, (vae, latents, past))})
        return ready["decode_piece"](vae, latents, past)

    def encode(self, vae: Weights, pixels: UInt8[Array, "B T H W 3"] | Float[Array, "B T H W 3"]) -> Latent:
        """Normalised latents: the mean of the encoder's distribution."""
        module = self.module("vae", vae)
        return module.normalize(module.encode(from_pixels(pixels))[0])

    def encode_piece(
        self, vae: Weights, pixels: UInt8[Array, "B T H W 3"] | Float[Array, "B T H W 3"], past: Any
    ) -> tuple[Latent, Any]:
        """`encode` of the frames that follow `past` (None: the clip's first), and the past of the next."""
        module = self.module("vae", vae)
        mean, _, past = module.encode_piece(from_pixels(pixels), past)
        return module.normalize(mean), past

    def encode_stream(
        self, vae: Weights, frames: UInt8[np.ndarray, "T H W 3"] | Float[np.ndarray, "T H W 3"], slots: int
    ) -> Float[np.ndarray, "t h w z"]:
        """As `encode` of one clip, in pieces of so many latent slots (the first: one more), which alone are on the
        device. Compiled on the way."""
        past, out = None, []
        for begin, end in spans(len(frames), slots * self.stride):
            piece = frames[None, begin:end]
            ready = self.prepare({"encode_piece": ((), self.encode_piece, (vae, piece, past))})
            latents, past = ready["encode_piece"](vae, piece, past)
            out.append(np.asarray(latents)[0])
        return np.concatenate(out)

    def field(self, dit: Weights, given: Given, guidance: Guidance | None, now: Instant) -> Velocity:
        """The network under its combinators, for the step from `now`: both branches of guidance in one batch, what is
        known held, guidance.

        With guidance, the context holds the prompts and then the negative prompts.
        """
        module = self.module("dit", dit)

        def network(given: Given) -> Velocity:
            def velocity(x: Latent, time: Time, memory: Any) -> tuple[Latent, Any]:
                seen = x if given.beside is None else jnp.concatenate([x, given.beside.astype(x.dtype)], -1)
                return module(seen, time, given.context, given.extra, control=given.control), memory

            return velocity

        def held(velocity: Any) -> Any:
            return velocity if given.mask is None else known(velocity, given.clean, given.mask)

        if guidance is None:
            return held(network(given))
        alone = given._replace(context=prompted(given.context))
        return guidance.velocity(held(in_one_batch(network(twice(given)))), held(network(alone)), given.scale, now.flow)

    def advance(self, solver: Solver, guidance: Guidance | None) -> Callable:
        """One step: (weights, carry, now, then, given, reuse) -> (carry, finite). With `reuse`, the carry's memory is
        a `Cache`."""

        def step(
            dit: Weights, carry: Carry, now: Instant, then: Instant, given: Given, reuse: Reuse | None
        ) -> tuple[Carry, Bool[Array, ""]]:
            velocity = self.field(dit, given, guidance, now)
            if reuse is not None:
                velocity = cached(velocity, reuse)
            return step_function(velocity, solver, self.data)(carry, now, then)

        return step

    def velocity(self, guidance: Guidance | None) -> Callable:
        """(weights, x, moment, given) -> dx/dt of one window."""

        def velocity(dit: Weights, x: Latent, moment: Instant, given: Given) -> Latent:
            return at_moment(self.field(dit, given, guidance, moment), self.data)(x, moment, ())[0]

        return velocity

    def finish(self, solver: Solver) -> Callable:
        """The solver's part of a step, given the velocity: (carry, now, then, velocity) -> (carry, finite)."""

        def finish(carry: Carry, now: Instant, then: Instant, v: Latent) -> tuple[Carry, Bool[Array, ""]]:
            return step_function(lambda x, t, memory: (v, memory), solver)(carry, now, then)

        return finish

    def prepare(self, wanted: Mapping[str, tuple[Key, Callable, tuple]]) -> dict[str, Callable]:
        """Compiles `{name: (key, function, arguments)}`, all at once, and what was compiled before not again.

        Arguments may be abstract. Name and key tell functions apart; shapes are added here. On a mesh functions are
        compiled at their first call instead, when it is known how their arguments lie.
        """
        keys = {name: (name, key, _shapes(args)) for name, (key, _, args) in wanted.items()}
        new = {name: jax.jit(function) for name, (_, function, _) in wanted.items() if keys[name] not in self.compiled}
        if new and self.mesh is None:
            lowered = {name: function.lower(*wanted[name][2]) for name, function in new.items()}
            with ThreadPoolExecutor(len(lowered)) as pool:  # XLA lets go of Python's lock
                new = dict(zip(lowered, pool.map(lambda low: low.compile(), lowered.values()), strict=True))
        self.compiled |= {keys[name]: function for name, function in new.items()}
        return {name: self.compiled[key] for name, key in keys.items()}

    def parts(self, clips: int, height: int, width: int) -> int:
        """Of how many devices, each with memory of its own, the VAE takes a part for clips of a latent size. The fake
        devices of a CPU share its memory: they are one."""
        if self.mesh is None or self.mesh.devices.flat[0].platform == "cpu":
            return 1
        spec = over_frames((clips, 1, height, width), self.rules, self.mesh)
        return math.prod(ways(axis, self.mesh) for axis in spec)

    def ways(self, clips: int) -> int:
        """Between how many devices, each with memory of its own, the denoiser's pass over so many clips is split: over
        clips, where they divide, and over tokens."""
        if self.mesh is None or self.mesh.devices.flat[0].platform == "cpu":
            return 1
        batch, tokens = (ways(axis, self.mesh) for axis in (self.rules.batch, self.rules.tokens))
        return (batch if clips % batch == 0 else 1) * tokens

    def on_mesh(self):
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def _shapes(args: tuple) -> Key:
    leaves, tree = jax.tree.flatten(args)
    return (tree, *((leaf.shape, str(leaf.dtype)) for leaf in leaves))


@lru_cache(maxsize=8)
def programs(
    dit: DiTConfig, vae: VAEConfig, text: TextConfig, mesh: Mesh | None = None, rules: Rules = Rules(),
    image: ImageConfig | None = None,
) -> Programs:  # fmt: skip
    """One `Programs` for equal sizes: a pipeline of new weights finds compiled what an old one used."""
    return Programs(dit, vae, text, mesh, rules, image)
