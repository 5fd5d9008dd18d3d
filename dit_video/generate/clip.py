"""A clip: frames, their rate, and how they were made; and the files that it becomes."""

import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from dit_video.core.errors import BadInput, MissingError
from dit_video.core.files import json_text, replacing
from dit_video.data.video import WRITE_SUFFIXES, check_suffix, read_video, write_video


@dataclass(frozen=True)
class Clip:
    """`frames` uint8 (T, H, W, 3) at `fps`; `metadata` says how they were made (prompt, seed, model, sizes, ...)."""

    frames: UInt8[np.ndarray, "T H W 3"]
    fps: float
    metadata: dict[str, Any] = field(default_factory=dict)
    latents: Float[np.ndarray, "t h w z"] | None = None  # normalised, what was decoded

    def save(self, path: str | os.PathLike[str], *, force: bool = False, latents: bool = False) -> Path:
        """Writes the video by its suffix (.mp4, .gif, .webp, .png) and the metadata beside it as NAME.json; with
        `latents`, NAME.latents.npz as well. Raises BadInput for a file that is there already, unless `force`, and for a
        place that cannot be written."""
        path = Path(path)
        check_free(path, force)
        check_writable(path.parent)
        write_video(path, self.frames, self.fps, self.metadata)
        write_json(path.with_suffix(".json"), self.metadata)
        if latents and self.latents is not None:
            save_latents(path, self.latents, self.metadata)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Clip":
        """A clip from its video file, with the metadata that stands in it."""
        footage = read_video(path)
        return cls(footage.frames, footage.fps, footage.metadata)


def frames_sha256(frames: UInt8[np.ndarray, "T H W 3"]) -> str:
    """Of the raw frames in (T, H, W, 3) order, before any encoding."""
    return hashlib.sha256(np.ascontiguousarray(frames)).hexdigest()


def write_json(path: Path, data: Any) -> None:
    with replacing(path) as partial:
        partial.write_text(json_text(data, 2) + "\n", encoding="utf-8")


def save_latents(path: Path, latents: Float[np.ndarray, "t h w z"], metadata: dict[str, Any]) -> Path:
    """NAME.latents.npz beside NAME.mp4: `latents` (normalised) and `metadata` as JSON."""
    path = path.with_suffix(".latents.npz")
    with replacing(path) as partial:
        np.savez(partial, latents=latents, metadata=np.array(json_text(metadata)))
    return path


def load_latents(path: str | os.PathLike[str]) -> tuple[Float[np.ndarray, "t h w z"], dict[str, Any]]:
    """What `save_latents` wrote. Raises MissingError, and BadInput for another file."""
    if not Path(path).is_file():
        raise MissingError(f"{path}: no such file.")
    try:
        with np.load(path) as saved:
            latents, metadata = saved["latents"], json.loads(str(saved["metadata"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        why = "" if isinstance(error, ValueError) else f" ({error})"  # NumPy's advice for such is to run what is in it
        raise BadInput(f"{path}: not a NAME.latents.npz of this program{why}.") from error
    if latents.ndim != 4 or latents.dtype != np.float32:
        raise BadInput(f"{path}: latents must be float32 (t, h, w, z), got {latents.dtype} {latents.shape}.")
    return latents, metadata


def slug(prompt: str, length: int = 40) -> str:
    """A prompt as a part of a file name: letters and digits of any script, dashes, no more than `length`."""
    words = re.sub(r"[^\w]+", "-", prompt.lower(), flags=re.UNICODE).replace("_", "-").strip("-")
    return words[:length].rstrip("-") or "clip"


def output_paths(output: str | os.PathLike[str] | None, prompts: Sequence[str], seed: int, force: bool) -> list[Path]:
    """Where each clip will go, checked before anything is computed: suffix, folder, existing files, the encoder.

    Without `output`: `outputs/<timestamp>_<slug>_s<seed>.mp4`. A folder gets such names; a file name with several clips
    becomes NAME_0, NAME_1, ... Raises BadInput, or MissingError when this machine cannot encode H.264.
    """
    single = output is not None and Path(output).suffix != "" and not Path(output).is_dir()
    count = len(prompts)
    if single:
        path = Path(output)
        check_suffix(path)
        paths = [path] if count == 1 else [path.with_stem(f"{path.stem}_{i}") for i in range(count)]
    else:
        folder, stamp = Path("outputs" if output is None else output), time.strftime("%Y%m%d-%H%M%S")
        numbers = [""] if count == 1 else [f"_{i}" for i in range(count)]
        paths = [folder / f"{stamp}_{slug(p)}_s{seed}{n}.mp4" for p, n in zip(prompts, numbers, strict=True)]
    for path in paths:
        check_free(path, force)
    check_writable(paths[0].parent)
    if paths[0].suffix.lower() == ".mp4":
        _check_encoder()
    return paths


def check_free(path: Path, force: bool, *, latents: bool = True) -> None:
    """Raises BadInput where `path` or what comes beside it would be overwritten: the JSON, and the latents, which may
    be all that is left of a clip whose frames could not be made."""
    check_suffix(path)
    beside = [path.with_suffix(suffix) for suffix in (".json", *([".latents.npz"] if latents else []))]
    for file in () if force else (path, *beside):
        if file.exists():
            raise BadInput(f"{file} exists. Give another --output, or --force to overwrite it.")


def check_writable(folder: Path) -> None:
    """Makes the folder and tries a file in it. Raises BadInput."""
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror or error}. Give another --output.") from error


def _check_encoder() -> None:
    import av

    if "libx264" not in av.codecs_available:
        others = ", ".join(s for s in WRITE_SUFFIXES if s != ".mp4")
        raise MissingError(f"this PyAV ({av.__version__}) has no H.264 encoder. Write {others} instead.")
