"""The model card of an export: what it is, from its config and its evaluation, and what it cannot do."""

import math
from pathlib import Path
from typing import Any

from dit_video.core.errors import BadInput, MissingError
from dit_video.export.programs import logits_bytes
from dit_video.weights.find import parse_json
from dit_video.weights.model import Model

NUMBERS = ("value", "low", "high", "n")


def card(title: str, model: Model, about: dict[str, Any], scores: dict[str, Any] | None) -> str:
    """Markdown. `about` is the manifest; `scores`: the object that `dit-video eval --json` printed."""
    defaults, rule, dit, vae = about["defaults"], about["rule"], model.dit, model.vae
    total = sum(about["parameters"].values())
    shapes = ", ".join(f"{t} frames of {w}x{h}" for t, h, w in about["shapes"])
    sizes = shapes or (
        f"{rule['frames']}k+1 frames from {about.get('fewest_frames', 1)} up, sides in multiples of {rule['size']}"
    )
    life, opened = about.get("loadable"), about["format"] == "diffusers"  # by other programs: there is no run.py
    lines = [
        f"# {model.name or 'a model'}, {title}",
        "",
        f"Video of text, {total / 1e6:,.1f} million parameters: a text encoder of {model.text.depth} layers, "
        f"a diffusion transformer of {dit.depth} layers of width {dit.width}, a causal VAE that takes {vae.stride} "
        f"frames and {vae.factor}x{vae.factor} pixels together. The structure is that of the Wan family (Apache-2.0).",
        "",
        "```bash",
        f"pip install {' '.join(map(_quoted, about['needs']))}",
        *(["```", "", "```python", about["run"]] if opened else
          ['python run.py --prompt "a red circle moves right" --seed 7 --output out.mp4']),
        "```",
        "",
        f"It makes {sizes}; left out, {defaults['num_frames']} frames of {defaults['width']}x{defaults['height']} at "
        f"{defaults['fps']:g} fps in {defaults['steps']} steps of {defaults['solver']}, guidance "
        f"{defaults['guidance']:g}. " + (
            "Diffusers draws other noise of a seed than `dit-video generate --model THIS_FOLDER`; given the same "
            "`latents`, both make the same clip." if opened else
            "The same seed gives the same noise here, in every other export and in `dit-video generate`."
        ),
        "",
        "| part | parameters |",
        "|---|---|",
        *(f"| {part} | {count:,} |" for part, count in about["parameters"].items()),
        "",
        "## Measured",
        "",
        *(_scores(scores) if scores else ["This export was written without the numbers of an evaluation."]),
        "After `--verify`, manifest.json says under `measured` " + (
            "how many tensors were read back bit for bit, and which diffusers opened them." if opened else
            "how far its frames are from `dit-video generate`'s."
        ),
        "",
        "## Limits",
        "",
        f"- It was trained on clips of up to {model.defaults.max_frames} frames in sizes "
        f"{', '.join(f'{w}x{h}' for h, w in model.defaults.sizes)}; beyond them expect less order.",
        f"- A prompt has up to {about.get('text_rows', rule['text'])} tokens. " + (
            "Longer films and changes of prompt are with `dit-video generate` only; there is no sound." if opened else
            "Sound, pictures as input, longer films and changes of prompt are not in this export."
        ),
        *_logits(model, about),
        *([f"- It loads with {life['by']} until {life['until']}. Then: `{life['renew']}`."] if life else []),
        "",
        "Licence: that of the weights it was made from. Sizes, versions and checksums: manifest.json.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _logits(model: Model, about: dict[str, Any]) -> list[str]:
    """A line about attention that holds all logits of a layer, where these are large."""
    usual = tuple(about["defaults"][name] for name in ("num_frames", "height", "width"))
    frames, height, width = shape = max(map(tuple, about["shapes"] or [usual]), key=math.prod)
    fixed, size = bool(about["shapes"]) and about["format"] == "stablehlo", logits_bytes(model, shape)
    if about["format"] == "diffusers" or fixed or size < 1e9:
        return []
    hint = f" Exported with `--shapes {frames}x{height}x{width}` it has them in pieces."
    return [
        f"- Attention holds all logits of a layer at once: {size / 1e9:,.0f} GB for {frames} frames of "
        f"{width}x{height}.{hint if about['format'] == 'stablehlo' else ''}"
    ]


def _quoted(package: str) -> str:
    return f"'{package}'" if "[" in package else package


def read_scores(file: str | Path) -> dict[str, Any]:
    """What `dit-video eval --json` printed. Raises `MissingError` where there is no such file, and `BadInput` for what
    it did not print."""
    try:
        text = Path(file).read_bytes()
    except FileNotFoundError:
        raise MissingError(
            f"--scores {file}: there is no such file. Write it: dit-video eval --json > {file}"
        ) from None
    except OSError as error:
        raise BadInput(f"--scores {file} cannot be read: {error.strerror}") from None
    return checked(parse_json(text, f"--scores {file}"), f"--scores {file}")


def checked(report: dict[str, Any], where: str) -> dict[str, Any]:
    """The report. Raises `BadInput`, which says where it stands, unless it has a suite and scores; one of which nothing
    is known is null."""
    scores = report.get("scores")
    entries = [entry for entry in scores.values() if entry is not None] if isinstance(scores, dict) else [None]
    if not isinstance(report.get("suite"), str) or not all(map(_is_score, entries)):
        raise BadInput(f"{where} is not what `dit-video eval --json` prints: a suite and its scores, each with "
                       f"{', '.join(NUMBERS)}")  # fmt: skip
    return report


def _is_score(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), int | float) for name in NUMBERS)


def _scores(scores: dict[str, Any]) -> list[str]:
    """A table. Of toyworld the scores are shares of the clips; of the other suites decibels and the like."""
    show = _percent if scores["suite"] == "toyworld" else "{:.4g}".format
    head = [
        f"Suite {scores['suite']}, as asked:",
        "",
        "| | value | 95 % interval | clips |",
        "|---|---|---|---|",
    ]
    rows = [
        f"| {name} | {show(s['value'])} | {show(s['low'])} - {show(s['high'])} | {s['n']} |"
        for name, s in scores["scores"].items()
        if s is not None
    ]
    return [*head, *rows, ""]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
