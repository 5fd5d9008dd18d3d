"""LoRA files: adapters of low rank for the denoiser, read from every layout in circulation and merged into weights.

- diffusers and PEFT: `transformer.blocks.0.attn1.to_q.lora_A.weight` and `lora_B`, `transformer_2.` for the second
  expert; alpha in the file's metadata.
- kohya: `lora_unet_blocks_0_self_attn_q.lora_down.weight`, `lora_up`, `alpha`.
- LightX2V and ComfyUI: `diffusion_model.blocks.0.self_attn.q.lora_down.weight` (or `lora_A`), `alpha`, and whole
  differences: `diff` of a weight, `diff_b` of a bias.

A file that does not fit the model whole is refused whole.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dit_video.core.errors import BadInput, MissingError, NonFinite
from dit_video.core.log import log
from dit_video.models.dit import DiTConfig
from dit_video.weights.digests import digest_of, merged_digest
from dit_video.weights.find import parse_json, read_json
from dit_video.weights.model import Defaults, Model, shapes
from dit_video.weights.names import Foreign, Stored, flatten, places, unflatten
from dit_video.weights.names_dit import dit_table
from dit_video.weights.original import PREFIXES, original_name
from dit_video.weights.shards import Shards, write_file

EXPERTS = {"transformer": "dit", "transformer_2": "dit_2"}
METADATA = "lora_adapter_metadata"  # where diffusers keeps PEFT's config in a file
FILE = "pytorch_lora_weights.safetensors"  # what diffusers looks for in a folder
_KINDS = {
    "lora_A.weight": "down", "lora_A.default.weight": "down", "lora_down.weight": "down",
    "lora_B.weight": "up", "lora_B.default.weight": "up", "lora_up.weight": "up",
    "alpha": "alpha", "diff": "diff", "diff_b": "diff_b", "diff_m": "diff_m", "lora_B.bias": "bias",
}  # fmt: skip
_KEY = re.compile(rf"(.+)\.({'|'.join(re.escape(kind) for kind in _KINDS)})")


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to one foreign tensor: scale * up @ down + diff, in its shape."""

    shape: tuple[int, ...]
    down: np.ndarray | None = None
    up: np.ndarray | None = None
    scale: float = 1.0
    diff: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        out = np.zeros(self.shape, np.float32) if self.diff is None else self.diff.reshape(self.shape)
        if self.down is None:
            return out
        rank = len(self.down)
        product = self.up.reshape(-1, rank) @ self.down.reshape(rank, -1)
        return out + np.float32(self.scale) * product.reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Lora:
    """Adapters of one denoiser: {our path: {place on the stacked axes: delta}}."""

    deltas: dict[str, dict[tuple[int, ...], Delta]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Target:
    """One foreign tensor of the model."""

    path: str
    at: tuple[int, ...]
    shape: tuple[int, ...]


def _targets(cfg: DiTConfig) -> dict[tuple[str, str], _Target]:
    """(what a LoRA file may call a module, "weight" or "bias") -> the tensor. Every layout's names are in it."""
    out: dict[tuple[str, str], _Target] = {}
    for place in places(dit_table(cfg), shapes(cfg)):
        name = place.names[0]
        module, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            module, kind = name, "weight"
        original = original_name(module)
        for alias in (module, original, module.replace(".", "_"), original.replace(".", "_")):
            out[alias, kind] = _Target(place.path, place.at, place.shape)
        if original.endswith(".modulation"):  # LightX2V names the table by its owner: blocks.0.diff_m, head.diff_m
            owner = original.removesuffix(".modulation")
            for alias in (owner, owner.replace(".", "_")):
                out[alias, "modulation"] = _Target(place.path, place.at, place.shape)
    return out


def _split(key: str) -> tuple[str | None, str, str]:
    """(expert or None, module, kind) of a tensor in a file; kind "" for one that is not of a LoRA."""
    found = _KEY.fullmatch(key)
    if not found:
        return None, key, ""
    module, kind = found[1], _KINDS[found[2]]
    expert, _, rest = module.partition(".")
    if expert in EXPERTS:
        return EXPERTS[expert], rest, kind
    for prefix in (*PREFIXES, "base_model.model.", "lora_unet_"):
        module = module.removeprefix(prefix)
    return None, module, kind


def read_lora(source: str | Path, cfgs: Mapping[str, DiTConfig], part: str = "dit") -> dict[str, Lora]:
    """Part -> its adapters, checked against the sizes of the denoisers `cfgs` ("dit", and "dit_2" where there are two).

    part: the denoiser that a file is for which does not say it. Raises `MissingError` when there is no file; `BadInput`
    for a damaged one, and for one that is not for this model (the message lists the tensors); `NonFinite`.
    """
    path = Path(source).expanduser()
    if path.is_dir() and (path / FILE).is_file():
        path = path / FILE
    if not path.exists():
        raise MissingError(f"there is no LoRA {path}")
    shards = Shards(path)
    found: dict[tuple[str, str], dict[str, str]] = {}  # (part, module) -> kind -> tensor
    unknown = []
    # Only a file that names both experts says which is which: the usual prefix alone names a denoiser, any.
    both = len({_split(key)[0] for key in shards.shapes} & set(EXPERTS.values())) > 1
    for key in shards.shapes:
        expert, module, kind = _split(key)
        expert = expert if both or part == "dit" else None
        if kind and (expert or part) in cfgs:
            found.setdefault((expert or part, module), {})[kind] = key
        else:
            unknown.append(key)
    targets = {name: _targets(cfg) for name, cfg in cfgs.items()}
    settings = _settings(path)
    out: dict[str, Lora] = {}
    wrong: list[str] = []
    changes = False
    for (name, module), keys in sorted(found.items()):
        for kind, tensor, delta in _deltas(keys, shards, _scale(settings, name, module, both)):
            target = targets[name].get((module, kind))
            if target is None:
                unknown += keys.values()
            elif not _fits(delta, target.shape):
                sizes = " and ".join(str(shards.shapes[key]) for key in keys.values() if not key.endswith("alpha"))
                wrong.append(f"{tensor}: {sizes}, the model's is {target.shape}")
            else:
                changes |= delta.scale != 0 or delta.diff is not None
                delta = replace(delta, shape=target.shape)
                out.setdefault(name, Lora()).deltas.setdefault(target.path, {})[target.at] = delta
    if unknown or wrong or not out:
        lines = [*wrong[:5], *(f"{key}: unknown" for key in sorted(set(unknown))[:5])]
        counts = f"{len(wrong)} of another size, {len(set(unknown))} unknown, of {len(shards.shapes)}"
        raise BadInput(
            f"{path} is not a LoRA for this model: {counts}. Nothing was merged.\n  " + "\n  ".join(lines)
            + "\nTake one that was made for a model of this size."
        )  # fmt: skip
    if not changes:
        raise BadInput(f"{path}: its alpha is 0 everywhere, so it would change nothing. Take one that was trained.")
    return out


def _deltas(keys: dict[str, str], shards: Shards, scale: float | None) -> list[tuple[str, str, Delta]]:
    """("weight" or "bias", a tensor for messages, delta) of one module. `scale`: by the file's metadata."""
    read = {kind: np.asarray(shards.read(key), np.float32) for kind, key in keys.items()}
    if bad := [keys[kind] for kind, array in read.items() if not np.isfinite(array).all()]:
        raise NonFinite(f"{shards.source}: NaN or infinity in {bad[0]}. This LoRA cannot be used.")
    out = []
    if ("down" in read) != ("up" in read):
        raise BadInput(f"{shards.source}: {next(iter(keys.values()))} is one half of a product; the other is missing")
    down, up = read.get("down"), read.get("up")
    by_config = 1.0 if scale is None else scale
    if down is not None:
        rank = len(down)
        if not rank:
            raise BadInput(f"{shards.source}: {keys['down']} has rank 0: this file is damaged or empty.")
        if "alpha" in read and read["alpha"].size != 1:
            sizes = shards.shapes[keys["alpha"]]
            raise BadInput(
                f"{shards.source}: {keys['alpha']} is {sizes}, and alpha is one number: this file is damaged."
            )
        own = read["alpha"].item() / rank if "alpha" in read else by_config
        out.append(("weight", keys["down"], Delta((), down, up, own, read.get("diff"))))
    elif "diff" in read:
        out.append(("weight", keys["diff"], Delta((), diff=read["diff"])))
    if "diff_m" in read:
        out.append(("modulation", keys["diff_m"], Delta((), diff=read["diff_m"])))
    if "diff_b" in read:
        out.append(("bias", keys["diff_b"], Delta((), diff=read["diff_b"])))
    if "bias" in read:  # PEFT scales it as it does the product
        out.append(("bias", keys["bias"], Delta((), diff=np.float32(by_config) * read["bias"])))
    return out


def _fits(delta: Delta, shape: tuple[int, ...]) -> bool:
    if delta.diff is not None and delta.diff.size != np.prod(shape):
        return False
    if delta.down is None:
        return True
    rank = len(delta.down)
    return (delta.up.shape[0], delta.up.size, delta.down.size) == (
        shape[0],
        shape[0] * rank,
        rank * int(np.prod(shape[1:])),
    )


def _settings(path: Path) -> dict[str, Any]:
    """PEFT's config, which diffusers keeps in the file's metadata and PEFT beside the file."""
    from safetensors import safe_open

    beside = (path if path.is_dir() else path.parent) / "adapter_config.json"
    text = (safe_open(path, framework="numpy").metadata() or {}).get(METADATA) if path.is_file() else None
    if text:
        return parse_json(text, f"{path}: {METADATA} in its header")
    return read_json(beside) if beside.is_file() else {}


def _scale(settings: Mapping[str, Any], part: str, module: str, both: bool) -> float | None:
    """alpha / rank of a module by PEFT's config; None where it says nothing. both: the file names both experts, and
    what it says of the first is not for the second."""
    folder = next(name for name, ours in EXPERTS.items() if ours == part)
    names = (f"{folder}.", *(() if both else ("transformer.",)), "")

    def get(key: str) -> Any:
        return next((settings[name + key] for name in names if name + key in settings), None)

    def of_module(key: str, patterns: str) -> Any:  # the first that fits counts, as in PEFT
        found = (get(patterns) or {}).items()
        return next((value for pattern, value in found if re.fullmatch(rf"(.*\.)?({pattern})", module)), get(key))

    if get("lora_alpha") is None or not get("r"):
        return None
    rank, alpha = of_module("r", "rank_pattern"), of_module("lora_alpha", "alpha_pattern")
    return alpha / (rank**0.5 if get("use_rslora") else rank)


def merge(params: Any, lora: Lora, cfg: DiTConfig, strength: float = 1.0) -> Any:
    """The parameters of a denoiser with the adapters in them, in their own dtype. A `Stored` leaf stays one: the sum is
    made when it is read."""
    flat, rows = flatten(params), {place.path: place.row for place in places(dit_table(cfg), shapes(cfg))}
    for path, deltas in lora.deltas.items():
        leaf, row = flat[path], rows[path]
        axes = leaf.shape[: len(row.stacked)]
        pieces = {at: partial(_sum, leaf, at, row, deltas.get(at), strength) for at in np.ndindex(*axes)}
        merged = Stored(path, tuple(leaf.shape), np.dtype(leaf.dtype), pieces, "LoRA")
        flat[path] = merged if isinstance(leaf, Stored) else np.asarray(merged)
    return unflatten(flat)


def _sum(leaf: Any, at: tuple[int, ...], row: Any, delta: Delta | None, strength: float) -> np.ndarray:
    weight = np.asarray(leaf[at])
    if delta is None:
        return weight
    return (weight.astype(np.float32) + np.float32(strength) * row.to_ours(delta())).astype(weight.dtype)


def merge_files(model: Model, files: Sequence[str]) -> Model:
    """The model with every `PATH[=STRENGTH]` merged, in their order. `PATH@2=...` is for the second expert, where a
    file does not say for which it is. Raises as `read_lora`."""
    for text in files:
        path, strength, part = _parse(text)
        cfgs = {name: cfg for name, cfg in model.parts.items() if name in EXPERTS.values()}
        if part not in cfgs:
            raise BadInput(f"--lora {text}: this model has one denoiser, @2 names a second")
        for name, lora in read_lora(path, cfgs, part).items():
            merged = merge(model.params[name], lora, cfgs[name], strength)
            digest = merged_digest(digest_of(model), name, lora, strength)
            model = replace(model, params=model.params | {name: merged}, digest=digest)
            log.info("LoRA %s: %d tensors of %s, strength %g", path, len(lora.deltas), name, strength)
    return model


def _parse(text: str) -> tuple[str, float, str]:
    """PATH[@2][=STRENGTH] -> (path, strength, part)."""
    path, equals, strength = text.rpartition("=")
    if not equals or Path(text).expanduser().exists():
        path, strength = text, "1"
    try:
        value = float(strength)
    except ValueError:
        raise BadInput(f"--lora {text}: {strength!r} is no number. Give PATH or PATH=STRENGTH.") from None
    second = path.endswith("@2") and not Path(path).expanduser().exists()
    return path.removesuffix("@2") if second else path, value, "dit_2" if second else "dit"


def tuned(start: Model, part: str, learnt: Mapping[str, Any], scale: float | None, known: bool) -> Model:
    """The model that a fine-tuning started from, with what was learnt in it: its denoiser `part`, or with a `scale`
    adapters of that. known: it learnt that parts of a clip can be known by their time, whatever the other one knew."""
    weights = learnt[part] if scale is None else add_adapters(start.params[part], learnt["lora"], scale)
    if known and not start.expand_timesteps:
        start = replace(
            start, expand_timesteps=True, defaults=replace(start.defaults, conditions=Defaults().conditions)
        )
    return replace(start, params=start.params | {part: weights}, digest="")


def add_adapters(params: Any, learnt: Mapping[Any, Any], scale: float) -> Any:
    """A denoiser's parameters with adapters in them that were trained here: a tree with `a` (layers, in, r) and `b`
    (layers, r, out) under the path of each kernel, w + scale * a b. `Stored` leaves stay so."""
    flat, pairs = flatten(params), flatten(learnt)
    for path in sorted({name.rpartition("/")[0] for name in pairs}):
        leaf = flat[path]
        a, b = (np.asarray(pairs[f"{path}/{name}"], np.float32) for name in ("a", "b"))
        pieces = {(i,): partial(_plus, leaf, (i,), scale, a[i], b[i]) for i in range(leaf.shape[0])}
        merged = Stored(path, tuple(leaf.shape), np.dtype(leaf.dtype), pieces, "LoRA")
        flat[path] = merged if isinstance(leaf, Stored) else np.asarray(merged)
    return unflatten(flat)


def _plus(leaf: Any, at: tuple[int, ...], scale: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    weight = np.asarray(leaf[at])
    return (weight.astype(np.float32) + np.float32(scale) * (a @ b)).astype(weight.dtype)


def save_lora(path: str | Path, learnt: Mapping[Any, Any], cfg: DiTConfig, scale: float = 1.0) -> Path:
    """Writes adapters (as `add_adapters` takes them) in the layout of diffusers and PEFT, and returns the file. The
    scale goes into `lora_B`, so that alpha is the rank: every reader agrees on what that means."""
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = {name: np.asarray(array, np.float32) for name, array in flatten(learnt).items()}
    chosen = {name.rpartition("/")[0] for name in pairs}
    tensors: dict[str, Foreign] = {}
    for place in places(dit_table(cfg), {name: shape for name, shape in shapes(cfg).items() if name in chosen}):
        module = place.names[0].removesuffix(".weight")
        a, b = (pairs[f"{place.path}/{name}"][place.at].T for name in ("a", "b"))
        for kind, array in (("lora_A", a), ("lora_B", np.float32(scale) * b)):
            name = f"transformer.{module}.{kind}.weight"
            tensors[name] = Foreign(array.shape, array.dtype, partial(np.ascontiguousarray, array))
    write_file(path, tensors, {name: np.dtype(np.float32) for name in tensors})
    return path
