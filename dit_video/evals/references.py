"""What scores are compared with: clips that no model made."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from dit_video.data.toyworld.render import pack, render_batch, to_uint8
from dit_video.data.toyworld.scene import Body, Scene
from dit_video.data.toyworld.splits import sample_scene
from dit_video.evals.prompts import Asked

Clips = UInt8[np.ndarray, "N T H W 3"]
_AT_ONCE = 32  # one shape is compiled only
_TRAINING = 3000  # scenes as training draws them, of which the nearest is taken
_BODY = ("colour", "shape", "size", "motion", "direction", "speed")
_AROUND = ("background", "light", "camera")


def renders(scenes: Sequence[Scene], frames: int, height: int, width: int) -> Clips:
    """Exact renders: what a perfect model would make."""
    parts = [np.zeros((0, frames, height, width, 3), np.uint8)]
    for first in range(0, len(scenes), _AT_ONCE):
        some = list(scenes[first : first + _AT_ONCE])
        full = some + some[-1:] * (min(_AT_ONCE, len(scenes)) - len(some))
        parts.append(to_uint8(render_batch(pack(full), frames, height, width))[: len(some)])
    return np.concatenate(parts)


def frozen(clips: Clips) -> Clips:
    """Every clip's first frame, for its whole length: what a maker of perfect pictures gets."""
    return np.repeat(clips[:, :1], clips.shape[1], axis=1)


def nearest(asked: Sequence[Asked], height: int, width: int, seed: int = 0) -> list[Scene]:
    """For each prompt the scene that says most of the same words, of some as training draws them: what somebody gets
    who answers with the training set."""
    rng = np.random.default_rng((seed, 31))
    pool = [sample_scene(rng, "train", plain=0.25, height=height, width=width) for _ in range(_TRAINING)]
    objects = np.stack([_objects([_words(body) for body in scene.bodies]) for scene in pool])
    around = np.stack([_codes(_AROUND, {name: getattr(scene, name) for name in _AROUND}) for scene in pool])
    count = np.array([len(scene.bodies) for scene in pool])
    chosen = []
    for one in asked:
        wanted = _objects(list(one.objects))
        both = [_alike(wanted[i], objects[:, j]) for i in range(2) for j in range(2)]
        score = np.maximum(both[0] + both[3], both[1] + both[2])
        score = score + _alike(_codes(_AROUND, one.around), around) + 3 * (count == len(one.objects))
        chosen.append(pool[int(score.argmax())])
    return chosen


def _words(body: Body) -> dict[str, str]:
    return {name: getattr(body, name) for name in _BODY}


def _codes(names: Sequence[str], given: dict[str, str]) -> np.ndarray:
    """One string a name, "" where nothing is given."""
    return np.array([given.get(name, "") for name in names], object)


def _objects(bodies: Sequence[dict[str, str]]) -> np.ndarray:
    return np.stack([_codes(_BODY, bodies[i] if i < len(bodies) else {}) for i in range(2)])


def _alike(wanted: np.ndarray, have: np.ndarray) -> np.ndarray:
    """How many of the wanted words each row has."""
    return ((have == wanted) & (wanted != "")).sum(-1)
