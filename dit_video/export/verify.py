"""Whether an export is what it should be: run.py is run as its user would, and its frames are compared; a folder for
diffusers is opened there."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit_video.core.errors import DitVideoError
from dit_video.export.folder import Shape, read_manifest, save_manifest
from dit_video.weights.find import verify_files

Frames = UInt8[np.ndarray, "T H W 3"]
Reference = Callable[[Sequence[str], int], Sequence[Frames]]  # (prompts, seed) -> the frames of each

PROMPTS = ("a red circle moves right", "a small blue star moves up quickly")
NEAR = 2  # of 255: two computers round differently
SHARE = 0.999  # of the pixels that must be so near

# Part after part, so that the largest alone is in memory. In a process of its own: nothing here imports torch.
OPEN = """\
import json, sys
import diffusers, torch, transformers
folder = sys.argv[1]
for part, kind in json.load(open(f"{folder}/model_index.json")).items():
    if not isinstance(kind, list) or kind[0] is None:
        continue
    cls = getattr({"diffusers": diffusers, "transformers": transformers}[kind[0]], kind[1])
    if not issubclass(cls, torch.nn.Module):
        cls.from_pretrained(f"{folder}/{part}")
        continue
    _, info = cls.from_pretrained(f"{folder}/{part}", output_loading_info=True, torch_dtype="auto")
    wrong = {key: sorted(map(str, info[key]))[:5] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        sys.exit(f"{part}: {wrong}")
print(diffusers.__version__)
"""


def open_in_diffusers(folder: Path, python: str = sys.executable) -> str | None:
    """The version of diffusers that opened every part of a folder, no tensor missing or too many; None where it is not
    installed. Raises `DitVideoError` with its last words."""
    if any(find_spec(name) is None for name in ("diffusers", "transformers", "torch")):
        return None
    done = subprocess.run([python, "-c", OPEN, str(folder)], capture_output=True, text=True)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise DitVideoError(f"diffusers does not open {folder}:\n{last}")
    return done.stdout.split()[-1]


def run_export(python: str, out: Path, prompts: Sequence[str], seed: int, flags: Sequence[str] = ()) -> list[Frames]:
    """The frames that OUT/run.py makes in another interpreter, without anything of this package in its path. Raises
    `DitVideoError` with its last words."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / (f"a_{i}.npy" if len(prompts) > 1 else "a.npy") for i in range(len(prompts))]
        line = [python, str(out / "run.py"), "--seed", str(seed), "--output", str(Path(folder) / "a.npy"), *flags]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([*line, "--prompt", *prompts], env=environment, capture_output=True, text=True)
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise DitVideoError(f"{out / 'run.py'} failed in {python}:\n{last}")
        return [np.load(file) for file in files]


def compare(made: Sequence[Frames], wanted: Sequence[Frames]) -> dict[str, Any]:
    """How far frames are apart: the share of pixels within NEAR in all colours, the largest difference, ..."""
    apart = [np.abs(a.astype(int) - b.astype(int)) for a, b in zip(made, wanted, strict=True)]
    return {
        "clips": len(apart),
        "frames": int(sum(len(d) for d in apart)),
        "pixels_within_2_of_255": float(np.mean(np.concatenate([d.max(-1).ravel() for d in apart]) <= NEAR)),
        "largest_difference": int(max(d.max() for d in apart)),
        "identical_clips": sum(not d.any() for d in apart),
    }


def verify(
    out: Path, python: str, reference: Reference, shape: Shape, prompts: Sequence[str] = PROMPTS, seed: int = 0
) -> dict[str, Any]:
    """Compares checksums and frames, writes the result into the manifest and returns it. `reference` makes what the
    frames should be. Raises `BadInput` for a damaged file and `DitVideoError` for frames too far away."""
    verify_files(out)
    sizes = [f"--{name}={size}" for name, size in zip(("num_frames", "height", "width"), shape, strict=True)]
    measured = compare(run_export(python, out, prompts, seed, sizes), reference(prompts, seed))
    measured |= {"shape": list(shape), "prompts": list(prompts), "seed": seed, "against": "dit-video generate"}
    about = read_manifest(out)
    save_manifest(out, {name: value for name, value in about.items() if name != "sha256"} | {"measured": measured})
    if measured["pixels_within_2_of_255"] < SHARE:
        raise DitVideoError(
            f"{out}: {100 * measured['pixels_within_2_of_255']:.2f} % of the pixels are within {NEAR}/255 of those of "
            f"`dit-video generate`, {100 * SHARE:.1f} % are wanted. The export is not to be trusted."
        )
    return measured
