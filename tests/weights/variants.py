"""Small random models of every variant of the family, whole: what the released ones are in structure."""

import runpy
from dataclasses import replace
from pathlib import Path

from dit_video.models.image_encoder import ImageConfig

miniature = runpy.run_path(str(Path(__file__).parents[1] / "miniature.py"))
UNIPC = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True,
    "num_train_timesteps": 1000, "flow_shift": 3.0,
}  # fmt: skip
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 5.0}
IMAGE = ImageConfig(width=20, heads=2, depth=2, ffn_dim=24, size=16, patch=8)
VARIANTS = ("t2v", "i2v", "flf2v", "ti2v", "t2v_a14b", "i2v_a14b", "vace")


def variant(name):
    """A `Model` with the parts and settings of a released variant, a few thousand random weights."""
    model = replace(miniature["miniature"](), scheduler=UNIPC, expand_timesteps=False)
    model = replace(model, vae=replace(model.vae, latents_mean=(0.5, -1.0, 0.0, 2.0), latents_std=(1.0, 2.0, 0.5, 3.0)))
    dit, z = model.dit, model.vae.z
    concat = replace(dit, in_channels=2 * z + 4)
    clip = replace(concat, image_dim=IMAGE.width)
    experts = {"dit_2": dit, "boundary": 0.875}
    changes = {
        "t2v": {},
        "i2v": {"dit": clip, "image": IMAGE, "pipeline": "WanImageToVideoPipeline"},
        "flf2v": {"dit": replace(clip, image_len=10), "image": IMAGE, "pipeline": "WanImageToVideoPipeline"},
        "ti2v": {
            "vae": replace(model.vae, residual=True, mult=(1, 2, 2)), "expand_timesteps": True, "scheduler": EULER,
        },
        "t2v_a14b": experts,
        "i2v_a14b": {"dit": concat, **experts, "dit_2": concat, "pipeline": "WanImageToVideoPipeline"},
        "vace": {
            "dit": replace(dit, vace_layers=(0, 1), vace_channels=2 * z + 64), "pipeline": "WanVACEPipeline",
        },
    }[name]  # fmt: skip
    model = replace(model, **changes)
    params = {part: miniature["random_weights"](cfg, seed) for seed, (part, cfg) in enumerate(model.parts.items())}
    return replace(model, params=params, name=name)
