"""Does diffusers make the same frames from an exported model? Each prompt from the same noise here and there.

    pip install '.[parity]' && python tools/same_frames.py [MODEL] [--count 16]

Stores what was found as tools/results/same_frames.json.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
WITHIN = 2  # of 255


def pairs(name: str | None, prompts: list[str], folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each prompt the frames made here and by diffusers, uint8 (T, H, W, 3), from the same noise. The model is
    written to `folder`, and sampled as its defaults say, in float32. Keys that are missing or too many are an error."""
    import diffusers
    import torch

    from dit_video.diffusion.noise import clip_noise
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.weights.folder import open_model, save_model

    model = open_model(name)
    save_model(model, folder)
    experts = ("transformer", "transformer_2") if model.dit_2 is not None else ("transformer",)
    for part in (*experts, "vae"):
        kind = diffusers.AutoencoderKLWan if part == "vae" else diffusers.WanTransformer3DModel
        _, info = kind.from_pretrained(folder / part, output_loading_info=True)
        if wrong := {key: names for key, names in info.items() if names}:
            raise SystemExit(f"{part}: {wrong}")
    theirs = diffusers.WanPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours, size = VideoPipeline(model, dtype="float32"), model.defaults
    slots, *space = model.vae.latent_shape(size.num_frames, size.height, size.width)
    for i, prompt in enumerate(prompts):
        noise = clip_noise(i, [0], slots, tuple(space))
        mine = ours(prompt, latents=noise).frames[0]
        latents = torch.from_numpy(np.ascontiguousarray(np.moveaxis(noise, -1, 1)))
        with torch.inference_mode():
            other = theirs(
                prompt, negative_prompt="", height=size.height, width=size.width, num_frames=size.num_frames,
                num_inference_steps=size.steps, guidance_scale=size.guidance, latents=latents, output_type="np",
                max_sequence_length=model.dit.text_len,
            ).frames[0]  # fmt: skip
        yield mine, np.round(np.asarray(other) * 255).astype(np.uint8)


def compare(name: str | None, prompts: list[str], folder: Path) -> list[list[Any]]:
    """A row a prompt: the share of pixel values within `WITHIN` of each other, and the largest difference."""
    rows = []
    for prompt, (mine, other) in zip(prompts, pairs(name, prompts, folder), strict=True):
        off = np.abs(mine.astype(int) - other.astype(int))
        rows.append([prompt, float((off <= WITHIN).mean()), int(off.max())])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model folder (default: the weights on board)")
    parser.add_argument("--count", type=int, default=16, help="prompts (default %(default)s)")
    args = parser.parse_args()
    from measure import store

    from dit_video.evals.prompts import suite

    prompts = [one.prompt for one in suite(args.count, "plain")]
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(args.model, prompts, Path(folder) / "model")
    columns = ["prompt", f"share of values within {WITHIN}/255", "largest difference"]
    store("same_frames", made_by=f"python tools/same_frames.py --count {args.count}", columns=columns, rows=rows)
    sys.exit(0 if min(row[1] for row in rows) >= 0.999 else 1)


if __name__ == "__main__":
    main()
