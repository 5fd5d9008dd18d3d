"""Fine-tuning a model that is there: its denoiser whole, or adapters of low rank beside it (LoRA, Hu et al. 2021).

The text encoder is frozen; with adapters the denoiser is too, and is kept in few bits. What is frozen is an argument of
the step, on the mesh, read from the model's folder an array at a time. Checkpoints, averages and moments hold what
learns and nothing else; a run refers to the model that it started from by its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from dit_video.core.errors import BadInput
from dit_video.core.mesh import Rules, shardings
from dit_video.models.dit import DiT, DiTConfig
from dit_video.models.text import TextConfig, TextEncoder
from dit_video.nn.leaves import Adapted
from dit_video.train.conditions import Batch
from dit_video.train.denoise import Base, Denoise, LatentStream, check_trainable
from dit_video.train.experiment import Experiment
from dit_video.weights.checkpoints import Run, open_base
from dit_video.weights.folder import read
from dit_video.weights.lora import add_adapters, save_lora
from dit_video.weights.model import Model, abstract, shapes
from dit_video.weights.names import flatten, unflatten
from dit_video.weights.place import place


@dataclass(frozen=True)
class LoRA:
    """Adapters: w + alpha / rank * a b, with a of `rank` columns. `b` begins at zero, so nothing changes at first."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attn", "cross")  # parts of the names of matrices: attn, cross, q, k, v, out, up, down

    def __post_init__(self):
        if self.rank < 1 or not self.targets:
            raise BadInput(f"lora.rank={self.rank}, targets={self.targets}: rank from 1 up, and one target at least")
        if not self.alpha > 0:
            raise BadInput(f"lora.alpha={self.alpha}: must be above 0, or nothing is learnt. The rank is usual.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def paths(self, cfg: DiTConfig) -> list[str]:
        """The matrices of layers that get an adapter. Raises `BadInput` when there are none."""
        matrices = [path for path in shapes(cfg) if path.startswith("blocks/") and path.endswith("/kernel")]
        chosen = [p for p in matrices if set(p.split("/")) & set(self.targets)]
        if missing := [t for t in self.targets if not any(t in p.split("/") for p in matrices)]:
            words = sorted({word for p in matrices for word in p.split("/")} - {"blocks", "kernel"})
            raise BadInput(f"lora.targets: no matrix is called {', '.join(missing)}. There are: {', '.join(words)}.")
        return chosen


def adapters(cfg: DiTConfig, lora: LoRA, *, rngs: nnx.Rngs) -> nnx.Dict:
    """The modules that learn: under the path of each kernel `a` (layers, in, r) and `b` (layers, r, out)."""
    axes = {path: leaf.get_metadata()["axes"] for path, leaf in _variables(cfg).items()}
    flat = {}
    for path in lora.paths(cfg):
        layers, inside, outside = shapes(cfg)[path]
        a = jax.random.uniform(rngs.params(), (layers, inside, lora.rank), minval=-1.0, maxval=1.0) * inside**-0.5
        flat[f"{path}/a"] = nnx.Param(a, axes=(axes[path][0], None))
        flat[f"{path}/b"] = nnx.Param(jnp.zeros((layers, lora.rank, outside)), axes=(None, axes[path][1]))
    return _modules(unflatten(flat))


def _variables(cfg: DiTConfig) -> dict[str, Any]:
    """{path: variable of shapes}, with its metadata."""
    state = nnx.state(abstract(cfg), nnx.Param)
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def _modules(tree: Mapping[Any, Any]) -> nnx.Dict:
    return nnx.Dict({key: _modules(node) if isinstance(node, Mapping) else node for key, node in tree.items()})


def attach(params: Any, learnt: Any, scale: float) -> dict[Any, Any]:
    """The denoiser's parameters with `Adapted` leaves where there are adapters (a tree like that of `adapters`)."""
    flat, pairs = flatten(params), flatten(learnt)
    for path in {name.rpartition("/")[0] for name in pairs}:
        flat[path] = Adapted(flat[path], pairs[f"{path}/a"], pairs[f"{path}/b"], scale)
    return unflatten(flat)


@dataclass(frozen=True)
class FineTune:
    """The objective of `Denoise` on a model that `--init` names. With `lora` None all of the denoiser learns; with
    `scratch` too it begins at random, and only the text encoder and the VAE are the model's.

    `denoise.dit` and `denoise.text` give dtype, rematerialisation and attention; their sizes are the model's.
    """

    denoise: Denoise = Denoise()
    lora: LoRA | None = LoRA()
    keep: Literal["float32", "bfloat16", "int8"] = "bfloat16"  # what is frozen is kept as
    scratch: bool = False  # the denoiser begins at random

    def resolve(self, experiment: Experiment, run: Run) -> tuple["FineTune", Base]:
        """With the sizes of the model that `--init` names. Raises `BadInput` without one."""
        if experiment.init is None:
            raise BadInput("fine-tuning starts from a model: --init MODEL")
        start = open_base(experiment.init)
        check_trainable(start, experiment.init)
        dit, text = _sized(self.denoise.dit, start.dit), _sized(self.denoise.text, start.text)
        vae = read(start.params["vae"], np.float32)
        base = Base(start.vae, vae, start.tokenizer, start, experiment.prompts)
        if self.lora is not None:
            if self.scratch:
                raise BadInput("scratch: adapters stand beside a trained denoiser. Set objective.lora to none.")
            self.lora.paths(dit)
        return replace(self, denoise=replace(self.denoise, dit=dit, text=text, defaults=start.defaults)), base

    def modules(self, rules: Rules, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        if self.lora is None:
            return {"dit": DiT(self.denoise.dit, rules, rngs=rngs)}
        return {"lora": adapters(self.denoise.dit, self.lora, rngs=rngs)}

    def initial(self, base: Base) -> dict[str, Any] | None:
        whole = self.lora is None and not self.scratch
        return {"dit": read(base.start.params["dit"], np.float32)} if whole else None

    def fixed(self) -> dict[str, tuple[type, Any]]:
        """The modules that do not learn: class and config."""
        text = {"text": (TextEncoder, self.denoise.text)}
        return text if self.lora is None else {"dit": (DiT, self.denoise.dit), **text}

    def frozen(self, base: Base, mesh: Mesh, rules: Rules) -> dict[str, Any]:
        """The text encoder, and with adapters the denoiser."""
        states = {name: _abstract(kind, cfg, rules)[1] for name, (kind, cfg) in self.fixed().items()}
        return {
            name: place(base.start.params[name], shardings(state, mesh, rules), self.keep)
            for name, state in states.items()
        }

    def loss(
        self, modules: dict[str, Any], batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """As `Denoise.loss`; gradients go to what learns alone."""
        frozen = dict(modules["frozen"])
        if self.lora is not None:
            learnt = nnx.to_pure_dict(nnx.state(modules["lora"], nnx.Param))
            frozen["dit"] = attach(frozen["dit"], learnt, self.lora.scale)
        whole = {name: nnx.merge(_abstract(*self.fixed()[name], Rules())[0], frozen[name]) for name in frozen}
        return self.denoise.loss({**modules, **whole}, batch, key)

    def stream(self, experiment: Experiment, base: Base, held_out: bool) -> LatentStream:
        return self.denoise.stream(experiment, base, held_out)

    def model(self, params: dict[str, Any], base: Base) -> Model:
        """The model that was started from, with what was learnt in it."""
        start = base.start
        if self.lora is None:
            return replace(start, params=start.params | {"dit": params["dit"]}, digest="")
        merged = add_adapters(start.params["dit"], params["lora"], self.lora.scale)
        return replace(start, params=start.params | {"dit": merged}, digest="")

    def finish(self, params: dict[str, Any], experiment: Experiment, base: Base, run: Run) -> None:
        """Leaves the adapters as a file that this package, diffusers and PEFT read: `lora/` in the run."""
        if self.lora is not None:
            save_lora(run.path / "lora", params["lora"], self.denoise.dit, self.lora.scale)


def _abstract(kind: type, cfg: DiTConfig | TextConfig, rules: Rules) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: kind(cfg, rules, rngs=nnx.Rngs(0))), nnx.Param)


def _sized(how: Any, sizes: Any) -> Any:
    """The sizes of a model, computed as the experiment says."""
    if how is None:
        return sizes
    names = {"dtype", "remat", "attention"} & set(how.__dataclass_fields__)
    return replace(sizes, **{name: getattr(how, name) for name in names})
