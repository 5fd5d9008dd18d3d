"""The folder of a run, and what can be opened by a name: a run as a model, a VAE, a tokenizer."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dit_video.core.config import from_dict, to_dict
from dit_video.core.errors import BadInput, MissingError
from dit_video.core.files import replacing
from dit_video.core.log import log
from dit_video.data.store import is_address
from dit_video.models.tokenizer import Tokenizer
from dit_video.models.vae import VAEConfig
from dit_video.weights import names_vae
from dit_video.weights.checkpoints import SEPARATOR, Broken, Checkpoints, flatten
from dit_video.weights.find import INDEX, fetch_older, find_model
from dit_video.weights.folder import PARTS, load_model, open_model, read_part
from dit_video.weights.model import Defaults, Model, denoiser, scheduler
from dit_video.weights.names import to_foreign, unflatten
from dit_video.weights.sums import fingerprint


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

    found = _newest(run.path, checkpoints, use) if step is None else checkpoints.latest(use, step)
    checkpoints.close()
    if found is None:
        raise MissingError(
            f"{path} has no checkpoint yet: train for {experiment['checkpoint_every']} steps, or stop it once"
        )
    return found


def _newest(
    folder: Path, checkpoints: Checkpoints, use: Callable[[int], Any], before: int | None = None
) -> tuple[int, Any] | None:
    """As `Checkpoints.latest`; of a run that was fetched from a store, which gave the newest step alone, those before
    it are fetched when that cannot be read. Raises `Broken`."""
    found = failure = None
    try:
        found = checkpoints.latest(use, before=before)
    except Broken as error:
        failure = error
    if found is None and (older := fetch_older(folder)) is not None:
        return _newest(folder, checkpoints, use, older + 1)
    if failure is not None:
        raise failure
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


def run_named(folder: Path) -> Model | None:
    """The model of a run's folder; RUN@EMA is another of its averages, as `choose_ema` takes it (`runs/a@0.99`). None
    where there is no run. Raises as `load_run`."""
    if Run.is_run(folder) and not (folder / INDEX).is_file():
        return load_run(folder)
    run, at, ema = str(folder).rpartition("@")
    if at and not folder.exists() and Run.is_run(run):
        return replace(load_run(run, ema), name=str(folder))
    return None


def open_base(name: str | os.PathLike[str] | None) -> Model:
    """A model by name: a folder's weights are not read yet (see `open_model`), a run's are (see `run_named`)."""
    if name is not None:
        folder = find_model(name) if is_address(name) else Path(name).expanduser()
        if (model := run_named(folder)) is not None:
            return model
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


def vae_unfinished(name: str) -> bool:
    """Whether this is a VAE's run that has not come to its end, where mean and std of its latents are measured."""
    return Run.is_run(name) and not (Path(name) / "vae" / "config.json").is_file()


def load_vae(name: str | None) -> tuple[VAEConfig, Any]:
    """The VAE of a model, of a run of either kind, or of a folder with nothing but `vae/`; None and "board": that of
    the weights on board. Raises as `load_model`."""
    for folder in () if name is None else (Path(name) / "vae", Path(name)):
        if (folder / "config.json").is_file():
            return read_vae(folder)
    if name is not None and vae_unfinished(name):
        return Run(name).resolved("vae"), load_params(name)[1]["vae"]
    model = load_model(name)
    return model.vae, model.params["vae"]


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a folder that holds one, of a model or a run, or ("board") of the weights on board."""
    for folder in (Path(name) / "tokenizer", Path(name)):
        if any((folder / file).is_file() for file in ("tokenizer.json", "spiece.model")):
            return Tokenizer.from_folder(folder)
    return load_model(name).tokenizer
