"""The average of the weights of two models that came of one: often as good as each at what each is good at.

    python tools/average.py runs/a runs/b OUT               # a folder to give to --init
    python tools/average.py board runs/hard@0.99 OUT --share 0.5

Denoiser and text encoder are averaged, all else is the first model's. (Model soups, Wortsman et al., 2203.05482.)
"""

import argparse
from dataclasses import replace

import jax
import numpy as np


def main() -> None:
    from dit_video.weights.folder import read, save_model
    from dit_video.weights.runs import open_base

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2, metavar="MODEL", help="a model folder, a run (RUN@EMA), or board")
    parser.add_argument("out", metavar="OUT", help="a new folder")
    parser.add_argument("--share", type=float, default=0.5, help="of the second (default %(default)s)")
    args = parser.parse_args()
    first, second = (open_base(None if name == "board" else name) for name in args.models)
    if replace(first.dit, remat="none") != replace(second.dit, remat="none") or first.text != second.text:
        raise SystemExit(f"{args.models[0]} and {args.models[1]} are of other sizes: nothing can be averaged")

    def mix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (1 - args.share) * a + args.share * b

    params = dict(first.params)
    for name in ("dit", "text"):
        params[name] = jax.tree.map(mix, *(read(model.params[name], np.float32) for model in (first, second)))
    print(save_model(replace(first, params=params), args.out, dtypes={"vae": "float16"}))


if __name__ == "__main__":
    main()
