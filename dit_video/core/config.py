"""Configuration is frozen dataclasses: to and from plain data, typed overrides from a command line, a digest.

An experiment is a Python file with one constant, `EXPERIMENT`; the package carries those of `experiments/`.
"""

import dataclasses
import difflib
import hashlib
import importlib
import json
import re
import runpy
import types
import typing
from pathlib import Path
from typing import Any

from dit_video.core.errors import BadInput


def to_dict(cfg: Any) -> Any:
    """Plain data of a config. A dataclass field that may hold several classes keeps its class under `class`."""
    if dataclasses.is_dataclass(cfg) and not isinstance(cfg, type):
        name = f"{type(cfg).__module__}:{type(cfg).__qualname__}"
        return {"class": name} | {f.name: to_dict(getattr(cfg, f.name)) for f in dataclasses.fields(cfg) if f.init}
    if isinstance(cfg, (tuple, list)):
        return [to_dict(x) for x in cfg]
    if isinstance(cfg, dict):
        return {k: to_dict(v) for k, v in cfg.items()}
    if isinstance(cfg, Path):
        return str(cfg)
    return cfg


def from_dict(data: Any) -> Any:
    """The inverse of `to_dict`. Only classes of this package are built."""
    if isinstance(data, dict) and "class" in data:
        module, _, name = data["class"].partition(":")
        if not module.startswith("dit_video."):
            raise BadInput(f"config names the class {data['class']!r}: only classes of dit_video are built")
        cls = getattr(importlib.import_module(module), name)
        known = {f.name for f in dataclasses.fields(cls) if f.init}
        unknown = sorted(set(data) - known - {"class"})
        if unknown:
            names = ", ".join(unknown)
            raise BadInput(f"{name} has no field {names}: written by another version? It has {sorted(known)}")
        return cls(**{k: from_dict(v) for k, v in data.items() if k != "class"})
    if isinstance(data, list):
        return tuple(from_dict(x) for x in data)
    if isinstance(data, dict):
        return {k: from_dict(v) for k, v in data.items()}
    return data


def digest(cfg: Any) -> str:
    """Twelve hex digits that change with any field."""
    return hashlib.sha256(json.dumps(to_dict(cfg), sort_keys=True).encode()).hexdigest()[:12]


