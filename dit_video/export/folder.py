"""The folder that an export is, what stands in its manifest, and how it is renewed.

    run.py  README.md  manifest.json  tokenizer/  programs/  weights/

`run.py` needs nothing of this package: what it shares with it (noise, moments, cleaning of prompts) is copied from the
package's own source.
"""

import ast
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax

from dit_video import __version__
from dit_video.core.errors import BadInput, MissingError
from dit_video.core.files import json_text
from dit_video.core.sizes import size_rule
from dit_video.export.card import card
from dit_video.export.programs import PARTS, Programs
from dit_video.weights.find import INDEX, MANIFEST, manifest, read_json
from dit_video.weights.folder import appearing
from dit_video.weights.model import Model
from dit_video.weights.place import numbers

Shape = tuple[int, int, int]  # frames, height, width

# Module -> what run.py takes from it, in the order in which it is defined there.
SHARED = {
    "diffusion/noise.py": ("MAX_SEED", "check_seed", "frame_noise", "clip_noise"),
    "diffusion/flow.py": ("warp",),
    "diffusion/schedule.py": ("TRAIN_TIMES", "BELOW_ONE", "Instant", "Schedule"),
    "models/tokenizer.py": ("PAD", "END", "ROWS", "clean", "_repairs", "_REPAIRS"),
}


@dataclass(frozen=True)
class Target:
    """What one format of an export differs in."""

    name: str
    title: str
    needs: tuple[str, ...]  # packages that run.py wants
    options: dict[str, Any] = field(default_factory=dict)  # what else stands in its manifest


def model_shape(model: Model) -> Shape:
    """What a model makes when it is not told otherwise."""
    return model.defaults.num_frames, model.defaults.height, model.defaults.width


@dataclass(frozen=True)
class Order:
    """What is to be exported. Raises `BadInput` for shapes that the model does not make."""

    model: Model  # `portable` already
    dtype: str
    shift: float  # of the flow
    shapes: tuple[Shape, ...] = ()
    lora: tuple[str, ...] = ()  # adapters that were merged into the weights
    scores: dict[str, Any] | None = None  # what an evaluation said, for the card
    force: bool = False

    def __post_init__(self) -> None:
        vae = self.model.vae
        for frames, height, width in self.shapes:
            vae.latent_shape(frames, height, width)
            size_rule(height, width, vae.factor * max(self.model.dit.patch[1:]))

    @property
    def programs(self) -> Programs:
        return Programs(self.model)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export of programs, which may be replaced by another one. A folder for diffusers is a
    model: nothing else has its weights."""
    return (folder / MANIFEST).is_file() and "format" in read_json(folder / MANIFEST) and not (folder / INDEX).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises `MissingError` where there is no export, `BadInput` for a folder that is something else."""
    if not folder.is_dir():
        raise MissingError(f"{folder}: there is no export here to renew.")
    if not is_export(folder):
        raise BadInput(
            f"{folder} is no export to StableHLO or ONNX: it is a model, which does not age, or its {MANIFEST} is "
            "missing or says nothing of a format."
        )
    return read_json(folder / MANIFEST)


def write_export(target: Target, order: Order, out: Path, size: int, write: Callable[[Path], dict[str, Any]]) -> Path:
    """Writes the folder, whole or not at all. `write` puts programs and weights into it, which will take about `size`
    bytes, and says what is where. Raises as `appearing`."""
    with appearing(out, "an export", is_export, order.force, size) as folder:
        about = describe(target, order) | {"programs": write(folder)}
        order.model.tokenizer.save(folder / "tokenizer")
        (folder / "run.py").write_text(runner(target, order.dtype), encoding="utf-8")
        (folder / "README.md").write_text(card(target.title, order.model, about, order.scores), encoding="utf-8")
        save_manifest(folder, about)
    return out


def save_manifest(folder: Path, about: dict[str, Any]) -> None:
    """With the checksum of every other file."""
    text = json_text(about | {"sha256": manifest(folder)}, 2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def usual_shape(order: Order) -> Shape:
    """What run.py makes when it is not told otherwise: the model's own shape, or the first where that is not made."""
    usual = model_shape(order.model)
    return order.shapes[0] if order.shapes and usual not in order.shapes else usual


def describe(target: Target, order: Order) -> dict[str, Any]:
    """What the manifest says and run.py goes by."""
    model, programs = order.model, order.programs
    return {
        "format": target.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": model.name, "hash": model.digest, "lora": list(order.lora)},
        "parameters": {part: numbers(programs.weights(part)) for part in PARTS},
        "dtype": order.dtype,
        "shapes": [list(shape) for shape in order.shapes],
        "rule": {
            "frames": model.vae.stride, "size": model.vae.factor * max(model.dit.patch[1:]), "factor": model.vae.factor,
            "channels": model.vae.z, "text": model.dit.text_len,
        },
        "defaults": {
            **{name: value for name, value in asdict(model.defaults).items()
               if name in ("fps", "steps", "guidance")},
            **dict(zip(("num_frames", "height", "width"), usual_shape(order), strict=True)),
            "shift": order.shift, "solver": model.defaults.solver, "schedule": programs.solver.schedule,
            "guided": programs.guided, "data": model.dit.predicts == "data",
        },
        "run": f"pip install {shlex.join(target.needs)}; "
        "python run.py --prompt 'a red circle moves right' --seed 7 --output out.mp4",
        "needs": list(target.needs),
        "versions": {"dit_video": __version__, "jax": jax.__version__, "python": platform.python_version()},
        "measured": None,
        "scores": order.scores,
        **target.options,
    }  # fmt: skip


def runner(target: Target, dtype: str) -> str:
    """run.py of a format: the template, the package's own definitions, and how this format's programs are run."""
    templates = Path(str(files("dit_video"))) / "export" / "templates"
    text = (templates / "run.py.in").read_text(encoding="utf-8")
    runtime = (templates / f"{target.name}.py.in").read_text(encoding="utf-8")
    shared = "\n\n\n".join(definitions(module, names) for module, names in SHARED.items())
    for mark, part in {"SHARED": shared, "RUNTIME": runtime.strip()}.items():
        text = text.replace(f"# {{{mark}}}", part)
    text = text.replace("{TITLE}", target.title).replace("{DTYPE}", dtype).replace("{FORMAT}", target.name)
    return text.replace("{NEEDS}", shlex.join(target.needs))


def definitions(module: str, names: Sequence[str]) -> str:
    """The source of definitions at the top of a module of this package, in the order given."""
    source = (Path(str(files("dit_video"))) / module).read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(source).body:
        first = node.decorator_list[0].lineno if getattr(node, "decorator_list", None) else node.lineno
        targets = [name.id for t in getattr(node, "targets", ()) for name in ast.walk(t) if isinstance(name, ast.Name)]
        text = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
        found |= dict.fromkeys([getattr(node, "name", None), *targets], text)
    return "\n\n\n".join(dict.fromkeys(found[name] for name in names))
