"""A clip's time line: streams of latents, each denoised and decoded on its own, and which frames of them are kept.

Most clips are one stream whose slot 0 holds frame 0 alone. A stream is something else where

- a prompt that begins later cuts: a new stream begins, with a slot of its own in front that holds one frame, is the
  sink of what follows, and is dropped from the frames;
- the clip goes on from given footage: its last slots stand in front, known, and the decoder is given all of them, whose
  frames are dropped;
- the clip is a loop: all its slots hold four frames, the one after the last is the first, and the decoder is given the
  last ones as warm-up before the first.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from dit_video.diffusion.windows import Windows, layout, noise_order
from dit_video.generate.mode import TAIL, Plan

OPENING = 2**31  # noise of slots that are dropped: frames from here on, which no clip reaches
WARM_UP = 3  # slots of a loop that the decoder is given before the first


@dataclass(frozen=True)
class Shot:
    """One stream. `prompts` are (first slot, number of the prompt), the first at slot 0."""

    slots: int
    noise: Int[np.ndarray, "slots"]  # the frame of noise that each slot starts from
    zero: int  # rotary time of the clip's frame 0; frame f stands at zero + f / stride
    prompts: tuple[tuple[int, int], ...]
    prefix: int = 0  # slots in front that are known from given footage
    ring: bool = False
    skip: int = 0  # decoded frames in front that are dropped

    @property
    def mid(self) -> bool:
        """Whether slot 0 holds as many frames as the others."""
        return self.prefix > 0 or self.ring

    @property
    def cut(self) -> bool:
        """Whether slot 0 is no slot of the clip: it stands in front of a prompt that begins later."""
        return self.prompts[0][1] > 0

    def prompt_at(self, slot: int) -> int:
        return [number for start, number in self.prompts if start <= slot][-1]


def windows_of(shot: Shot, plan: Plan) -> Windows:
    return layout(shot.slots, plan.window, min(plan.overlap, shot.slots - 1), shot.ring)


def prompts_of(shot: Shot, plan: Plan) -> list[int]:
    """Which prompt each pass over a shot takes: the one that has most of what the pass makes, of two the later."""
    if shot.ring or plan.mode == "window":
        windows = windows_of(shot, plan)
        passes = [(windows.places(i), weights) for i, weights in enumerate(windows.weights())]
    else:
        ends = range(plan.window, shot.slots, plan.window - plan.overlap) if plan.mode == "extend" else ()
        passes = [(np.arange(*ends), np.ones(1)) for ends in pairwise((0, *ends, shot.slots))]
    numbers = np.array([shot.prompt_at(slot) for slot in range(shot.slots)])
    made = np.arange(shot.slots) >= shot.prefix
    shares = [np.bincount(numbers[slots], weights * made[slots]) for slots, weights in passes]
    return [len(share) - 1 - int(share[::-1].argmax()) for share in shares]


def change_slot(seconds: float, fps: float, stride: int) -> int:
    """The slot that begins nearest to a time: slot s begins with frame stride * (s - 1) + 1."""
    return max(1, round((seconds * fps + stride - 1) / stride))


def shots(
    slots: int, stride: int, changes: tuple[int, ...], plan: Plan, seed: int, *, cut: bool = True, history: int = 0,
    loop: bool = False, order: str = "fresh",
) -> list[Shot]:  # fmt: skip
    """The streams of a clip of `slots` latent slots whose prompts change at the slots `changes`.

    With `history` latent slots of given footage the clip's slot 0 is the last of them. A loop has one slot less, and
    `stride` frames in each.
    """
    noise = noise_order(slots, plan.window, order, seed)
    numbered = tuple(zip((0, *changes), range(len(changes) + 1), strict=True))
    if loop:
        turns = tuple((max(0, at - 1), number) for at, number in numbered)
        return [Shot(slots - 1, noise[1:], 0, turns, ring=True, skip=1 + (WARM_UP - 1) * stride)]
    first = changes[0] if cut and changes else slots
    prompts = ((0, 0),) if cut else numbered
    if history:
        known = min(history - 1, TAIL)  # without the footage's first slot, of one frame: training's tails have four
        shift = known - 1
        opening = Shot(
            first + shift, np.concatenate([OPENING + np.arange(shift), noise[:first]]), shift,
            tuple((at + shift if at else 0, number) for at, number in prompts),
            prefix=known, skip=1 + (history - 1) * stride,
        )  # fmt: skip
    else:
        opening = Shot(first, noise[:first], 0, prompts)
    later = []
    for number, (begin, end) in enumerate(pairwise((*changes, slots)), 1):
        if cut:
            own = np.concatenate([[OPENING + begin], noise[begin:end]])
            later.append(Shot(1 + end - begin, own, 1 - begin, ((0, number),), skip=1))
    return [opening, *later]
