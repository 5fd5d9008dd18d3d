"""A model as one value: configs, parameters, tokenizer, and how it wants to be sampled."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_video.core.errors import NonFinite
from dit_video.models.dit import DiT, DiTConfig
from dit_video.models.text import TextConfig, TextEncoder
from dit_video.models.tokenizer import Tokenizer
from dit_video.models.vae import VAE, VAEConfig
from dit_video.weights.names import flatten

Config = DiTConfig | VAEConfig | TextConfig


@dataclass(frozen=True)
class Defaults:
    """What `generate` takes when it is not told otherwise. Sizes are (height, width) that the model was trained at."""

    height: int = 64
    width: int = 64
    num_frames: int = 17
    max_frames: int = 33  # the longest clip that training showed
    fps: float = 8.0
    steps: int = 20
    guidance: float = 4.0
    solver: str = "unipc"
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (80, 48), (48, 80))


@dataclass(frozen=True)
class Model:
    """All of a model. `params` has "dit", "vae" and "text": nested dicts of arrays, as `nnx.to_pure_dict` gives them.

    `scheduler` is the content of diffusers' `scheduler_config.json`. `name` says where it was read from, `digest`
    (12 hex digits, empty for a model that was not read from a folder with a manifest) which weights it has.
    """

    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    scheduler: dict[str, Any] = field(default_factory=dict)
    defaults: Defaults = Defaults()
    name: str = ""
    digest: str = ""

    def module(self, part: str) -> nnx.Module:
        """The module "dit", "vae" or "text" with its parameters in it, on the default device."""
        graph, state = nnx.split(abstract(getattr(self, part)))
        nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, self.params[part]))
        return nnx.merge(graph, state)


@lru_cache(maxsize=8)
def abstract(cfg: Config) -> nnx.Module:
    """The module of a config with shapes in place of arrays: nothing is computed. Do not change it: it is shared."""
    kind = {DiTConfig: DiT, VAEConfig: VAE, TextConfig: TextEncoder}[type(cfg)]
    return nnx.eval_shape(lambda: kind(cfg, rngs=nnx.Rngs(0)))


def shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters that a config wants."""
    return {path: leaf.shape for path, leaf in flatten(nnx.to_pure_dict(nnx.state(abstract(cfg), nnx.Param))).items()}


def check_finite(arrays: dict[str, Any], what: str) -> None:
    """Raises `NonFinite` that names the first arrays with NaN or infinity in them."""
    bad = [path for path, array in arrays.items() if not np.isfinite(np.asarray(array, np.float32)).all()]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise NonFinite(f"{what}: NaN or infinity in {', '.join(bad[:5])}{more}. These weights cannot be used.")
