"""A model on disk: the folder that diffusers' pipelines of the Wan family open, with checksums of every file.

    model_index.json  manifest.json  scheduler/  tokenizer/  text_encoder/  vae/  transformer/
    [transformer_2/]  [image_encoder/  image_processor/]

What diffusers has no place for stands under `_dit_video` in model_index.json: the defaults of sampling, and the fields
of our configs that are constants there.

`open_model` checks every config and every tensor's name and shape and reads no weight; a weight is read when its array
is asked for. `load_model` asks for all.
"""

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dit_video.core.errors import BadInput, DitVideoError
from dit_video.models.dit import DiTConfig
from dit_video.models.image_encoder import ImageConfig
from dit_video.models.text import TextConfig
from dit_video.models.tokenizer import Tokenizer
from dit_video.models.vae import VAEConfig
from dit_video.weights import names_dit, names_image, names_text, names_vae
from dit_video.weights.find import INDEX, MANIFEST, ON_BOARD, find_model, manifest, read_json, verify_files
from dit_video.weights.model import Config, Defaults, Model, shapes, weight_dtype
from dit_video.weights.names import Table, flatten, foreign, leaves, unflatten
from dit_video.weights.released import PREDICTIONS, SETTINGS, with_defaults
from dit_video.weights.shards import DTYPES as STORED_DTYPES
from dit_video.weights.shards import SHARD, Shards, differing, write

_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"
# Part of a Model -> its folder and the file that other programs look for in it.
PARTS = {
    "dit": ("transformer", _DIFFUSERS),
    "dit_2": ("transformer_2", _DIFFUSERS),
    "vae": ("vae", _DIFFUSERS),
    "text": ("text_encoder", _TRANSFORMERS),
    "image": ("image_encoder", _TRANSFORMERS),
}
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline")
# Part -> the classes of the reference that are read.
CLASSES = {
    "dit": ("WanTransformer3DModel", "WanVACETransformer3DModel"),
    "vae": ("AutoencoderKLWan",),
    "text": ("UMT5EncoderModel",),
    "image": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
}
CLASSES["dit_2"] = CLASSES["dit"]
DTYPES = {str(kind): kind for kind in STORED_DTYPES.values()}
# The fields of DiTConfig that are constants in diffusers.
DIT_CONSTANTS = ("text_len", "rope_theta")

# Config -> the name table of the reference's class, and the reference's config there and back.
_FAMILIES = {
    DiTConfig: (names_dit.dit_table, names_dit.from_diffusers, names_dit.to_diffusers),
    VAEConfig: (lambda cfg: names_vae.VAE_NAMES, names_vae.from_diffusers, names_vae.to_diffusers),
    TextConfig: (lambda cfg: names_text.TEXT, names_text.from_transformers, names_text.to_transformers),
    ImageConfig: (names_image.image_table, names_image.from_transformers, names_image.to_transformers),
}
_KINDS = {"dit": DiTConfig, "dit_2": DiTConfig, "vae": VAEConfig, "text": TextConfig, "image": ImageConfig}
# What CLIPImageProcessor does by itself, in the one size that there is.
_PICTURES = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_center_crop": True}


def table(cfg: Config) -> Table:
    """The name table of a part."""
    return _FAMILIES[type(cfg)][0](cfg)


def to_foreign_config(cfg: Config) -> dict[str, Any]:
    """What stands in a part's config.json."""
    return _FAMILIES[type(cfg)][2](cfg)


def save_model(
    model: Model,
    path: str | Path,
    *,
    dtypes: Mapping[str, str] | None = None,
    force: bool = False,
    shard: int = SHARD,
) -> Path:
    """Writes the folder, whole or not at all, and returns its path. One tensor at a time is in memory beside the model,
    whose arrays may be on the host, on devices, or still in the files of another folder.

    dtypes: stored dtype of parts; an array keeps its own where it says nothing. (Diffusers loads a text encoder in the
    dtype that it is stored in and the others in float32: store the text encoder in float32.) shard: bytes in a file.
    Raises `BadInput` as `appearing` (`force` replaces a model, nothing else), `NonFinite` for weights
    that are not finite, or not in the stored dtype.
    """
    target, dtypes = Path(path), dict(dtypes or {})
    if unknown := set(dtypes) - set(PARTS) or set(dtypes.values()) - set(DTYPES):
        raise BadInput(f"dtypes={dtypes}: {sorted(unknown)} is unknown; parts are {[*PARTS]}, dtypes {[*DTYPES]}")
    leaves = [(part, x) for part in model.parts for x in flatten(model.params[part]).values()]
    size = sum(int(np.prod(x.shape)) * np.dtype(dtypes.get(part, x.dtype)).itemsize for part, x in leaves)
    with appearing(target, "a model", lambda folder: (folder / INDEX).is_file(), force, size) as partial:
        _write(model, partial, dtypes, shard)
    return target


