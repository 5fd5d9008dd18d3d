"""Training state on disk: Orbax checkpoints with checksums of our own, and the run folder around them.

Orbax returns bit-rotted data without an error and does not fall back from a broken latest step, so every array's
checksum is stored beside it, and a checkpoint that does not load or does not agree is left for the one before it.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dit_video.core.config import from_dict, to_dict
from dit_video.core.errors import BadInput, DitVideoError, MissingError, Partial
from dit_video.core.files import replacing
from dit_video.core.log import log
from dit_video.data.store import is_address
from dit_video.models.tokenizer import Tokenizer
from dit_video.models.vae import VAEConfig
from dit_video.weights import names_vae
from dit_video.weights.find import INDEX, find_model
from dit_video.weights.folder import PARTS, load_model, open_model, read_part
from dit_video.weights.model import Defaults, Model, denoiser, scheduler
from dit_video.weights.names import keys_of, to_foreign, unflatten
from dit_video.weights.sums import checksums, fingerprint

SEPARATOR = "/"
MOST = 64  # steps that processes tell each other


def flatten(tree: Any) -> dict[str, Any]:
    """One level: `{"params/dit/blocks/up/kernel": array}`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {SEPARATOR.join(keys_of(path)): leaf for path, leaf in leaves}


def _digest(about: Mapping[str, Any]) -> str:
    """Of plain data, as it is after a way through JSON."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(about)), sort_keys=True).encode()).hexdigest()


class Broken(DitVideoError):
    """A checkpoint that does not load, or whose arrays are not those that were saved."""


class Checkpoints:
    """Steps of a run, the newest `keep` and multiples of `every`; None to read them, which removes nothing.
    Saving is asynchronous; a copy is taken before it returns. All processes of a run call the same functions and use
    the same steps: what one of them cannot read is broken for every one. A reader is its process's own.

    A save that fails, on a full disk say, is told in the log and leaves the others as they are.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int | None = None, every: int = 0):
        import orbax.checkpoint as ocp

        self.path, self.keep, self.every, self.ocp = Path(path).absolute(), keep, every, ocp
        self.damaged: set[int] = set()  # steps that `latest` could not use
        self.together = keep is not None and jax.process_count() > 1
        self._open()

    def _open(self) -> None:
        # What an unfinished save has left goes, too.
        clean = self.keep is not None
        stays = {"max_to_keep": self.keep, "keep_period": self.every or None}
        options = self.ocp.CheckpointManagerOptions(**stays, cleanup_tmp_directories=clean)
        if not self.together and jax.process_count() > 1:
            here = jax.process_index()
            options.create = False  # it would wait for the others
            options.multiprocessing_options = self.ocp.options.MultiprocessingOptions(here, {here}, f"process {here}")
        self.manager = self.ocp.CheckpointManager(self.path, options=options, item_names=("state", "about"))

    def steps(self) -> list[int]:
        """Steps that were written to the end, by what stands on the disk."""
        self.manager.reload()
        return sorted(int(s) for s in self.manager.all_steps())

    def _known(self) -> list[int]:
        """The steps that every process finds, of the newest."""
        if not self.together:
            return self.steps()
        found = multihost_utils.process_allgather(np.resize(np.int32([*reversed(self.steps()), *[-1] * MOST]), MOST))
        return sorted(set.intersection(*(set(row) for row in np.asarray(found).tolist())) - {-1})

    def save(self, step: int, state: Any, about: dict[str, Any], wait: bool = False) -> None:
        """Saves a tree of arrays and plain data about it. A step that is there already stays as it is.

        `wait` says that it is the last save: raises `Partial` when the step is not there in the end.
        """
        self.settle()
        if step not in self.manager.all_steps():
            flat = flatten(state)
            if jax.default_backend() == "cpu":
                # The next step is given the state's own buffers to write into, and here Orbax writes from them. From an
                # accelerator it has copied them to the host when `save` comes back.
                flat = jax.tree.map(jnp.copy, flat)
            sums = checksums(flat)
            shapes = {name: list(x.shape) for name, x in flat.items()}
            about = about | {"step": step, "checksums": sums, "shapes": shapes}
            about |= {"sha256": _digest(about)}
            args = self.ocp.args
            args = args.Composite(state=args.PyTreeSave(flat), about=args.JsonSave(about))
            with self._surviving():
                self.manager.save(step, args=args, force=True)
        if wait:
            self.settle()
            if step not in self.steps():
                raise Partial(
                    f"step {step} could not be saved in {self}; the log says why. Make room; the same command goes on "
                    "from the newest step."
                )

    def settle(self) -> None:
        """Waits for what is being written."""
        with self._surviving():
            self.manager.wait_until_finished()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if jax.process_count() > 1:  # the others wait for this one, and all go on from the last checkpoint
                raise
            with suppress(Exception):
                self.manager.close()
            self._open()
            why = (str(error) or type(error).__name__).splitlines()[0]
            log.error("a checkpoint could not be saved: %s. Those of %s stay; the next save tries again", why, self)

    def __str__(self) -> str:
        return f"{self.path} (steps: {', '.join(map(str, self.steps())) or 'none'})"

    def about(self, step: int) -> dict[str, Any]:
        """The plain data of a step. Raises `Broken`, also where it is not what was saved."""
        found = dict(self._read(step, "about", self.ocp.JsonCheckpointHandler(), self.ocp.args.JsonRestore()))
        told = found.pop("sha256", None)  # None: older checkpoints have none
        if told != _digest(found) if told else not {"step", "checksums", "shapes"} <= set(found):
            raise Broken(f"step {step} of {self.path} is damaged: what is told about it lacks its checksum")
        return found

    def _read(self, step: int, item: str, handler: Any, args: Any) -> Any:
        """An item of a step, by its handler: the manager's own way ends at a barrier, where those that have read wait
        for one that could not."""
        found = failure = None
        try:
            found = handler.restore(self.path / str(step) / item, args=args)
        except Exception as error:
            failure = error
        failed = np.array(failure is not None)
        if np.any(multihost_utils.process_allgather(failed) if self.together else failed):
            raise Broken(f"step {step} of {self.path} cannot be read: {failure or 'by another process'}") from failure
        return found

    def restore(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Some or all arrays of a step, laid out by the shardings in `wanted`; NumPy's where that has none. Raises
        `Broken` when they do not load or when a checksum disagrees."""
        args, about = self.ocp.args, self.about(step)
        how = self.ocp.checkpoint_utils.construct_restore_args(dict(wanted))
        arrays = args.PyTreeRestore(dict(wanted), restore_args=how, partial_restore=True)
        flat = dict(self._read(step, "state", self.ocp.PyTreeCheckpointHandler(), arrays))
        wrong = [name for name, x in checksums(flat).items() if x != about["checksums"].get(name)]
        if wrong:
            raise Broken(
                f"step {step} of {self.path} is damaged: {wrong[0]} and {len(wrong) - 1} more lack their checksum"
            )
        return flat

    def latest(
        self, use: Callable[[int], Any], step: int | None = None, before: int | None = None
    ) -> tuple[int, Any] | None:
        """`(step, use(step))` for the newest step that is not broken, each broken one named in the log; None when there
        is no checkpoint. With `step` that one and no other, with `before` only older ones than that. Raises `Broken`
        when there are some and none is whole."""
        self.settle()
        steps = [s for s in self._known() if before is None or s < before]
        if step is not None:
            if step not in steps:
                raise BadInput(f"{self.path} has no step {step}. It has {', '.join(map(str, steps)) or 'none'}.")
            steps = [step]
        for candidate in reversed(steps):
            try:
                return candidate, use(candidate)
            except Broken as error:
                if step is not None:
                    raise
                self.damaged.add(candidate)
                log.warning("%s; trying the one before", error)
        if steps:
            raise Broken(f"{self.path}: none of the steps {', '.join(map(str, steps))} can be read")
        return None

    def forget_after(self, step: int) -> None:
        """Removes the steps beyond `step`: a run that goes on from an earlier step makes them anew. Those that `latest`
        found damaged keep their files, under a name that says so."""
        self.settle()
        for later in [s for s in self._known() if s > step]:
            if later not in self.damaged:
                log.info("removing step %d: the run goes on from step %d", later, step)
                self.manager.delete(later)
                continue
            aside = self.path / f"{later}.damaged.{time.time_ns()}"
            if jax.process_index() == 0:
                log.warning("step %d is damaged; its files are now %s", later, aside)
                (self.path / str(later)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("steps were forgotten")
        self.manager.reload()

    def close(self) -> None:
        """Waits for what is being written."""
        self.settle()
        self.manager.close()


class Run:
    """A run folder: experiment.json, metrics.jsonl, checkpoints/, samples/, and what was trained against (vae/,
    tokenizer/), so that it can be generated with by itself."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @classmethod
    def is_run(cls, path: str | os.PathLike[str]) -> bool:
        return (Path(path) / "experiment.json").is_file()

    def create(self) -> None:
        """Makes the folder. Raises `BadInput` when it cannot be written."""
        try:
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--workdir {self.path} cannot be written: {error.strerror}") from error

    def put_aside(self) -> None:
        """Renames what an earlier run left in the same folder to `*.1`, `*.2`, ..."""
        kept = ("checkpoints", "metrics.jsonl", "tensorboard", "samples", "experiment.json", "vae", "tokenizer", "lora")
        for name in kept:
            old = self.path / name
            if old.exists():
                number = next(n for n in range(1, 10_000) if not (self.path / f"{name}.{n}").exists())
                old.rename(self.path / f"{name}.{number}")

    def checkpoints(self, keep: int | None = None, every: int = 0) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", keep, every)

    def save_experiment(self, experiment: Any) -> None:
        text = json.dumps(to_dict(experiment), indent=1)
        with replacing(self.path / "experiment.json") as partial:
            partial.write_text(text + "\n")

    def experiment(self) -> dict[str, Any] | None:
        """The plain data of experiment.json, or None for a new run. Raises `BadInput` when it cannot be read."""
        file = self.path / "experiment.json"
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise BadInput(f"{file} cannot be read: {error}. Use another --workdir.") from error

    def resolved(self, name: str) -> Any:
        """A field of the stored objective, as an object; None when there is none."""
        data = (self.experiment() or {}).get("objective", {}).get(name)
        return None if data is None else from_dict(data)

    def check_start(self, start: Model) -> str:
        """The digest of a model that a fine-tuning starts from; of one whose files tell none that of its weights.
        Raises `BadInput` when the checkpoints that are here started from another."""
        digest = start.digest or fingerprint(start.params)
        told = self.experiment() if self.has_checkpoint() else None
        if told and "denoise" in told["objective"]:
            began = told["objective"].get("digest", "")  # runs of earlier versions have the name alone
            same = began == digest if began else told["init"] == start.name
            if not same:
                raise BadInput(
                    f"{self.path} started from {told['init']} ({began or 'digest unknown'}), and {start.name} has "
                    f"other weights ({digest}), in which what was learnt means nothing. Give the model that it started "
                    f"from (`init` in {self.path / 'experiment.json'} says where that is), or another --workdir."
                )
        return digest

    def has_base(self) -> bool:
        return (self.path / "tokenizer").is_dir() and (self.path / "vae" / "config.json").is_file()

    def has_checkpoint(self) -> bool:
        folder = self.path / "checkpoints"
        return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())

    def save_base(self, vae: VAEConfig, params: Any, tokenizer: Tokenizer) -> None:
        """Keeps the frozen VAE and the tokenizer."""
        tokenizer.save(self.path / "tokenizer")
        save_vae(self.path / "vae", vae, params)

    def load_base(self) -> tuple[VAEConfig, Any, Tokenizer]:
        config, params = read_vae(self.path / "vae")
        return config, params, Tokenizer.from_folder(self.path / "tokenizer")


