"""A model on disk: the folder that diffusers' `WanPipeline` opens, with checksums of every file.

    model_index.json  manifest.json  transformer/  vae/  text_encoder/  tokenizer/  scheduler/

What diffusers has no place for stands under `_dit_video` in model_index.json: the defaults of sampling, and the fields
of our configs that are constants there.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dit_video.core.errors import BadInput, MissingError, NonFinite
from dit_video.models.dit import DiTConfig
from dit_video.models.text import TextConfig
from dit_video.models.tokenizer import Tokenizer
from dit_video.models.vae import VAEConfig
from dit_video.weights import names_dit, names_text, names_vae
from dit_video.weights.model import Defaults, Model, check_finite, shapes
from dit_video.weights.names import Table, flatten, load, to_foreign, unflatten

ON_BOARD = "board"  # the name of the weights that the package carries
INDEX, MANIFEST = "model_index.json", "manifest.json"
# Part of a Model -> its folder and the file that other programs look for in it.
PARTS = {
    "dit": ("transformer", "diffusion_pytorch_model.safetensors"),
    "vae": ("vae", "diffusion_pytorch_model.safetensors"),
    "text": ("text_encoder", "model.safetensors"),
}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
# The fields of DiTConfig that are constants in diffusers.
DIT_CONSTANTS = ("text_len", "rope_theta")


def table(cfg: DiTConfig | VAEConfig | TextConfig) -> Table:
    """The name table of a part."""
    if isinstance(cfg, DiTConfig):
        return names_dit.dit_table(cfg)
    return names_vae.VAE_NAMES if isinstance(cfg, VAEConfig) else names_text.TEXT


def save_model(model: Model, path: str | Path, *, dtypes: Mapping[str, str] | None = None, force: bool = False) -> Path:
    """Writes the folder, whole or not at all, and returns its path.

    dtypes: stored dtype of "dit", "vae" and "text"; float32 where it says nothing. (Diffusers loads a text encoder in
    the dtype that it is stored in and the others in float32: store the text encoder in float32.)
    Raises `BadInput` when the folder is there already (`force` replaces a model, nothing else), `NonFinite` for weights
    that are not finite, or not in the stored dtype.
    """
    target, dtypes = Path(path), dict(dtypes or {})
    if unknown := set(dtypes) - set(PARTS) or set(dtypes.values()) - set(DTYPES):
        raise BadInput(f"dtypes={dtypes}: {sorted(unknown)} is unknown; parts are {[*PARTS]}, dtypes {[*DTYPES]}")
    empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not empty and not (force and (target / INDEX).is_file()):
        hint = " or force to replace it" if (target / INDEX).is_file() else "; it is not a model, and is not replaced"
        raise BadInput(f"{target} is there already. Choose another place{hint}.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise BadInput(f"{target} cannot be written: {error}") from None
    try:
        _write(model, partial, dtypes)
        for path in (partial, *partial.rglob("*")):  # mkdtemp's and the safetensors writer's are for the owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(old / target.name)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write(model: Model, folder: Path, dtypes: Mapping[str, str]) -> None:
    from safetensors.numpy import save_file

    configs = {
        "dit": names_dit.to_diffusers(model.dit),
        "vae": names_vae.to_diffusers(model.vae),
        "text": names_text.to_transformers(model.text),
    }
    for part, (name, weights) in PARTS.items():
        dtype = dtypes.get(part, "float32")
        tensors = to_foreign(table(getattr(model, part)), flatten(model.params[part]))
        check_finite(tensors, name)
        with np.errstate(over="ignore"):
            tensors = {key: np.ascontiguousarray(tensor.astype(DTYPES[dtype])) for key, tensor in tensors.items()}
        try:
            check_finite(tensors, name)
        except NonFinite as error:
            raise NonFinite(f"{error} They do not fit into {dtype}: store this part in float32.") from None
        (folder / name).mkdir()
        save_file(tensors, folder / name / weights, metadata={"format": "pt"})
        if part == "text":
            configs[part]["dtype"] = dtype
        _dump(folder / name / "config.json", configs[part])
    model.tokenizer.save(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    _dump(folder / "scheduler" / "scheduler_config.json", model.scheduler)
    _dump(
        folder / INDEX,
        {
            "_class_name": "WanPipeline",
            "_diffusers_version": "0.42.1",
            "_dit_video": {
                "defaults": asdict(model.defaults),
                "transformer": {name: getattr(model.dit, name) for name in DIT_CONSTANTS},
            },
            "boundary_ratio": None,
            "expand_timesteps": True,
            "scheduler": ["diffusers", model.scheduler.get("_class_name", "UniPCMultistepScheduler")],
            "text_encoder": ["transformers", "UMT5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "transformer_2": [None, None],
            "vae": ["diffusers", "AutoencoderKLWan"],
        },
    )
    _dump(folder / MANIFEST, {"sha256": manifest(folder)})


def _dump(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def manifest(folder: Path) -> dict[str, str]:
    """{path inside the folder: SHA-256} of every file but the manifest."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def find_model(name: str | Path | None) -> Path:
    """The folder of a model or of a run. None and "board": the weights that the package carries.

    Raises `MissingError` when those are not in this installation, `BadInput` for another name that is no model.
    """
    if name is None or (str(name) == ON_BOARD and not Path(name).exists()):
        folder = Path(str(files("dit_video"))) / "weights" / "on_board"
        if not (folder / INDEX).is_file():
            raise MissingError(
                f"this installation carries no weights: {folder / INDEX} is missing. "
                "Install the package again, or name a model folder."
            )
        return folder
    folder = Path(name).expanduser()
    if (folder / INDEX).is_file() or (folder / "experiment.json").is_file():
        return folder
    if folder.is_dir():
        what = f"the folder has no {INDEX} (a model) and no experiment.json (a run)"
    else:
        what = "it is a file" if folder.exists() else f"there is no such folder ({folder.absolute()})"
    raise BadInput(f"unknown model {str(name)!r}: {what}, and the package carries only {ON_BOARD!r}.")


