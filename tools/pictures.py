"""Makes the README's pictures of clips: the first prompts of the fixed list with the first seed, not chosen.

    python tools/pictures.py [--model MODEL]

tools/results/clips.png is a contact sheet, clips.webp moves, clips.txt has the prompts, row by row.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dit_video import VideoPipeline
from dit_video.data.video import contact_sheet, frame_grid, write_video
from dit_video.evals.prompts import suite

OUT = Path(__file__).resolve().parent / "results"
COUNT, COLUMNS = 24, 8


def main(model: str | None, seed: int) -> None:
    prompts = [one.prompt for one in suite(COUNT, "plain")]
    out = VideoPipeline.from_pretrained(model, progress=True)(prompts, seed=seed)
    Image.fromarray(contact_sheet(out.frames)).save(OUT / "clips.png", optimize=True)
    (OUT / "clips.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    together = [frame_grid(np.stack(frames), columns=COLUMNS) for frames in zip(*out.frames, strict=True)]
    write_video(OUT / "clips.webp", np.stack(together), out.clips[0].fps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a diffusers folder, a run folder, or a name (default: the weights on board)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    main(args.model, args.seed)
