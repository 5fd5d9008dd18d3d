"""Text to video with diffusion transformers in JAX.

    from dit_video import VideoPipeline
    VideoPipeline.from_pretrained()("a red circle moves right").save("circle.mp4")

The names below are loaded on first use, so that `import dit_video` and `dit-video --help` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_video.generate.clip import Clip
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.train.experiment import Experiment

__version__ = "0.1.0"
__all__ = ["Clip", "Experiment", "VideoPipeline", "__version__"]

_HOME = {
    "Clip": "dit_video.generate.clip",
    "Experiment": "dit_video.train.experiment",
    "VideoPipeline": "dit_video.generate.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dit_video' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
