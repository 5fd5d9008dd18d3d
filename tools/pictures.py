"""Makes the README's pictures of clips: the first prompts of the fixed list with the first seed, not chosen.

    python tools/pictures.py [--model MODEL]
    python tools/pictures.py --worst         # instead, of the first 96 those that the judge finds worst

tools/results/clips.png is a contact sheet, clips.webp moves, clips.txt has the prompts, row by row; worst.png has a
clip a row, beside it the prompt, what is seen and what is wrong.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dit_video import VideoPipeline
from dit_video.data.video import contact_sheet, frame_grid, write_video
from dit_video.evals.measure import measure
from dit_video.evals.page import worst
from dit_video.evals.prompts import suite
from dit_video.evals.score import score

OUT = Path(__file__).resolve().parent / "results"
COUNT, COLUMNS, JUDGED = 24, 8, 96


def first(pipe: Any, seed: int, out: Path) -> None:
    prompts = [one.prompt for one in suite(COUNT, "plain")]
    made = pipe(prompts, seed=seed)
    Image.fromarray(contact_sheet(made.frames)).save(out / "clips.png", optimize=True)
    (out / "clips.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    together = [frame_grid(np.stack(frames), columns=COLUMNS) for frames in zip(*made.frames, strict=True)]
    write_video(out / "clips.webp", np.stack(together), made.clips[0].fps)


def judged(pipe: Any, seed: int, out: Path, count: int = JUDGED) -> None:
    d = pipe.model.defaults
    asked = suite(count, "plain", d.height, d.width)
    clips = pipe([one.prompt for one in asked], seed=seed).frames
    report = {"suite": "toyworld"} | score([measure(clip, d.fps) for clip in clips], asked)
    Image.fromarray(worst(report, clips)).save(out / "worst.png", optimize=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a diffusers folder, a run folder, or a name (default: the weights on board)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worst", action="store_true", help="the worst clips of more prompts instead")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write into (default: tools/results)")
    args = parser.parse_args(argv)
    pipe = VideoPipeline.from_pretrained(args.model, progress=True)
    (judged if args.worst else first)(pipe, args.seed, args.out)


if __name__ == "__main__":
    main()
