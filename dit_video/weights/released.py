"""What the released models of the Wan family were made for: size, length, steps, guidance, shift.

Their folders do not say it: the converter to the diffusers layout wrote one `flow_shift` for most of them, and
diffusers has constants for the rest. A model is told by its structure. Sources: the configs and READMEs of Wan 2.1, Wan
2.2 and VACE.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from dit_video.core.log import log
from dit_video.weights.model import Defaults, Model

_480 = ((480, 832), (832, 480), (624, 624))
_720 = ((720, 1280), (1280, 720), (960, 960))
CONVERTERS_SHIFT = 3.0  # what the converter writes, whatever the model


class Release(NamedTuple):
    name: str
    defaults: Defaults


def _wan(name: str, sizes: tuple[tuple[int, int], ...] = _480, **others) -> Release:
    (height, width), values = sizes[0], {"num_frames": 81, "max_frames": 81, "fps": 16.0, "steps": 50, "guidance": 5.0}
    values |= {"height": height, "width": width, "sizes": sizes, "conditions": ("first",)}
    return Release(name, Defaults(**(values | others)))


ANY = _wan("a model of the Wan family")
# (pipeline, heads, channels in, experts) -> what it is
RELEASES = {
    ("WanPipeline", 12, 16, 1): _wan("Wan 2.1 T2V 1.3B", guidance=6.0, shift=8.0),
    ("WanPipeline", 40, 16, 1): _wan("Wan 2.1 T2V 14B", sizes=_720, shift=5.0),
    ("WanPipeline", 40, 16, 2): _wan(
        "Wan 2.2 T2V A14B", sizes=_720, shift=12.0, steps=40, guidance=4.0, guidance_2=3.0
    ),
    ("WanPipeline", 24, 48, 1): _wan(
        "Wan 2.2 TI2V 5B",
        sizes=((704, 1280), (1280, 704)),
        shift=5.0,
        num_frames=121,
        max_frames=121,
        fps=24.0,
    ),
    ("WanImageToVideoPipeline", 40, 36, 1): _wan("Wan 2.1 I2V 14B", steps=40),
    ("WanImageToVideoPipeline", 40, 36, 2): _wan(
        "Wan 2.2 I2V A14B", sizes=_720, shift=5.0, steps=40, guidance=3.5, guidance_2=3.5
    ),
    ("WanVACEPipeline", 12, 16, 1): _wan("Wan 2.1 VACE 1.3B", shift=16.0),
    ("WanVACEPipeline", 40, 16, 1): _wan("Wan 2.1 VACE 14B", sizes=_720, shift=16.0),
}
RELEASES[("WanImageToVideoPipeline", 24, 48, 1)] = RELEASES[("WanPipeline", 24, 48, 1)]
FLF2V = _wan("Wan 2.1 FLF2V 14B", sizes=_720, shift=16.0)
SOLVERS = {
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
# What the denoiser puts out -> what a scheduler of diffusers calls it.
PREDICTIONS = {"velocity": "flow_prediction", "data": "sample"}
_OFF = (False, None)
_ANY = {
    "prediction_type": tuple(PREDICTIONS.values()), "num_train_timesteps": (1000,), "use_karras_sigmas": _OFF,
    "use_exponential_sigmas": _OFF, "use_beta_sigmas": _OFF,
}  # fmt: skip
_MULTISTEP = _ANY | {
    "solver_order": (2,), "use_flow_sigmas": (True,), "final_sigmas_type": ("zero",), "thresholding": _OFF,
}  # fmt: skip
# Class of a scheduler -> the settings that change what it does to a flow: the values that our solver has.
SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "UniPCMultistepScheduler": _MULTISTEP | {
        "solver_type": ("bh2", "midpoint", "heun", "logrho"),  # names of other solvers, which are read as the first
        "predict_x0": (True,), "lower_order_final": (True,), "disable_corrector": ([],), "solver_p": (None,),
        "use_dynamic_shifting": _OFF, "shift_terminal": _OFF,
    },
    "FlowMatchEulerDiscreteScheduler": _ANY | {
        "use_dynamic_shifting": _OFF, "shift_terminal": _OFF, "stochastic_sampling": _OFF, "invert_sigmas": _OFF,
    },
    "DPMSolverMultistepScheduler": _MULTISTEP | {
        "algorithm_type": ("dpmsolver++",), "solver_type": ("midpoint", "bh1", "bh2", "logrho"), "use_lu_lambdas": _OFF,
    },
}  # fmt: skip


def release(model: Model) -> Release:
    """What a model is, by its structure."""
    if model.dit.image_len:
        return FLF2V
    return RELEASES.get((model.pipeline, model.dit.heads, model.dit.in_channels, 1 + (model.dit_2 is not None)), ANY)


def with_defaults(model: Model) -> Model:
    """The model with the defaults of its release. A shift that is the converter's gives way to the native one, with a
    line in the log."""
    name, defaults = release(model)
    stored = model.scheduler.get("flow_shift", model.scheduler.get("shift"))
    if defaults.shift is None or stored not in (None, CONVERTERS_SHIFT):
        defaults = replace(defaults, shift=stored)
    elif stored is not None and stored != defaults.shift:
        log.info(
            "%s: the scheduler's config says flow_shift %g, which the converter wrote; this is %s, made for %g: taking "
            "that (--shift %g for the other)", model.name, stored, name, defaults.shift, stored,
        )  # fmt: skip
    solver = SOLVERS[model.scheduler.get("_class_name", "UniPCMultistepScheduler")]
    log.debug("%s is %s: guidance %g and %s", model.name, name, defaults.guidance, defaults.guidance_2)
    return replace(model, defaults=replace(defaults, solver=solver))


def as_released(model: Model) -> Model:
    """The model with the defaults of its release and a scheduler of its shift, whatever it had."""
    name, defaults = release(model)
    shift = defaults.shift or CONVERTERS_SHIFT
    key = "shift" if "shift" in model.scheduler else "flow_shift"
    log.info("%s: sampled as %s, with shift %g and guidance %g", model.name, name, shift, defaults.guidance)
    return with_defaults(replace(model, scheduler=model.scheduler | {key: shift}))
