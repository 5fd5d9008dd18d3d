"""Makes the README's pictures of clips: the first prompts of the fixed lists with the first seed, not chosen.

python tools/pictures.py [--model MODEL]   # pictures/plain.png, world.png: contact sheets; plain.webp: moving
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dit_video import VideoPipeline
from dit_video.data.video import contact_sheet, frame_grid, write_video
from dit_video.evals.prompts import suite

OUT = Path(__file__).resolve().parents[1] / "pictures"
COUNT, COLUMNS = 12, 6


def main(model: str | None, seed: int) -> None:
    pipe = VideoPipeline.from_pretrained(model, progress=True)
    OUT.mkdir(exist_ok=True)
    for kind in ("plain", "world"):
        prompts = [one.prompt for one in suite(COUNT, kind)]
        out = pipe(prompts, seed=seed)
        Image.fromarray(contact_sheet(out.frames)).save(OUT / f"{kind}.png")
        (OUT / f"{kind}.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
        if kind == "plain":
            together = np.stack(
                [frame_grid(np.stack(frames), columns=COLUMNS) for frames in zip(*out.frames, strict=True)]
            )
            write_video(OUT / "plain.webp", together, out.clips[0].fps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a diffusers folder, a run folder, or a name (default: the weights on board)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    main(args.model, args.seed)