@contextmanager
def appearing(target: Path, what: str, is_one: Callable[[Path], bool], force: bool, needs: int = 0) -> Iterator[Path]:
    """A folder to write into; it takes the name `target` when the block ends, and is gone after an exception.

    Raises `BadInput` when the target is there already (`force` replaces what `is_one`, nothing else), when it cannot be
    written, and when there is no room: fewer than `needs` bytes before, or none left on the way.
    """
    empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not empty and not (force and is_one(target)):
        hint = " or force to replace it" if is_one(target) else f"; it is not {what}, and is not replaced"
        raise BadInput(f"{target} is there already. Choose another place{hint}.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise BadInput(f"{target} cannot be written: {error}") from None
    try:
        if (free := shutil.disk_usage(partial).free) < needs:
            raise BadInput(
                f"{target} needs {needs / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there. Make room, or choose "
                "another place."
            )
        yield partial
        for path in (partial, *partial.rglob("*")):  # mkdtemp's and the safetensors writer's are for the owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(old / target.name)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(f"{target}: no space left there. Make room, or choose another place.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(model: Model, folder: Path, dtypes: Mapping[str, str], shard: int) -> None:
    for part, cfg in model.parts.items():
        name, weights = PARTS[part]
        (folder / name).mkdir()
        tensors = foreign(table(cfg), flatten(model.params[part]))
        write(folder / name, weights, tensors, dtypes.get(part), shard)
        config = to_foreign_config(cfg)
        if weights == _TRANSFORMERS:
            kinds = {str(np.dtype(dtypes.get(part, tensor.dtype))) for tensor in tensors.values()}
            config["dtype"] = kinds.pop() if len(kinds) == 1 else "float32"
        _dump(folder / name / "config.json", config)
    model.tokenizer.save(folder / "tokenizer")
    if model.image is not None:
        (folder / "image_processor").mkdir()
        size = {"crop_size": {"height": model.image.size, "width": model.image.size},
                "size": {"shortest_edge": model.image.size}}  # fmt: skip
        _dump(folder / "image_processor" / "preprocessor_config.json", _PICTURES | size)
    (folder / "scheduler").mkdir()
    scheduler = dict(model.scheduler)
    if model.dit.predicts != "velocity" or "prediction_type" in scheduler:
        scheduler["prediction_type"] = PREDICTIONS[model.dit.predicts]
    _dump(folder / "scheduler" / "scheduler_config.json", scheduler)
    _dump(folder / INDEX, _index(model))
    _dump(folder / MANIFEST, {"sha256": manifest(folder)})


def _index(model: Model) -> dict[str, Any]:
    classes = {part: to_foreign_config(cfg) for part, cfg in model.parts.items()}
    kinds = {part: config.get("_class_name") or config["architectures"][0] for part, config in classes.items()}
    components: dict[str, Any] = {
        "scheduler": ["diffusers", model.scheduler.get("_class_name", "UniPCMultistepScheduler")],
        "text_encoder": ["transformers", kinds["text"]],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", kinds["dit"]],
        "transformer_2": ["diffusers", kinds["dit_2"]] if "dit_2" in kinds else [None, None],
        "vae": ["diffusers", kinds["vae"]],
    }
    settings: dict[str, Any] = {"boundary_ratio": model.boundary}
    if model.pipeline != "WanVACEPipeline":
        settings["expand_timesteps"] = model.expand_timesteps
    if model.pipeline == "WanImageToVideoPipeline":
        components["image_encoder"] = ["transformers", kinds["image"]] if "image" in kinds else [None, None]
        components["image_processor"] = ["transformers", "CLIPImageProcessor"] if "image" in kinds else [None, None]
    ours = {
        "defaults": asdict(model.defaults),
        "transformer": {name: getattr(model.dit, name) for name in DIT_CONSTANTS},
    }
    about = {"_class_name": model.pipeline, "_diffusers_version": "0.42.1", "_dit_video": ours}
    return about | dict(sorted((settings | components).items()))


def check_saved(model: Model, path: Path, dtypes: Mapping[str, str] | None = None) -> int:
    """Reads a written folder back and compares every tensor with the model's, bit for bit; how many there are.

    Raises `DitVideoError` that names those that differ, and as `open_model`.
    """
    open_model(path)
    count = 0
    for part, cfg in model.parts.items():
        tensors = foreign(table(cfg), flatten(model.params[part]))
        count += len(tensors)
        if wrong := differing(path / PARTS[part][0], tensors, (dtypes or {}).get(part)):
            raise DitVideoError(f"{path}: {PARTS[part][0]} was not written as meant: {', '.join(wrong[:5])} differ")
    return count


def _dump(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def open_model(name: str | Path | None = None, *, verify: bool = True) -> Model:
    """A model folder, or (None) the weights on board, checked and not read: the leaves of `params` are `Stored`.

    verify: compares every file with its checksum, where the folder has a manifest. Raises as `find_model`; `BadInput`
    for a damaged file, for weights that are not those of the config (the message lists the tensors), for classes and
    configs of other models; `MissingError` for a file that is missing.
    """
    folder = find_model(name)
    digest = verify_files(folder) if verify else ""
    index = read_json(folder / INDEX)
    if index.get("_class_name") not in PIPELINES:
        raise BadInput(f"{folder / INDEX}: {index.get('_class_name')!r} is not read; {', '.join(PIPELINES)} are")
    ours = index.get("_dit_video", {})
    configs = {part: _config(folder, part) for part in PARTS if _has(folder, index, part)}
    try:
        constants = {key: ours["transformer"][key] for key in DIT_CONSTANTS if "transformer" in ours}
        for part in {"dit", "dit_2"} & set(configs):
            configs[part] = replace(configs[part], **constants)
        defaults = dict(ours.get("defaults", {}))
        for key in {"sizes", "cache"} & set(defaults):
            defaults[key] = tuple(tuple(row) for row in defaults[key])
        if "conditions" in defaults:
            defaults["conditions"] = tuple(defaults["conditions"])
        sampling = Defaults(**defaults)
    except (KeyError, TypeError) as error:
        raise BadInput(f"{folder / INDEX}: a config is not as it should be: {error!r}") from None
    if index.get("boundary_ratio") is not None and "dit_2" not in configs:
        raise BadInput(f"{folder / INDEX}: a boundary_ratio, and no transformer_2 to go on with below it")
    scheduler = _scheduler(folder / "scheduler" / "scheduler_config.json")
    said = scheduler.get("prediction_type", "flow_prediction")
    predicts = next(ours for ours, foreign in PREDICTIONS.items() if foreign == said)
    for part in {"dit", "dit_2"} & set(configs):
        configs[part] = replace(configs[part], predicts=predicts)
    model = Model(
        **configs,
        params={part: open_part(folder / PARTS[part][0], cfg) for part, cfg in configs.items()},
        tokenizer=Tokenizer.from_folder(folder / "tokenizer"),
        scheduler=scheduler,
        defaults=sampling,
        name=ON_BOARD if name is None else str(name),
        digest=digest,
        pipeline=index["_class_name"],
        expand_timesteps=bool(index.get("expand_timesteps", False)),
        boundary=index.get("boundary_ratio"),
    )
    return model if "defaults" in ours else with_defaults(model)


def load_model(name: str | Path | None = None, *, dtype: Any = np.float32, verify: bool = True) -> Model:
    """A model folder, a run, or (None) the weights on board, as NumPy arrays on the host.

    dtype: of the matrices; what a model keeps in float32 (see `weight_dtype`) stays there. Host memory is that of the
    arrays and one foreign tensor. Raises as `open_model`; `NonFinite` for NaN in weights.
    """
    from dit_video.weights.runs import open_base

    model = open_base(name) if verify else open_model(name, verify=False)
    return replace(model, params=read(model.params, dtype))


def read(params: Any, dtype: Any = None) -> Any:
    """A tree of arrays, `Stored` or not, on the host, read one after the other; None keeps their dtypes."""
    flat = flatten(params)
    return unflatten({path: np.asarray(x, weight_dtype(path, dtype or x.dtype)) for path, x in flat.items()})


def open_part(folder: Path, cfg: Config) -> dict[str, Any]:
    """Parameters of one part, as a tree of `Stored`. Raises `MissingError` and `BadInput`."""
    shards = Shards(folder)
    return unflatten(
        leaves(table(cfg), shards.shapes, shards.read, shapes(cfg), dtypes=shards.dtypes, source=str(folder))
    )


def read_part(folder: Path, cfg: Config, dtype: Any = np.float32) -> dict[str, Any]:
    """The arrays of one part. Raises as `open_part`, and `NonFinite`."""
    return read(open_part(folder, cfg), dtype)


def _has(folder: Path, index: Mapping[str, Any], part: str) -> bool:
    """Whether model_index.json names the part. The first transformer, VAE and text encoder are always wanted."""
    return part in ("dit", "vae", "text") or (index.get(PARTS[part][0]) or [None])[0] is not None


def _config(folder: Path, part: str) -> Any:
    file = folder / PARTS[part][0] / "config.json"
    data = read_json(file)
    kind = data.get("_class_name") or (data.get("architectures") or [None])[0]
    if kind not in CLASSES[part]:
        raise BadInput(f"{file}: {kind!r} is not read as {PARTS[part][0]}; {', '.join(CLASSES[part])} are")
    try:
        return _FAMILIES[_KINDS[part]][1](data)
    except (KeyError, TypeError) as error:
        raise BadInput(f"{file}: a config is not as it should be: {error!r}") from None


def _scheduler(file: Path) -> dict[str, Any]:
    """Raises `BadInput` for a scheduler of another class, and for a setting of one that no solver here has."""
    config = read_json(file)
    kind = config.get("_class_name", "UniPCMultistepScheduler")
    if kind not in SETTINGS:
        raise BadInput(f"{file}: {kind!r} is not known; {', '.join(SETTINGS)} are")
    for key in sorted(SETTINGS[kind].keys() & config.keys()):
        if config[key] not in (there := SETTINGS[kind][key]):
            values = " or ".join(json.dumps(value) for value in there)
            raise BadInput(
                f"{file}: {key} is {json.dumps(config[key])}, and this solver has {values}. Set that, if frames that "
                "differ from those of diffusers will do."
            )
    return config