def load_model(name: str | Path | None = None, *, dtype: Any = np.float32, verify: bool = True) -> Model:
    """A model folder, a run, or (None) the weights on board, as NumPy arrays of `dtype` on the host.

    verify: compares every file with its checksum, where the folder has a manifest. Raises as `find_model`; `BadInput`
    for a damaged file, or weights that are not those of the config (the message lists the tensors); `MissingError` for
    a file that is missing; `NonFinite` for NaN in weights.
    """
    folder = find_model(name)
    if (folder / "experiment.json").is_file() and not (folder / INDEX).is_file():
        from dit_video.weights.checkpoints import load_run

        return load_run(folder)
    digest = _verify(folder) if verify else ""
    index = _read(folder / INDEX)
    ours = index.get("_dit_video", {})
    try:
        dit = names_dit.from_diffusers(_read(folder / "transformer" / "config.json"))
        dit = replace(dit, **{key: ours["transformer"][key] for key in DIT_CONSTANTS if "transformer" in ours})
        vae = names_vae.from_diffusers(_read(folder / "vae" / "config.json"))
        text = names_text.from_transformers(_read(folder / "text_encoder" / "config.json"))
        defaults = dict(ours.get("defaults", {}))
        if "sizes" in defaults:
            defaults["sizes"] = tuple(tuple(size) for size in defaults["sizes"])
        sampling = Defaults(**defaults)
    except (KeyError, TypeError) as error:
        raise BadInput(f"{folder}: a config is not as it should be: {error!r}") from None
    configs = {"dit": dit, "vae": vae, "text": text}
    return Model(
        **configs,
        params={part: read_part(folder / PARTS[part][0], cfg, dtype) for part, cfg in configs.items()},
        tokenizer=Tokenizer.from_folder(folder / "tokenizer"),
        scheduler=_read(folder / "scheduler" / "scheduler_config.json"),
        defaults=sampling,
        name=ON_BOARD if name is None else str(name),
        digest=digest,
    )


def read_part(folder: Path, cfg: DiTConfig | VAEConfig | TextConfig, dtype: Any = np.float32) -> dict[str, Any]:
    """Parameters of one part from the safetensors of its folder, one file or several with an index.

    Raises `MissingError`, `BadInput` (a damaged file; tensors that are not those of the config) and `NonFinite`.
    """
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise MissingError(f"{folder} has no weights: looked for *.safetensors")
    try:
        opened = [safe_open(file, framework="numpy") for file in weights]
        where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118  (not a dict)
        found = {name: tuple(file.get_slice(name).get_shape()) for name, file in where.items()}
        arrays = load(
            table(cfg), found, lambda name: where[name].get_tensor(name), shapes(cfg), dtype=dtype, source=str(folder)
        )
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{folder}: the weights cannot be read ({error}). The file is damaged: copy it again.") from None
    check_finite(arrays, str(folder))
    return unflatten(arrays)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{file} is missing: the model is not complete") from None
    except ValueError as error:
        raise BadInput(f"{file} cannot be read: {error}") from None


def _verify(folder: Path) -> str:
    """Compares the files with the manifest; a digest of it, or "" for a folder that has none."""
    if not (folder / MANIFEST).is_file():
        return ""
    stored = _read(folder / MANIFEST).get("sha256", {})
    there = manifest(folder)
    if missing := sorted(set(stored) - set(there)):
        raise MissingError(f"{folder} is not complete: {', '.join(missing)} missing (the manifest names them)")
    if changed := sorted(file for file, digest in stored.items() if there[file] != digest):
        raise BadInput(
            f"{folder}: {', '.join(changed)} not as written (SHA-256 differs from {MANIFEST}). It is damaged or was "
            f"edited: copy it again, or, if the change was meant, delete {MANIFEST}."
        )
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:12]
