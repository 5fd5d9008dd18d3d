"""ONNX by jax2onnx, in float32: text encoder, denoiser, VAE decoder and the solver's step, for ONNX Runtime.

One file a program and a bucket of frames, height and width, for one clip at a time: the converter gives up on symbols
in shapes. Weights stand inside the files, or beside them where they are large. The conversion runs in an environment of
its own (`convert`).
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dit_video.core.errors import BadInput, DitVideoError, MissingError
from dit_video.export.convert import text_rows
from dit_video.export.folder import Order, Target, model_shape, write_export
from dit_video.export.programs import PARTS
from dit_video.weights.folder import save_model

NEEDS = ("onnxruntime", "numpy", "sentencepiece", "imageio[pyav]")
INSTALL = (
    "jax2onnx converts, and wants an older orbax-checkpoint than this package. Give it an environment of its own:\n"
    "  python -m venv onnx-env\n"
    "  onnx-env/bin/pip install jax2onnx safetensors onnxruntime sentencepiece\n"
    "and name its interpreter: --converter onnx-env/bin/python"
)


def converter(python: str | None) -> str:
    """The interpreter that converts. Raises `MissingError` with the lines that install one."""
    if python is None:
        if find_spec("jax2onnx") is None:
            raise MissingError(f"--to onnx: {INSTALL}")
        return sys.executable
    try:
        code = "import jax2onnx, safetensors; print('here')"
        there = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError as error:
        raise MissingError(f"--converter {python}: {error.strerror}. {INSTALL}") from None
    if there.returncode or "here" not in there.stdout.split():
        said = ["it is no Python, or says nothing of why it ended", *there.stderr.strip().splitlines()]
        raise MissingError(f"--converter {python}: {said[-1]}. {INSTALL}")
    return python


def check_dtype(dtype: str) -> None:
    """Raises `BadInput` for all but float32."""
    if dtype != "float32":
        raise BadInput(f"--to onnx --dtype {dtype}: ONNX Runtime takes these programs in float32 only.")


def export_onnx(order: Order, out: Path, python: str | None = None) -> Path:
    """Writes the folder; `python` as `converter` takes it. Raises `MissingError`, `BadInput` as `write_export`, and
    `DitVideoError` with the converter's last words."""
    check_dtype(order.dtype)
    python = converter(python)
    order = replace(order, shapes=order.shapes or (model_shape(order.model),))
    _, init = order.programs.step()
    memory = [start(leaf) for leaf in init(PROBE)]
    more = {"memory": memory, "text_rows": text_rows(order.model.dit.text_len)}
    target = Target("onnx", "ONNX for ONNX Runtime", NEEDS, more)
    weights = [x for part in PARTS for x in order.programs.weights(part).values()]
    size = 4 * sum(int(np.prod(x.shape)) for x in weights) * (1 + len(order.shapes))

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "programs").mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            model = save_model(
                order.model, Path(temporary) / "model", dtypes=dict.fromkeys(order.model.parts, "float32")
            )
            job = Path(temporary) / "job.json"
            job.write_text(json.dumps({"model": str(model), "out": str(folder / "programs"), "shapes": order.shapes}))
            return converted(python, job)

    return write_export(target, order, out, size, fill)


PROBE = jnp.full((1, 1, 1, 1, 1), 2.0)


def start(leaf: Any) -> dict[str, Any]:
    """How one thing that the solver remembers begins: a constant or the noise, a number or as large as the latents."""
    value = float(np.asarray(leaf).reshape(-1)[0])
    return {"value": "noise" if value == 2.0 else value, "sized": leaf.ndim > 0, "dtype": str(leaf.dtype)}


def converted(python: str, job: Path) -> dict[str, Any]:
    """Runs the converter on this package's own files; what it wrote."""
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from dit_video.export.convert import main; main(sys.argv[1:])"
    done = subprocess.run([python, "-c", code, str(job)], capture_output=True, text=True)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise DitVideoError(f"the conversion to ONNX failed:\n{last}")
    return json.loads(done.stdout.strip().splitlines()[-1])
