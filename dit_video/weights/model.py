"""A model as one value: configs, parameters, tokenizer, and how it wants to be sampled."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_video.models.dit import DiT, DiTConfig
from dit_video.models.image_encoder import ImageConfig, ImageEncoder
from dit_video.models.text import TextConfig, TextEncoder
from dit_video.models.tokenizer import Tokenizer
from dit_video.models.vae import VAE, VAEConfig
from dit_video.weights.names import flatten

Config = DiTConfig | VAEConfig | TextConfig | ImageConfig


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
    guidance_2: float | None = None  # of the second expert; None: as `guidance`
    shift: float | None = None  # of the flow; None: as the scheduler says
    solver: str = "unipc"
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (80, 48), (48, 80))
    # What may be known of a clip: its first frame, pictures elsewhere, a tail that it goes on from, the clip's first
    # latent carried along, and (mask) any positions, which a time per token allows and training does not show. Empty
    # for a model without a time per token.
    conditions: tuple[str, ...] = ("first", "picture", "tail", "sink", "mask")
    cache: tuple[tuple[float, float, float], ...] = ()  # rows of diffusion.cache.Curve, where it was measured


@dataclass(frozen=True)
class Model:
    """All of a model. `params` has "dit", "vae" and "text" (and "dit_2", "image" where there are such parts): nested
    dicts of arrays, as `nnx.to_pure_dict` gives them.

    `scheduler` is the content of diffusers' `scheduler_config.json`. `name` says where it was read from, `digest`
    (12 hex digits, empty for a model that was not read from a folder with a manifest) which weights it has.
    `pipeline` is the class that diffusers opens it with. With `expand_timesteps` a given first frame is a known latent
    frame (time zero), without it further channels of the input. With two experts, `dit` is used at flow times from
    `boundary` up and `dit_2` below.
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
    pipeline: str = "WanPipeline"
    expand_timesteps: bool = True
    boundary: float | None = None
    dit_2: DiTConfig | None = None
    image: ImageConfig | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """The config of every part that there is."""
        parts = {name: getattr(self, name) for name in ("dit", "dit_2", "vae", "text", "image")}
        return {name: cfg for name, cfg in parts.items() if cfg is not None}

    def module(self, part: str) -> nnx.Module:
        """The module of a part with its parameters in it, on the default device."""
        graph, state = nnx.split(abstract(getattr(self, part)))
        nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, self.params[part]))
        return nnx.merge(graph, state)


def denoiser(expert: int | None) -> str:
    """The name among `Model.params` of the only denoiser (None), of the first of two (1) or of the second (2)."""
    return "dit_2" if expert == 2 else "dit"


@lru_cache(maxsize=8)
def abstract(cfg: Config) -> nnx.Module:
    """The module of a config with shapes in place of arrays: nothing is computed. Do not change it: it is shared."""
    kind = {DiTConfig: DiT, VAEConfig: VAE, TextConfig: TextEncoder, ImageConfig: ImageEncoder}[type(cfg)]
    return nnx.eval_shape(lambda: kind(cfg, rngs=nnx.Rngs(0)))


def shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters that a config wants."""
    return {path: leaf.shape for path, leaf in flatten(nnx.to_pure_dict(nnx.state(abstract(cfg), nnx.Param))).items()}


def weight_dtype(path: str, dtype: Any) -> np.dtype:
    """What a weight is kept as when the matrices are kept as `dtype`: biases, scales, tables and the embedding of time
    stay in float32 under a shorter one. They are small, and the reference keeps most of them so."""
    matrix = path.endswith(("kernel", "embedding")) and not {"time_in", "time_out"} & set(path.split("/"))
    return np.dtype(dtype) if matrix or np.dtype(dtype).itemsize >= 4 else np.dtype(np.float32)


def scheduler(shift: float) -> dict[str, Any]:
    """`scheduler_config.json` for a flow of this shift, as the Wan pipelines have it."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
        "solver_order": 2,
        "solver_type": "bh2",
        "final_sigmas_type": "zero",
    }
