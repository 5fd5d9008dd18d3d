"""Fine-tuning a model that is there: its denoiser whole, or adapters of low rank beside it (LoRA, Hu et al. 2021).

The text encoder is frozen; with adapters the denoiser is too, and is kept in few bits. What is frozen is an argument of
the step, on the mesh, read from the model's folder an array at a time. Checkpoints, averages and moments hold what
learns and nothing else; a run refers to the model that it started from by its name and a digest. Of two denoisers
(Wan 2.2 A14B) one is tuned, at the times at which it makes the steps; the other is the model's.
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
from dit_video.core.log import log
from dit_video.core.mesh import Rules, shardings
from dit_video.data.pool import Beat, unheard
from dit_video.models.dit import DiT, DiTConfig, flops
from dit_video.models.text import TextConfig, TextEncoder
from dit_video.nn.leaves import Adapted
from dit_video.train.conditions import Batch
from dit_video.train.denoise import Base, Denoise, LatentStream, check_trainable
from dit_video.train.experiment import Experiment
from dit_video.train.given import check_shown
from dit_video.train.sampled import say_rate
from dit_video.weights.folder import read
from dit_video.weights.lora import save_lora, tuned
from dit_video.weights.model import Model, abstract, denoiser, shapes
from dit_video.weights.names import flatten, unflatten
from dit_video.weights.place import place
from dit_video.weights.runs import Run, open_base


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

    `denoise.dit` and `denoise.text` give dtype, rematerialisation and attention; their sizes are the model's, as are
    tokenizer and defaults.
    """

    denoise: Denoise = Denoise()
    lora: LoRA | None = LoRA()
    keep: Literal["float32", "bfloat16", "int8"] = "bfloat16"  # what is frozen is kept as
    scratch: bool = False  # the denoiser begins at random
    expert: int | None = None  # of two denoisers: 1 makes the steps near noise, 2 those near data
    digest: str = ""  # of the model, filled in; a run goes on with no other

    @property
    def part(self) -> str:
        """The name in a model of the denoiser that is tuned."""
        return denoiser(self.expert)

    def resolve(self, experiment: Experiment, run: Run) -> tuple["FineTune", Base]:
        """With the sizes of the model that `--init` names. Raises `BadInput` without one, for one that is not trained,
        for an `expert` that it does not have, and for another than the checkpoints of this run started from."""
        if experiment.init is None:
            raise BadInput("fine-tuning starts from a model: --init MODEL")
        if experiment.vae is not None:
            raise BadInput(
                f"--vae {experiment.vae}: a model that is fine-tuned keeps its VAE. Leave it out, or give --init a "
                "model that has this one."
            )
        start = open_base(experiment.init)
        check_trainable(start, experiment.init)
        check_shown(self.denoise.conditions, experiment, start, experiment.init, self.scratch)
        for name, theirs in (("tokenizer", None), ("defaults", start.defaults)):
            if getattr(self.denoise, name) not in (None, theirs):
                raise BadInput(f"objective.denoise.{name}: a model that is fine-tuned keeps its own. Leave it out.")
        path, part = self.denoise.path, times_of(self.expert, start, experiment.init)
        if part != (0.0, 1.0):
            if path.part not in ((0.0, 1.0), part):
                raise BadInput(f"objective.denoise.path.part={path.part}: expert {self.expert} has the times {part}")
            path = replace(path, part=part)
        dit = sized(self.denoise.dit, getattr(start, self.part))
        text = sized(self.denoise.text, start.text)
        for bucket in experiment.buckets:
            bucket.check_latents(start.vae.stride, start.vae.factor, dit.patch)
        vae = read(start.params["vae"], np.float32)
        image = None if start.image is None else read(start.params["image"], np.float32)
        base = Base(start.vae, vae, start.tokenizer, start, experiment.prompts, start.image, image)
        if self.lora is not None:
            if self.scratch:
                raise BadInput("scratch: adapters stand beside a trained denoiser. Set objective.lora to none.")
            self.lora.paths(dit)
        rate = start.defaults.fps
        remedy = f"Give --data.fps {rate:g}; clips that were encoded are built again, with --fps {rate:g}."
        say_rate(self.denoise.shown(experiment, start.vae.stride), rate, experiment.init, remedy)
        denoise = replace(self.denoise, dit=dit, text=text, path=path, defaults=start.defaults)
        return replace(self, denoise=denoise, digest=run.check_start(start)), base

    def modules(self, rules: Rules, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        if self.lora is None:
            return {self.part: DiT(self.denoise.dit, rules, rngs=rngs)}
        return {"lora": adapters(self.denoise.dit, self.lora, rngs=rngs)}

    def initial(self, base: Base) -> dict[str, Any] | None:
        whole = self.lora is None and not self.scratch
        return {self.part: read(base.start.params[self.part], np.float32)} if whole else None

    def fixed(self) -> dict[str, tuple[type, Any]]:
        """The modules that do not learn: class and config."""
        text = {"text": (TextEncoder, self.denoise.text)}
        return text if self.lora is None else {self.part: (DiT, self.denoise.dit), **text}

    def frozen(self, base: Base, mesh: Mesh, rules: Rules) -> dict[str, Any]:
        """The text encoder, and with adapters the denoiser."""
        states = {name: _abstract(kind, cfg, rules)[1] for name, (kind, cfg) in self.fixed().items()}
        return {
            name: place(base.start.params[name], shardings(state, mesh, rules), self.keep)
            for name, state in states.items()
        }

    def loss(
        self, modules: dict[str, Any], batch: Batch, key: PRNGKeyArray, rules: Rules = Rules()
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """As `Denoise.loss`; gradients go to what learns alone."""
        frozen = dict(modules["frozen"])
        if self.lora is not None:
            learnt = nnx.to_pure_dict(nnx.state(modules["lora"], nnx.Param))
            frozen[self.part] = attach(frozen[self.part], learnt, self.lora.scale)
        whole = {name: nnx.merge(_abstract(*self.fixed()[name], rules)[0], frozen[name]) for name in frozen}
        whole = {**modules, **whole}
        return self.denoise.loss({**whole, "dit": whole[self.part]}, batch, key)

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of a step on a batch, whose arrays may be shapes: those of the denoiser, three times its forward
        pass, or twice where only adapters learn. The text encoder does not learn and is left out."""
        extra = 0 if batch.extra is None else batch.extra.latents.shape[1]
        image = 0 if batch.image is None else batch.image.shape[1]
        clips, *grid, _ = batch.latents.shape
        one = flops(self.denoise.dit, tuple(grid), batch.ids.shape[1], extra, image)
        return clips * one * (3 if self.lora is None else 2)

    def stream(self, experiment: Experiment, base: Base, held_out: bool, beat: Beat = unheard) -> LatentStream:
        return self.denoise.stream(experiment, base, held_out, beat)

    def model(self, params: dict[str, Any], base: Base) -> Model:
        """The model that was started from, with what was learnt in it."""
        scale = None if self.lora is None else self.lora.scale
        return tuned(base.start, self.part, params, scale, self.scratch and bool(self.denoise.conditions.known()))

    def finish(self, params: dict[str, Any], experiment: Experiment, base: Base, run: Run) -> None:
        """Leaves the adapters as a file that this package, diffusers and PEFT read: `lora/` in the run. It names one
        denoiser, as all of them do; for a second one that is said where it is loaded."""
        if self.lora is not None:
            save_lora(run.path / "lora", params["lora"], self.denoise.dit, self.lora.scale)
            if self.part == "dit_2":
                log.info(
                    "the adapters are the second denoiser's: generate --lora %s@2; in diffusers load_lora_weights(..., "
                    "load_into_transformer_2=True)", run.path / "lora",
                )  # fmt: skip


def times_of(expert: int | None, start: Model, name: str) -> tuple[float, float]:
    """The flow times at which a denoiser makes the steps. Raises `BadInput` for an `expert` that is not there, and when
    there are two and none is named."""
    if start.dit_2 is not None and start.boundary is None:
        raise BadInput(f"{name} has two denoisers and no boundary_ratio, the time at which they change places")
    if start.dit_2 is None:
        if expert is not None:
            raise BadInput(f"objective.expert={expert}: {name} has one denoiser. Leave it out.")
        return 0.0, 1.0
    if expert not in (1, 2):
        raise BadInput(
            f"{name} has two denoisers and one is tuned at a time. Give --objective.expert 1 (times from "
            f"{start.boundary} up, near noise: layout and motion) or 2 (below: detail)."
        )
    return (start.boundary, 1.0) if expert == 1 else (0.0, start.boundary)


def _abstract(kind: type, cfg: DiTConfig | TextConfig, rules: Rules) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: kind(cfg, rules, rngs=nnx.Rngs(0))), nnx.Param)


def sized(how: Any, sizes: Any) -> Any:
    """The sizes of a model, computed as the experiment says."""
    if how is None:
        return sizes
    names = {"dtype", "remat", "attention"} & set(how.__dataclass_fields__)
    return replace(sizes, **{name: getattr(how, name) for name in names})
