"""What a folder for diffusers says of itself beside its weights: a manifest longer than a model's own, and a card.

`sha256` in it stays as it was written: it names what a model is read from, its digest is the model's hash, and the card
is not of that.
"""

from pathlib import Path
from typing import Any

from dit_video.core.files import json_text, replacing
from dit_video.export.card import card
from dit_video.export.folder import Order, Target, describe
from dit_video.weights.find import MANIFEST, read_json
from dit_video.weights.place import numbers

NEEDS = ("diffusers", "transformers", "torch", "sentencepiece", "ftfy", "imageio[ffmpeg]")
# Pipeline -> what it is given beside the prompt, and whence that comes.
GIVEN = {"WanImageToVideoPipeline": ('image=load_image("first.png"), ', "export_to_video, load_image")}


def add_card(order: Order, folder: Path) -> dict[str, Any]:
    """Writes README.md and the manifest of a model folder that was just written; what the manifest says now."""
    params = order.model.params
    about = describe(Target("diffusers", "for diffusers", NEEDS), order) | {
        "pipeline": order.model.pipeline,
        "parameters": {part: numbers(params[part]) for part in order.model.parts},
    }
    about["run"] = example(about)
    (folder / "README.md").write_text(card("for diffusers", order.model, about, order.scores), encoding="utf-8")
    return add_to_manifest(folder, about)


def add_to_manifest(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Into the manifest that is there, whole or not at all; checksums and all else stay."""
    whole = read_json(folder / MANIFEST) | about
    with replacing(folder / MANIFEST) as partial:
        partial.write_text(json_text(whole, 2) + "\n", encoding="utf-8")
    return whole


def example(about: dict[str, Any]) -> str:
    """Python that makes a clip of the folder."""
    defaults, (given, helpers) = about["defaults"], GIVEN.get(about["pipeline"], ("", "export_to_video"))
    return "\n".join([
        f"from diffusers import {about['pipeline']}",
        f"from diffusers.utils import {helpers}",
        "",
        f'pipe = {about["pipeline"]}.from_pretrained("THIS_FOLDER")',
        f'made = pipe(prompt="a red circle moves right", {given}num_frames={defaults["num_frames"]},',
        f"            height={defaults['height']}, width={defaults['width']}, num_inference_steps={defaults['steps']},",
        f"            guidance_scale={defaults['guidance']:g})",
        f'export_to_video(made.frames[0], "out.mp4", fps={defaults["fps"]:g})',
    ])  # fmt: skip