def save_vae(folder: Path, config: VAEConfig, params: Any) -> None:
    """The VAE's folder of the diffusers layout. Appears whole or not at all."""
    from safetensors.numpy import save_file

    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = to_foreign(names_vae.VAE_NAMES, flatten(jax.device_get(params)))
    # The writer of safetensors scrambles arrays that are not contiguous, without a word.
    tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
    save_file(tensors, temporary / PARTS["vae"][1], metadata={"format": "pt"})
    (temporary / "config.json").write_text(json.dumps(names_vae.to_diffusers(config), indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def read_vae(folder: Path) -> tuple[VAEConfig, Any]:
    """The inverse of `save_vae`, on the host. Raises `MissingError`, `BadInput` and `NonFinite` as `read_part` does."""
    if not (folder / "config.json").is_file():
        raise MissingError(f"{folder} holds no VAE: it has no config.json")
    try:
        config = names_vae.from_diffusers(json.loads((folder / "config.json").read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / 'config.json'} is not the config of a VAE: {error!r}") from None
    return config, read_part(folder, config)


def choose_ema(decays: list[float], wanted: str | float | None) -> str:
    """The name in a checkpoint of the weights that are meant: None the longest average, `"none"` those that are
    trained, else the average of that decay. Raises `BadInput` with those that there are."""
    if wanted is None:
        return f"ema{SEPARATOR}{decays.index(max(decays))}"
    if wanted == "none":
        return "params"
    try:
        return f"ema{SEPARATOR}{decays.index(float(wanted))}"
    except ValueError:
        raise BadInput(f"ema={wanted}: this run has {', '.join(map(str, decays))}, and 'none'") from None


def load_params(
    path: str | os.PathLike[str], ema: str | float | None = None, step: int | None = None
) -> tuple[int, Any]:
    """(step, parameters) of a run on the host: `{"dit": ..., "text": ...}` or `{"vae": ...}`."""
    run = Run(path)
    experiment = run.experiment()
    if experiment is None:
        raise MissingError(f"{path} is not a run: it has no experiment.json")
    prefix = choose_ema(list(experiment["ema"]), ema) + SEPARATOR
    checkpoints = run.checkpoints()

    def use(candidate: int) -> Any:
        shapes = checkpoints.about(candidate)["shapes"]
        wanted = {name: jax.ShapeDtypeStruct(x, np.float32) for name, x in shapes.items() if name.startswith(prefix)}
        flat = checkpoints.restore(candidate, wanted)
        return unflatten({name.removeprefix(prefix): x for name, x in flat.items()})

    found = checkpoints.latest(use, step)
    checkpoints.close()
    if found is None:
        raise MissingError(
            f"{path} has no checkpoint yet: train for {experiment['checkpoint_every']} steps, or stop it once"
        )
    return found


def load_run(path: str | os.PathLike[str], ema: str | float | None = None, step: int | None = None) -> Model:
    """The model of a denoiser's run, with averaged weights. `ema` as in `choose_ema`; `step`: not the newest one.

    Raises `MissingError` when the folder is no run or has no checkpoint, `BadInput` for a run of a VAE.
    """
    run = Run(path)
    if "denoise" in (run.experiment() or {}).get("objective", {}):
        return _load_tuned(run, ema, step)
    dit, text = run.resolved("dit"), run.resolved("text")
    if run.experiment() is not None and (dit is None or text is None):
        raise BadInput(f"{path} is a run of a VAE: give it to --vae; a video needs a run of a denoiser")
    found, params = load_params(path, ema, step)
    log.debug("%s: step %d", path, found)
    vae, vae_params, tokenizer = run.load_base()
    return Model(
        dit=dit,
        vae=vae,
        text=text,
        params={"dit": params["dit"], "vae": vae_params, "text": params["text"]},
        tokenizer=tokenizer,
        scheduler=scheduler(run.resolved("path").shift),
        defaults=run.resolved("defaults") or Defaults(),
        name=str(path),
    )


def open_base(name: str | os.PathLike[str] | None) -> Model:
    """A model by name: a folder's weights are not read yet (see `open_model`), a run's are."""
    if name is not None:
        folder = find_model(name) if is_address(name) else Path(name).expanduser()
        if Run.is_run(folder) and not (folder / INDEX).is_file():
            return load_run(folder)
    return open_model(name)


def _load_tuned(run: Run, ema: str | float | None, step: int | None) -> Model:
    """The model that a fine-tuning run started from, with what was learnt in it."""
    from dit_video.weights.lora import tuned

    experiment, (_, params) = run.experiment(), load_params(run.path, ema, step)
    objective = experiment["objective"]
    lora, shown = objective["lora"], from_dict(objective["denoise"]["conditions"])
    scale = None if lora is None else lora["alpha"] / lora["rank"]
    known = objective.get("scratch", False) and bool(shown.known())
    try:
        start = open_base(experiment["init"])
    except (BadInput, MissingError) as error:
        raise type(error)(
            f"{run.path} was tuned from a model that cannot be opened: {error} Where it is now may be written as "
            f"`init` into {run.path / 'experiment.json'}."
        ) from None
    run.check_start(start)
    return replace(tuned(start, denoiser(objective.get("expert")), params, scale, known), name=str(run.path))


def load_vae(name: str | None) -> tuple[VAEConfig, Any]:
    """The VAE of a model, of a run of either kind, or of a folder with nothing but `vae/`; None and "board": that of
    the weights on board. Raises as `load_model`."""
    for folder in () if name is None else (Path(name) / "vae", Path(name)):
        if (folder / "config.json").is_file():
            return read_vae(folder)
    if name is not None and Run.is_run(name):  # a VAE's run that has not come to its end
        return Run(name).resolved("vae"), load_params(name)[1]["vae"]
    model = load_model(name)
    return model.vae, model.params["vae"]


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a folder that holds one, of a model or a run, or ("board") of the weights on board."""
    for folder in (Path(name) / "tokenizer", Path(name)):
        if any((folder / file).is_file() for file in ("tokenizer.json", "spiece.model")):
            return Tokenizer.from_folder(folder)
    return load_model(name).tokenizer