def diff(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields that differ, with both values: `model.depth: 12 -> 16`."""
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        return [
            line
            for f in dataclasses.fields(old)
            for line in diff(getattr(old, f.name), getattr(new, f.name), f"{prefix}{f.name}.")
        ]
    return [] if old == new else [f"{prefix[:-1]}: {old} -> {new}"]


def _parse(kind: Any, text: str, where: str) -> Any:
    """Text from a command line as a value of the annotated type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if type(None) in args and text.lower() in ("none", "null"):
            return None
        options = [a for a in args if a is not type(None)]
        # Every text is a str: where there is a comma, a tuple is meant.
        for option in sorted(options, key=lambda a: (typing.get_origin(a) is tuple) != ("," in text)):
            try:
                return _parse(option, text, where)
            except BadInput:
                continue
        raise BadInput(f"{where}={text}: wants {kind}")
    if origin is typing.Literal:
        if text not in args:
            raise BadInput(f"{where}={text}: wants one of {', '.join(map(str, args))}")
        return text
    if origin is tuple:
        parts = [p for p in text.strip("()[] ").split(",") if p.strip()]
        inner = [args[0]] * len(parts) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(inner) != len(parts):
            raise BadInput(f"{where}={text}: wants {len(inner)} values, separated by commas")
        # What is a pair inside is written as one: circles=4,spins=2
        pairs = [p.replace("=", ",") if typing.get_origin(k) is tuple else p for k, p in zip(inner, parts, strict=True)]
        return tuple(_parse(k, p.strip(), where) for k, p in zip(inner, pairs, strict=True))
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise BadInput(f"{where}={text}: wants true or false")
        return text.lower() in ("true", "1", "yes")
    if kind in (int, float):
        try:
            return kind(text.replace("_", "")) if kind is int else float(text)
        except ValueError:
            raise BadInput(f"{where}={text}: wants {'a whole number' if kind is int else 'a number'}") from None
    if kind in (str, Path):
        return kind(text)
    raise BadInput(f"{where}: {kind} cannot be given on the command line; copy the experiment file and edit it")


def fields_of(cfg: Any, prefix: str = "") -> list[str]:
    """Dotted names of every field that can be overridden."""
    names = []
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        names += fields_of(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else [prefix + f.name]
    return names


def dtype_changes(experiment: Any, name: str, dtype: str) -> dict[str, str]:
    """What `--dtype` changes: all that an objective computes in. `name` is for people; nothing for "auto". Raises
    `BadInput` where an experiment takes its sizes from a model."""
    if dtype == "auto":
        return {}
    found = [field for field in fields_of(experiment) if field.startswith("objective.") and field.endswith(".dtype")]
    if not found:
        raise BadInput(
            f"--dtype {dtype}: {name} takes its sizes from its `init`, the dtype too. "
            f"--matmul_precision {dtype} rounds the factors of its matrix products."
        )
    return dict.fromkeys(found, dtype)


def override(cfg: Any, changes: dict[str, str]) -> Any:
    """A copy of `cfg` with dotted fields replaced, each parsed by its annotation.

    Raises `BadInput` for an unknown field, with the nearest names, and for a value of another type.
    """
    for path, text in changes.items():
        cfg = _replace(cfg, cfg, path.split("."), text, path)
    return cfg


def _replace(root: Any, cfg: Any, path: list[str], text: str, where: str) -> Any:
    name, rest = path[0], path[1:]
    if cfg is None:
        group = where.removesuffix("." + ".".join(path))
        raise BadInput(
            f"{where}: {group} is none here, so it is filled in later (from --init, say). To give it, copy the "
            "experiment file and write it there."
        )
    known = {f.name for f in dataclasses.fields(cfg)} if dataclasses.is_dataclass(cfg) else set()
    if name not in known:
        names = fields_of(root)
        near = difflib.get_close_matches(where, names, n=3) or [n for n in names if n.endswith("." + path[-1])][:3]
        hint = f" Did you mean {' or '.join(near)}?" if near else f" Fields: {', '.join(sorted(known))}."
        raise BadInput(f"unknown field {where!r} of {type(root).__name__}.{hint}")
    value = getattr(cfg, name)
    if rest:
        return dataclasses.replace(cfg, **{name: _replace(root, value, rest, text, where)})
    kind = typing.get_type_hints(type(cfg))[name]
    left_out = type(None) in typing.get_args(kind) and text.lower() in ("none", "null")
    if dataclasses.is_dataclass(value) and not left_out:
        raise BadInput(f"{where} is a group of fields ({', '.join(fields_of(value))}). Give one of them.")
    return dataclasses.replace(cfg, **{name: _parse(kind, text, where)})


def packaged_experiments() -> dict[str, Path]:
    """Name -> file of the experiments that the package carries (in a checkout, those of `experiments/`)."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "experiments", package.parent / "experiments"):
        if folder.is_dir():
            constant = re.compile(r"^EXPERIMENT\b", re.MULTILINE)  # a notebook's text is no experiment
            return {p.stem: p for p in sorted(folder.glob("*.py")) if constant.search(p.read_text(encoding="utf-8"))}
    return {}


def load_experiment(name_or_path: str) -> Any:
    """The `EXPERIMENT` of a file, or of one that the package carries.

    A path that does not exist but whose file name the package carries is that one, so the README's
    `experiments/finetune_folder.py` works from any folder. Raises `BadInput` with the nearest names.
    """
    path = Path(name_or_path)
    carried = packaged_experiments()
    if not (path.suffix == ".py" and path.is_file()):
        if path.stem not in carried or path.suffix not in ("", ".py"):
            near = difflib.get_close_matches(path.stem, carried, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            names = ", ".join(carried)
            raise BadInput(f"no experiment {name_or_path!r}: no such file, and the package carries {names}.{hint}")
        path = carried[path.stem]
    scope = runpy.run_path(str(path))
    if "EXPERIMENT" not in scope:
        raise BadInput(f"{path} has no EXPERIMENT: an experiment file defines one constant of that name")
    return scope["EXPERIMENT"]
