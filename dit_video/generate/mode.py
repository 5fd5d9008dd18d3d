"""How a clip of any length is made: in one pass, in windows, or chunk after chunk. Pure functions of sizes.

- *single*: all patches in one pass of the denoiser. Beyond the trained length time's rotary frequencies can be
  stretched.
- *window*: overlapping windows, denoised together and blended at each step. Asks nothing of the model.
- *extend*: chunk after chunk, the last latents of one known in the next. For models that were trained to go on from a
  tail.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dit_video.core.errors import BadInput
from dit_video.models.given import takes_frames
from dit_video.nn.rotary import METHODS, Stretch

if TYPE_CHECKING:
    from dit_video.models.dit import DiTConfig
    from dit_video.weights.model import Model

Mode = Literal["single", "window", "extend"]
MODES = ("single", "window", "extend", "auto")
TAIL = 2  # latent slots of a chunk that the next one goes on from: the most that training shows
FREE = 2  # times the trained length that RIFLEx reaches without training


@dataclass(frozen=True)
class Plan:
    """What was picked and why. `window` and `overlap` are latent slots of a pass and what neighbours share."""

    mode: Mode
    why: str
    window: int
    overlap: int
    reach: int  # latent slots that the sink may be away: what training showed
    stretch: Stretch | None = None


def abilities(model: "Model") -> frozenset[str]:
    """What this model can be given of a clip, by its structure.

    With a time per token: what its `Defaults.conditions` name, as known latents. (Training here shows a first frame,
    one picture elsewhere, a tail and a sink. Masks and several pictures are what the mechanism can do beside.) With
    further channels beside the noise: the first frame, and the last where that was trained, or where nothing is in its
    way (a model that looks at one picture's tokens has no place for another's). With a control branch: whatever can
    stand in its video, and pictures to refer to. "free" are those that are given nothing for all of a clip: their noise
    may begin anywhere and their clips be made piece by piece.
    """
    dit = model.dit
    if dit.vace_layers:
        return frozenset({"first", "picture", "mask", "control", "reference"})
    if beside_noise(model):
        return frozenset({"first"} if dit.image_dim and not dit.image_len else {"first", "last"})
    return frozenset({"free", *(model.defaults.conditions if model.expand_timesteps else ())})


def beside_noise(model: "Model") -> bool:
    """`takes_frames`. Raises BadInput for two denoisers of different sizes too, which are not run here."""
    if model.dit_2 not in (None, model.dit):
        raise BadInput(
            f"{model.name}: its two denoisers differ in size. Models like Wan 2.2 A14B are run, with equal ones."
        )
    return takes_frames(model.dit, model.vae, model.name)


def wanted(model: "Model") -> tuple[str, ...]:
    """Flags without which the model makes no clip."""
    if not beside_noise(model):
        return ()
    return ("image", "last_image") if model.dit.image_len else ("image",)


def slots_of(frames: int, stride: int) -> int:
    """Latent slots of a clip: slot 0 holds one frame."""
    return 1 + (frames - 1) // stride


def pass_bytes(dit: "DiTConfig", slots: int, height: int, width: int, *, guided: bool = True) -> int:
    """About what one pass of the denoiser needs beside its weights: the activations of a layer, attention's logits.
    Sizes are those of the latents. An estimate from above: a compiler may do with less."""
    D, F = dit.width, dit.ffn_dim
    tokens = (slots // dit.patch[0]) * (height // dit.patch[1]) * (width // dit.patch[2])
    clips, number = (2 if guided else 1), (4 if dit.dtype == "float32" else 2)
    rows = tokens if dit.attention == "xla" else min(tokens, 512)
    activations = clips * tokens * (8 * D + F) * number
    logits = clips * dit.heads * rows * tokens * 4 * 2
    return activations + logits


def choose(
    model: "Model", frames: int, height: int, width: int, memory: int | None, asked: str = "auto", *,
    guided: bool = True, rope: str | None = None, window: int | None = None, overlap: int | None = None, ways: int = 1,
) -> Plan:  # fmt: skip
    """The plan for a clip of `frames` frames and `height` x `width` pixels with `memory` bytes (None: enough) on
    each of the devices between which a pass is split `ways`.

    auto takes one pass as long as that is what training showed and it fits; up to twice that length one pass with
    RIFLEx, for a model that cannot go on from a tail; else chunks for a model that can, and windows for one that
    cannot. `asked` names a mode instead. `window` and `overlap` are latent slots.
    Raises BadInput for what the model cannot do or what does not exist.
    """
    if asked not in MODES:
        raise BadInput(f"long={asked!r} is unknown. Use {', '.join(MODES)}.")
    if rope not in (None, "none", *METHODS):
        raise BadInput(f"rope={rope!r} is unknown. Use none, {', '.join(METHODS)}.")
    defaults, stride, can = model.defaults, model.vae.stride, abilities(model)
    h, w = height // model.vae.factor, width // model.vae.factor
    slots = slots_of(frames, stride)
    trained = slots_of(max(defaults.max_frames, defaults.num_frames), stride)
    usual = slots_of(defaults.num_frames, stride)
    share = lambda slots: pass_bytes(model.dit, slots, h, w, guided=guided) // ways  # noqa: E731
    need = share(slots)
    fits = memory is None or need <= memory
    said = f"{slots} latent frames, {need / 2**20:,.0f} MiB a pass{' and device' if ways > 1 else ''}"
    room = "" if memory is None else f", {memory / 2**20:,.0f} MiB free"

    if asked in ("window", "extend") and "free" not in can:
        raise BadInput(f"--long {asked}: this model is given a picture or control for all of a clip. Use single.")
    if asked == "extend" and "tail" not in can:
        raise BadInput("--long extend: this model was not trained to go on from a tail. Use window or single.")
    if asked != "auto":
        mode, why = asked, f"asked for ({said}{room})"
    elif "free" not in can:
        mode, why = "single", f"the model is given a picture or control for all of a clip ({said}{room})"
    elif fits and slots <= trained:
        mode, why = "single", f"no longer than in training ({said}{room})"
    elif fits and slots <= FREE * trained and "tail" not in can:
        mode, why = "single", f"up to {FREE} x the {trained} of training, with RIFLEx ({said}{room})"
        rope = rope or "riflex"
    else:
        mode = "extend" if "tail" in can else "window"
        over = f"more than the {trained} of training" if slots > trained else "more than fits"
        able = "can" if "tail" in can else "cannot"
        why = f"{over} ({said}{room}), and the model {able} go on from a tail"

    length = max(usual, TAIL + 1) if window is None else window
    if window is None:
        while memory is not None and length > TAIL + 1 and share(length) > memory:
            length -= 1
    if length <= TAIL:
        raise BadInput(f"window={length}: a window has at least {TAIL + 1} latent frames.")
    shared = TAIL if overlap is None or mode == "extend" else overlap
    if not 0 <= shared < length:
        raise BadInput(f"overlap={shared}: windows of {length} latent frames can share 0 to {length - 1}.")
    longer = mode == "single" and slots > trained and rope not in (None, "none")
    stretch = Stretch(rope, trained, slots) if longer else None
    return Plan(mode, why, length, shared, max(1, trained - length), stretch)
