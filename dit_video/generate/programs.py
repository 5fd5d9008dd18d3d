"""What is compiled: a model as pure functions of weights and arrays. Four programs make a video.

`begin` (prompt to keys and values, noise to the first carry), `advance` (one step with guidance, its times as
arguments, so any number of steps and any scale is one program), `decode` (latents to pixels), and with an image
`encode`. They are compiled ahead, at the same time, and kept for every pipeline with the same sizes.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from dit_video.core.mesh import Rules
from dit_video.core.types import Latent, Time
from dit_video.diffusion.flow import Output, VelocityOutput
from dit_video.diffusion.guidance import guided, in_one_batch
from dit_video.diffusion.known import known
from dit_video.diffusion.sample import start, step_function
from dit_video.diffusion.schedule import Instant
from dit_video.diffusion.solvers import Carry, Solver
from dit_video.models.dit import Context, DiT, DiTConfig
from dit_video.models.text import TextConfig, TextEncoder
from dit_video.models.vae import VAE, VAEConfig
from dit_video.weights.model import abstract

Weights = Any  # nested dicts of arrays
Key = tuple[Any, ...]


def to_pixels(video: Float[Array, "B T H W 3"]) -> UInt8[Array, "B T H W 3"]:
    """[-1, 1] to 0..255."""
    return jnp.clip(jnp.round((video + 1) * 127.5), 0, 255).astype(jnp.uint8)


class Programs:
    """The functions of one set of sizes, and what was compiled of them."""

    def __init__(self, dit: DiTConfig, vae: VAEConfig, text: TextConfig, mesh: Mesh | None, rules: Rules):
        self.configs, self.mesh, self.rules = (
            {"dit": (DiT, dit), "vae": (VAE, vae), "text": (TextEncoder, text)},
            mesh,
            rules,
        )
        self.output: Output = VelocityOutput()
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

    def begin(self, solver: Solver) -> Callable:
        """(dit, text, ids, length, noise) -> (context, carry): what does not depend on time, once a run."""

        def begin(
            dit: Weights, text: Weights, ids: Int[Array, "N S"], length: Int[Array, "N"], noise: Latent
        ) -> tuple[Context, Carry]:
            return self.module("dit", dit).context(self.module("text", text)(ids, length)), start(noise, solver)

        return begin

    def decode(self, vae: Weights, latents: Latent) -> tuple[UInt8[Array, "B T H W 3"], Bool[Array, ""]]:
        """Pixels, and whether they were finite."""
        module = self.module("vae", vae)
        video = module.decode(module.denormalize(latents))
        return to_pixels(video), jnp.isfinite(video).all()

    def decode_stream(self, vae: Weights, latents: Latent) -> tuple[np.ndarray, bool]:
        """As `decode`, in pieces along time: memory does not grow with the length. Compiled on the way."""
        module = self.module("vae", vae)
        pieces = [np.asarray(piece) for piece in module.decode_stream(module.denormalize(jnp.asarray(latents)))]
        video = np.concatenate(pieces, axis=1)
        pixels = np.clip(np.round((video + 1) * 127.5), 0, 255)
        return pixels.astype(np.uint8), bool(np.isfinite(video).all())

    def encode(self, vae: Weights, pixels: UInt8[Array, "B T H W 3"]) -> Latent:
        """Normalised latents: the mean of the encoder's distribution."""
        module = self.module("vae", vae)
        return module.normalize(module.encode(pixels.astype(jnp.float32) / 127.5 - 1)[0])

    def advance(self, solver: Solver, with_guidance: bool, with_known: bool) -> Callable:
        """One step: (weights, carry, now, then, context, scale, clean, mask) -> (carry, finite).

        With guidance, `context` holds the prompts and then the negative prompts, and both are one batch. `clean` and
        `mask` are of what is known, or None.
        """

        def step(
            dit: Weights, carry: Carry, now: Instant, then: Instant, context: Context, scale: Float[Array, ""],
            clean: Latent | None, mask: Bool[Array, "B T H W"] | None,
        ) -> tuple[Carry, Bool[Array, ""]]:  # fmt: skip
            module = self.module("dit", dit)

            def velocity(x: Latent, time: Time, memory: Any) -> tuple[Latent, Any]:
                return self.output.velocity(module(x, time, context), x, time), memory

            field = in_one_batch(velocity) if with_guidance else velocity
            if with_known:
                field = known(field, clean, mask)
            if with_guidance:
                field = guided(field, scale)
            return step_function(field, solver)(carry, now, then)

        return step

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

    def on_mesh(self):
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def _shapes(args: tuple) -> Key:
    leaves, tree = jax.tree.flatten(args)
    return (tree, *((leaf.shape, str(leaf.dtype)) for leaf in leaves))


@lru_cache(maxsize=8)
def programs(
    dit: DiTConfig, vae: VAEConfig, text: TextConfig, mesh: Mesh | None = None, rules: Rules = Rules()
) -> Programs:
    """One `Programs` for equal sizes: a pipeline of new weights finds compiled what an old one used."""
    return Programs(dit, vae, text, mesh, rules)
