"""A model folder to ONNX files, run by an interpreter that has jax2onnx: python -m dit_video.export.convert JOB.json

jax2onnx wants an older orbax-checkpoint than this package, so it has an environment of its own. This module and what it
imports need of the package's dependencies only what jax2onnx brings, and safetensors. The job says `model` (a folder in
float32), `out`, and `shapes` as [frames, height, width]. What was written where goes to stdout as JSON.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_video.export.programs import Programs, portable, sized
from dit_video.weights.folder import open_model

OPSET = 20  # that of ONNX Runtime from 1.17 on
ROWS = 128  # of text: more than prompts have; what is not used is masked
BACK = "folded"  # of the VAE's convolutions: jax2onnx knows those of two dimensions


def main(argv: list[str]) -> int:
    job = json.loads(Path(argv[0]).read_text())
    programs = Programs(portable(open_model(job["model"], verify=False), "float32", BACK))
    where, out = {}, Path(job["out"])
    for name, shape, function, arguments in wanted(programs, job["shapes"]):
        file = out / f"{sized(name, shape)}.onnx"
        convert(function, arguments, file)
        where.setdefault(name, []).append({"file": f"programs/{file.name}", "shape": shape, "inputs": [*arguments]})
    sys.stdout.write(json.dumps(where))
    return 0


def convert(function: Callable, arguments: dict[str, jax.ShapeDtypeStruct], file: Path) -> None:
    """One file, with its weights in NAME.onnx.data beside it where they are large."""
    import_module("jax2onnx").to_onnx(
        function, list(arguments.values()), model_name=file.stem, opset=OPSET, input_names=list(arguments),
        return_mode="file", output_path=str(file),
    )  # fmt: skip


def wanted(
    programs: Programs, shapes: list[list[int]]
) -> list[tuple[str, list[int] | None, Callable, dict[str, jax.ShapeDtypeStruct]]]:
    """(name, shape, function with its weights inside, {input: its shape}) of every file. All sizes are fixed: one clip,
    with guidance its prompt and its negative prompt, `text_rows` of text."""
    model = programs.model
    weights = {part: {path: jnp.asarray(np.asarray(x, np.float32)) for path, x in programs.weights(part).items()}
               for part in ("text", "dit", "vae")}  # fmt: skip

    def array(*shape: int, kind: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind)

    texts, rows = 2 if programs.guided else 1, text_rows(model.dit.text_len)
    length = array(texts, kind=np.int32)
    text = {"ids": array(texts, rows, kind=np.int32), "length": length}
    out = [("text_encoder", None, lambda *a: programs.text_encoder(weights["text"], *a), text)]
    step, init = programs.step()
    for shape in shapes:
        grid = model.vae.latent_shape(*shape)
        latents, number = array(1, *grid), array()
        arguments = {"latents": array(texts, *grid), "time": array(texts), "rows": array(texts, rows, model.text.width)}
        memory = {f"memory_{i}": x for i, x in enumerate(jax.eval_shape(init, latents))}
        solver = {"latents": latents, "velocity": latents, "now": number, "then": number} | memory
        out += [
            ("denoiser", shape, lambda *a: programs.denoiser(weights["dit"], *a), arguments | {"length": length}),
            ("solver", shape, step, solver),
            ("vae_decoder", shape, lambda *a: programs.vae_decoder(weights["vae"], *a), {"latents": latents}),
        ]
    return out


def text_rows(text_len: int) -> int:
    """Rows of text in the files."""
    return min(text_len, ROWS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
