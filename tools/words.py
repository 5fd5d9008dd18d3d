"""What the words of a prompt are worth to a denoiser: whether it knows them apart.

    python tools/words.py                  # the model on board
    python tools/words.py runs/a --json

Plain renders, their latents noised to fixed times. Said of one is what it shows, and then the same with one word
exchanged: by how much does the velocity's error grow (in percent, the mean over the times)? A word that is exchanged
at no cost is not understood: the model makes the same of both, however long it is trained, because what tells them
apart begins at nothing. It is to be seen here long before it is seen in clips.
"""

import argparse
import json
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from trial import velocity_error

TIMES = (0.45, 0.6, 0.75, 0.88)
DRAWS = 2  # of noise


def said(words: dict[str, str]) -> str:
    """The shortest prompt: "a red circle moves right"."""
    from dit_video.data.toyworld.captions import VERBS

    parts = ["a", words["colour"], words["shape"], VERBS[words["motion"]][0][0]]
    return " ".join(parts + (["right"] if words["motion"] == "moves" else []))


def scenes(kind: str, values: tuple[str, ...], count: int, height: int, width: int) -> tuple[list[Any], list[Any]]:
    """`count` scenes of each value, and their words. What moves moves right: one prompt for all values."""
    from dit_video.data.toyworld.draw import make_scene

    rng, drawn, words = np.random.default_rng(0), [], []
    for value in np.repeat(values, count):
        body = make_scene(rng, **{kind: str(value)}).bodies[0]
        own = {"shape": body.shape, "colour": body.colour, "motion": body.motion}
        way = "right" if body.motion == "moves" else None
        drawn.append(make_scene(rng, height=height, width=width, direction=way, **own))
        words.append(own)
    return drawn, words


def growth(model: Any, kind: str, values: tuple[str, ...], count: int) -> dict[str, dict[str, float]]:
    """{value shown: {value said: percent by which the error grows}}."""
    from dit_video.data.toyworld.motion import pack
    from dit_video.data.toyworld.render import render_batch
    from dit_video.weights.folder import read
    from dit_video.weights.model import abstract

    d = model.defaults
    drawn, words = scenes(kind, values, count, d.height, d.width)
    graph, _ = nnx.split(abstract(model.vae))
    vae = jax.device_put(read(model.params["vae"], np.float32))

    @jax.jit
    def encode(vae: Any, frames: Any) -> Any:
        module = nnx.merge(graph, vae)
        return module.normalize(module.encode(frames)[0])

    errors = velocity_error(model)
    render = partial(render_batch, frames=d.num_frames, height=d.height, width=d.width)
    batches = [pack(drawn[i : i + count]) for i in range(0, len(drawn), count)]
    z = np.concatenate([encode(vae, render(batch)) for batch in batches])
    noise = np.random.default_rng(1).standard_normal((DRAWS, *z.shape), np.float32)

    def error(value: str | None) -> np.ndarray:
        """(values, times), where `value` is said of all (None: of each its own)."""
        prompts = [said(w if value is None else {**w, kind: value}) for w in words]
        tokens = model.tokenizer.encode(prompts, max_length=model.dit.text_len)
        out = [[errors(z, n, t, tokens.ids, tokens.length) for n in noise] for t in TIMES]
        return np.mean(out, axis=1).reshape(len(TIMES), len(values), count).mean(2).T

    right = error(None)
    grown = {value: 100 * (error(value) / right - 1).mean(1) for value in values}
    return {
        shown: {other: float(grown[other][i]) for other in values if other != shown} for i, shown in enumerate(values)
    }


def main() -> None:
    from dit_video.data.toyworld.scene import COLOURS, MOTIONS, SHAPES
    from dit_video.weights.runs import open_base

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model folder or a run (default: the model on board)")
    parser.add_argument("--count", type=int, default=12, help="scenes of each value (default %(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    kinds = {"shape": SHAPES, "colour": COLOURS, "motion": MOTIONS}
    model = open_base(args.model)
    found = {kind: growth(model, kind, values, args.count) for kind, values in kinds.items()}
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for kind, rows in found.items():
        print(f"{kind}: shown, and by how many percent the error grows when another is said")
        for shown, others in rows.items():
            print(f"  {shown:<9}", "  ".join(f"{other} {value:+.1f}" for other, value in others.items()))


if __name__ == "__main__":
    main()
