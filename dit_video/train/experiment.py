"""An experiment: everything that defines a run, as one frozen constant that is stored beside its checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from dit_video.core.mesh import MeshShape, Rules, batch_part, make_mesh, ways
from dit_video.data.buckets import Bucket
from dit_video.data.loader import Source
from dit_video.data.pool import Beat
from dit_video.train.optim import Optimizer

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


class Stream(Protocol):
    """Batches for ever. `state` is small plain data from which `restore` goes on with the very same batches."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...  # a pytree of NumPy arrays: this process's part of the batch
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class Objective(Protocol):
    """What is learnt: a frozen dataclass of its own settings, without arrays (`Denoise`, `Reconstruct`)."""

    def resolve(self, experiment: "Experiment", run: Any) -> tuple["Objective", Any]:
        """Fills in what the settings leave open, and loads or makes what the run stands on but does not learn
        (its frozen VAE, its tokenizer). `run` is a `weights.runs.Run`. Returns the objective and the base."""
        ...

    def modules(self, rules: Rules, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """What is trained, under the names that `Model.params` has."""
        ...

    def frozen(self, base: Any, mesh: Mesh, rules: Rules) -> Any:
        """A tree of arrays, on the mesh, that the loss uses and that are not learnt; None where there are none."""
        ...

    def loss(
        self, modules: dict[str, Any], batch: Any, key: PRNGKeyArray, rules: Rules
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Scalar loss in float32 and scalar metrics; pure, traced inside the step. What is frozen stands in `modules`
        under that name, as arrays; `rules` are for modules that are made of these."""
        ...

    def stream(self, experiment: "Experiment", base: Any, held_out: bool, beat: Beat) -> Stream:
        """The batches of this process, as many clips as its part has (see `Experiment.part`). `beat` is called
        whenever a piece of a batch that takes long is done."""
        ...

    def initial(self, base: Any) -> dict[str, Any] | None:
        """Parameters to start from instead of random ones (`--init`), or None."""
        ...

    def model(self, params: dict[str, Any], base: Any) -> Any:
        """What samples are made from: a `weights.model.Model` with these parameters, or, of a VAE, a module."""
        ...

    def finish(self, params: dict[str, Any], experiment: "Experiment", base: Any, run: Any) -> None:
        """After the last step, with the longest average: what a run leaves besides its checkpoints (a VAE measures the
        mean and std of its latents and writes `vae/` with `weights.runs.save_vae`)."""
        ...


@dataclass(frozen=True)
class Experiment:
    """A run. `EXPERIMENT` in a file of `experiments/` is one of these; a command line overrides any field of it."""

    objective: Objective
    data: Source
    buckets: tuple[Bucket, ...] = (Bucket(33, 64, 64),)
    optimizer: Optimizer = Optimizer()
    steps: int = 1000
    batch: int = 32  # clips a step, over all devices
    accumulate: int = 1  # the batch is run in so many parts, one after the other
    seed: int = 0
    ema: tuple[float, ...] = (0.99, 0.999)  # decays of the averaged weights; which to use is chosen after
    init: str | None = None  # a model or a run whose weights this one starts from, with a fresh optimizer; "board" too
    vae: str | None = None  # a model or a run whose VAE the denoiser is trained against; None: that of `init`
    checkpoint_every: int = 500
    patience: int = 8  # steps in a row without a finite loss and gradient, after which a run goes back to a checkpoint
    rollbacks: int = 3  # how often it does without getting further before it ends; 0: it ends at once
    keep: int = 3  # checkpoints that stay; at least two, so that there is one to fall back to
    keep_every: int = 0  # and those of every so many steps, for good; 0: none
    eval_every: int = 250  # held-out loss
    eval_batches: int = 4
    sample_every: int = 500  # 0: never
    prompts: tuple[str, ...] = ()  # what the samples show
    log_every: int = 20
    hang_after: float = 3600.0  # seconds without a batch, step or save that end a process with 124; 0: never
    cores: bool = False  # on a CPU, `dit-video train` makes each core a device: faster for a small model
    # JAX's name, of a step: `bfloat16` rounds the factors of float32 matrix products, which is faster on accelerators
    # and on a CPU with AMX. None: as JAX is told.
    matmul_precision: str | None = None
    mesh: MeshShape = MeshShape()
    rules: Rules = Rules()

    def check(self) -> "Experiment":
        """Raises `BadInput` for numbers that cannot be right, naming the field."""
        from dit_video.core.errors import BadInput

        counts = ("steps", "batch", "accumulate", "checkpoint_every", "log_every", "eval_every", "eval_batches")
        for name in (*counts, "patience"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: must be at least 1")
        if self.batch % self.accumulate:
            raise BadInput(f"batch={self.batch} does not divide into accumulate={self.accumulate} equal parts")
        if self.keep < 2:
            raise BadInput(f"keep={self.keep}: at least 2, so that a broken checkpoint has one before it")
        if self.keep_every < 0 or self.keep_every % self.checkpoint_every:
            told = f"checkpoint_every={self.checkpoint_every}"
            raise BadInput(f"keep_every={self.keep_every}: a multiple of {told}, or 0")
        if self.batch % (parts := self.part()[1]):
            raise BadInput(f"batch={self.batch} does not divide into the {parts} parts that the processes bring")
        if not self.ema or any(not 0 <= d < 1 for d in self.ema):
            raise BadInput(f"ema={self.ema}: decays lie in [0, 1), and there is at least one")
        if self.matmul_precision not in (None, *PRECISIONS):
            raise BadInput(f"matmul_precision={self.matmul_precision!r}: choose one of {', '.join(PRECISIONS)}")
        if not self.buckets:
            raise BadInput("buckets: at least one is needed")
        for bucket in self.buckets:
            bucket.check()
        return self

    def part(self) -> tuple[int, int]:
        """Which part of every batch this process brings, and how many parts there are."""
        if jax.process_count() == 1:
            return 0, 1
        return batch_part(make_mesh(self.mesh), self.rules, jax.process_index())

    def clips_together(self) -> int:
        """Of what a process brings to a step the clips are a multiple of this: every part of the batch that is run at
        once has as many on each device."""
        devices = ways(self.rules.batch, self.mesh.abstract(jax.device_count()))
        return self.accumulate * devices // self.part()[1]

    def fits(self, devices: int) -> bool:
        """Whether the mesh and the batch can be had on so many devices."""
        from dit_video.core.errors import BadInput

        try:
            mesh = self.mesh.abstract(devices)
        except BadInput:
            return False
        return self.batch % (self.accumulate * ways(self.rules.batch, mesh)) == 0
