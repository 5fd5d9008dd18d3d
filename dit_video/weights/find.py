"""Where a model is, and whether its files are what was written: names, the Hub, checksums."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from dit_video.core.errors import BadInput, MissingError
from dit_video.core.files import cache_folder, sha256
from dit_video.core.log import log
from dit_video.data.store import Store, is_address

ON_BOARD = "board"  # the name of the weights that the package carries
INDEX = "model_index.json"  # makes a folder a model
MANIFEST = "manifest.json"


def manifest(folder: Path) -> dict[str, str]:
    """{path inside the folder: SHA-256} of every file but the manifest."""
    return {
        file.relative_to(folder).as_posix(): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def find_model(name: str | Path | None) -> Path:
    """The folder of a model or of a run. None and "board": the weights that the package carries. OWNER/NAME that is no
    folder here is fetched from the Hugging Face Hub, gs:// and s3:// from an object store.

    Raises `MissingError` when those are not in this installation or the Hub or the store does not give them, `BadInput`
    for another name that is no model.
    """
    if name is not None and is_address(name):
        return _from_store(str(name))
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
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return _from_hub(str(name))
    if folder.is_dir():
        what = f"the folder has no {INDEX} (a model) and no experiment.json (a run)"
    else:
        what = "it is a file" if folder.exists() else f"there is no such folder ({folder.absolute()})"
    raise BadInput(f"unknown model {str(name)!r}: {what}, and the package carries only {ON_BOARD!r}.")


def _from_store(address: str) -> Path:
    """The folder's copy in the user's cache, under a name that tells its files, sizes and checksums (without those, the
    versions that the store tells): what is there already is not fetched again."""
    store = Store(address)
    names = store.names()
    is_run = INDEX not in names
    if is_run:
        names = _of_run(names)
    if not names:
        raise BadInput(f"unknown model {address!r}: there is no {INDEX} (a model) and no experiment.json (a run)")
    state = [(name, store.size(name)) for name in names]
    sums = store.read(MANIFEST).decode() if MANIFEST in names else [store.version(name) for name in names]
    key = hashlib.sha256(json.dumps([address, state, sums]).encode()).hexdigest()[:16]
    folder = cache_folder("models") / key
    if not folder.is_dir():
        log.info("%s: %.2f GB to %s", address, sum(size or 0 for _, size in state) / 1e9, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(folder, names)
    if is_run and not (note := _origin(folder)).is_file():
        note.write_text(json.dumps({"address": address}) + "\n")
    return folder


def _origin(folder: Path) -> Path:
    """Where it is written down from which address a run in the cache was fetched."""
    return folder.with_name(f"{folder.name}.json")


def fetch_older(folder: Path) -> int | None:
    """Of a run that was fetched from a store, the newest step before those that are here: fetches it and returns its
    number. None when there is none, and for a folder that is no such run. Raises as `Store.fetch`."""
    if folder.parent != cache_folder("models") or not _origin(folder).is_file():
        return None
    address = read_json(_origin(folder))["address"].rstrip("/")
    names = Store(address).names()
    here = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]
    older = [step for step in _steps(names) if step < min(here, default=0)]
    if not older:
        return None
    prefix = f"checkpoints/{max(older)}/"
    log.warning("%s: no step that is here can be read; fetching step %d, the one before", address, max(older))
    files = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    Store(f"{address}/{prefix[:-1]}").fetch(folder / prefix[:-1], files)
    return max(older)


def _steps(names: Sequence[str]) -> list[int]:
    return [int(found[1]) for name in names if (found := re.match(r"checkpoints/(\d+)/", name))]


def _of_run(names: Sequence[str]) -> list[str]:
    """What makes a run a model, of its files: none where there is no run. Of its checkpoints, which hold the optimizer
    too, the newest (`fetch_older` fetches others)."""
    kept = ("experiment.json", "vae/", "tokenizer/", f"checkpoints/{max(_steps(names), default=0)}/")
    return [name for name in names if name.startswith(kept)] if "experiment.json" in names else []


def _from_hub(name: str) -> Path:
    """The folder of a snapshot in the Hub's own cache; what is there already is not fetched again."""
    try:
        hub = import_module("huggingface_hub")  # optional
    except ModuleNotFoundError:
        raise MissingError(
            f"there is no folder {name!r} here. To fetch it from the Hugging Face Hub: pip install huggingface_hub"
        ) from None
    wanted = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors", "tokenizer/*"]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the Hub's client has a dozen kinds, and the network's come through it
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingError(
            f"there is no folder {name!r} here, and the Hugging Face Hub did not give it: {line}"
        ) from None


def read_json(file: Path) -> dict[str, Any]:
    try:
        return parse_json(file.read_bytes(), str(file))
    except FileNotFoundError:
        raise MissingError(f"{file} is missing: the model is not complete") from None


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """The fields of an object. Raises `BadInput`, which says where the text stands."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{where} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise BadInput(f"{where} cannot be read: it holds {type(found).__name__}, not named fields")
    return found


def verify_files(folder: Path) -> str:
    """Compares the files with the manifest; a digest of it. In the Hub's cache, which has none, a digest of the names
    that the Hub gave the files, which are not compared (it did, and it takes minutes); elsewhere ""."""
    if not (folder / MANIFEST).is_file():
        stored = hub_names(folder)
        whole = all(file.relative_to(folder).as_posix() in stored for file in folder.rglob("*.safetensors"))
        return _digest(stored) if stored and whole else ""
    stored = read_json(folder / MANIFEST).get("sha256", {})
    _compare(folder, stored, MANIFEST)
    return _digest(stored)


def _digest(stored: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:12]


def hub_names(folder: Path) -> dict[str, str]:
    """{path: SHA-256} of files of the Hub's cache: the large ones are links to files with that name."""
    links = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_symlink()}
    names = {path: file.resolve().name for path, file in links.items()}
    return {path: name for path, name in names.items() if re.fullmatch("[0-9a-f]{64}", name)}


def verify_download(folder: Path) -> int:
    """Compares files of the Hub's cache with the SHA-256 that the Hub names them by; how many there were."""
    stored = hub_names(folder)
    _compare(folder, stored, "the Hub's")
    return len(stored)


def _compare(folder: Path, stored: Mapping[str, str], where: str) -> None:
    there = {file: sha256(folder / file) for file in stored if (folder / file).is_file()}
    if missing := sorted(set(stored) - set(there)):
        raise MissingError(f"{folder} is not complete: {', '.join(missing)} missing (the manifest names them)")
    if changed := sorted(file for file, digest in stored.items() if there[file] != digest):
        raise BadInput(
            f"{folder}: {', '.join(changed)} not as written (SHA-256 differs from {where}). It is damaged or was "
            f"edited: copy it again, or, if the change was meant, delete {MANIFEST}."
        )
