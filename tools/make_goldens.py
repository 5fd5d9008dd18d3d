"""Makes tests/goldens/*.npz: what the reference implementations compute for tiny random models.

    pip install '.[parity]' && python tools/make_goldens.py [STAGE...]

The parts are in golden_stages.py; here are whole pipelines, the names and shapes of the released models, and the list.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from golden_stages import (
    GOLDENS,
    TEXT_ROWS,
    Stage,
    case,
    dit_config,
    dit_inputs,
    dit_outputs,
    dit_reference,
    first,
    given_inputs,
    given_outputs,
    image_config,
    image_inputs,
    image_outputs,
    image_reference,
    lora_inputs,
    lora_outputs,
    normal,
    picture_inputs,
    picture_outputs,
    refer,
    scheduler_config,
    scheduler_inputs,
    scheduler_outputs,
    text_config,
    text_inputs,
    text_outputs,
    text_reference,
    vae_config,
    vae_inputs,
    vae_outputs,
    vae_reference,
)

# -- whole pipelines: four steps with guidance, from the same latents and ids of prompts to frames ------------------

PIPELINES = {
    "t2v": "WanPipeline",
    "ti2v": "WanImageToVideoPipeline",
    "ti2v_text": "WanPipeline",
    "i2v": "WanImageToVideoPipeline",
    "flf2v": "WanImageToVideoPipeline",
    "t2v_a14b": "WanPipeline",
    "i2v_a14b": "WanImageToVideoPipeline",
    "vace": "WanVACEPipeline",
}


def pipeline_config(rng, variant: str):
    expand = variant.startswith("ti2v")
    vae = vae_config(rng, residual=expand)
    z = vae["z_dim"]
    vae |= {"num_res_blocks": 1, "temperal_downsample": [True, True], "dim_mult": [1, 2, 2]}
    vae["latents_mean"], vae["latents_std"] = ([round(float(n), 3) for n in 0.5 + rng.random(z)] for _ in range(2))
    if not expand:  # the control pipeline knows no patches
        vae |= {"patch_size": None, "in_channels": 3, "out_channels": 3}
    vae["scale_factor_spatial"] = 4 * (vae["patch_size"] or 1)
    dit, text = dit_config(rng, variant, z), text_config(rng)
    two = "a14b" in variant
    config = {
        "pipeline": PIPELINES[variant], "vae": vae, "transformer": dit | {"patch_size": [1, 2, 2]},
        "text_encoder": text | {"d_model": dit["text_dim"]},
        "flow_shift": float(rng.choice([3.0, 5.0, 8.0])), "guidance": 4.0, "guidance_2": 2.5 if two else None,
        "boundary": 0.9 if two else None, "expand_timesteps": expand,
        "frames": 1 + 4 * int(rng.integers(1, 3)), "size": [int(n) for n in rng.permutation([16, 32])],
        "steps": 4, "references": 2 if variant == "vace" else 0,
        "image_encoder": None,
    }  # fmt: skip
    dit = config["transformer"]
    if variant == "vace":
        dit["vace_in_channels"] = 2 * z + 16
    if dit["image_dim"]:
        config["image_encoder"] = image_config(rng) | {"hidden_size": dit["image_dim"], "num_attention_heads": 1}
        encoder = config["image_encoder"]
        if dit["pos_embed_seq_len"]:
            dit["pos_embed_seq_len"] = 2 * (1 + (encoder["image_size"] // encoder["patch_size"]) ** 2)
    return config


def pipeline_inputs(config, rng):
    factor, (height, width) = config["vae"]["scale_factor_spatial"], config["size"]
    slots = 1 + (config["frames"] - 1) // 4 + config["references"]
    length = rng.integers(1, 12, 2).astype(np.int32)  # of the prompt and of the negative prompt
    ids = rng.integers(3, config["text_encoder"]["vocab_size"], (2, 12)) * (np.arange(12) < length[:, None])
    pixels = lambda n: rng.integers(0, 256, (n, height, width, 3), np.uint8)  # noqa: E731
    return {
        "latents": normal(rng, 1, slots, height // factor, width // factor, config["vae"]["z_dim"]),
        "ids": ids.astype(np.int32),
        "length": length,
        "pictures": pixels(2),
        "video": pixels(config["frames"]),
        "mask": (rng.random((config["frames"], height, width)) < 0.5).astype(np.uint8) * 255,
    }


def pipeline_reference(config):
    import torch

    parts = {"vae": vae_reference(config["vae"]), "transformer": dit_reference(config["transformer"])}
    parts["text_encoder"] = text_reference(config["text_encoder"])
    if config["boundary"]:
        parts["transformer_2"] = dit_reference(config["transformer"])
    if config["image_encoder"]:
        parts["image_encoder"] = image_reference(config["image_encoder"])
    return torch.nn.ModuleDict(parts)


def pipeline_outputs(module, config, inputs):
    import diffusers
    import torch
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config["flow_shift"]
    )
    parts = {"tokenizer": None, "scheduler": scheduler, "boundary_ratio": config["boundary"]}
    given, (first_picture, last_picture) = {}, (Image.fromarray(picture) for picture in inputs["pictures"])
    if config["pipeline"] == "WanImageToVideoPipeline":
        given = {"image": first_picture}
    if config["image_encoder"]:
        size = config["image_encoder"]["image_size"]
        crop = {"height": size, "width": size}
        parts["image_processor"] = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop)
    if config["transformer"]["pos_embed_seq_len"]:
        given["last_image"] = last_picture
    if config["references"]:
        video, mask = ([Image.fromarray(frame).convert("RGB") for frame in inputs[name]] for name in ("video", "mask"))
        given = {"video": video, "mask": mask, "reference_images": [first_picture, last_picture]}
    else:
        parts["expand_timesteps"] = config["expand_timesteps"]
    pipeline = getattr(diffusers, config["pipeline"])(**dict(module.items()), **parts)
    pipeline.set_progress_bar_config(disable=True)
    rows = text_outputs(module["text_encoder"], config["text_encoder"], inputs)["rows"]
    rows = torch.nn.functional.pad(torch.from_numpy(rows), (0, 0, 0, TEXT_ROWS - rows.shape[1]))
    second = {"guidance_scale_2": config["guidance_2"]} if config["boundary"] else {}
    frames = pipeline(
        prompt_embeds=rows[:1], negative_prompt_embeds=rows[1:], height=config["size"][0], width=config["size"][1],
        num_frames=config["frames"], num_inference_steps=config["steps"], guidance_scale=config["guidance"], **second,
        latents=first(inputs["latents"]), output_type="np", **given,
    ).frames  # fmt: skip
    return {"frames": np.asarray(frames, np.float32)}


def _pipeline(variant: str) -> Stage:
    return Stage(lambda rng: pipeline_config(rng, variant), pipeline_inputs, pipeline_reference, pipeline_outputs)


def _dit(variant: str, inputs: Callable = dit_inputs, outputs: Callable = dit_outputs) -> Stage:
    return Stage(
        lambda rng: dit_config(rng, variant), lambda config, rng: inputs(config, rng, variant), dit_reference, outputs
    )


STAGES: dict[str, Stage] = {
    "text": Stage(text_config, text_inputs, text_reference, text_outputs),
    "image": Stage(image_config, image_inputs, image_reference, image_outputs),
    "picture": Stage(lambda rng: {"size": int(rng.integers(16, 64))}, picture_inputs, lambda _: None, picture_outputs),
    "vae": Stage(lambda rng: vae_config(rng, residual=False), vae_inputs, vae_reference, vae_outputs),
    "vae_residual": Stage(lambda rng: vae_config(rng, residual=True), vae_inputs, vae_reference, vae_outputs),
    **{name: _dit(name) for name in ("block", "t2v", "i2v", "flf2v", "i2v_a14b", "ti2v", "vace")},
    "given": Stage(lambda _: {}, given_inputs, lambda _: None, given_outputs),
    "lora": _dit("t2v", lora_inputs, lora_outputs),
    "scheduler": Stage(scheduler_config, scheduler_inputs, lambda _: None, scheduler_outputs),
    **{f"pipeline_{name}": _pipeline(name) for name in PIPELINES},
    **{f"lora_{name}": _dit(name, lora_inputs, lora_outputs) for name in ("i2v", "flf2v", "i2v_a14b", "ti2v", "vace")},
}


# -- names and shapes of the released sizes --------------------------------------------------------------------------

_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
_1_3B = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
_5B = {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}
_IMAGE = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
TREES: dict[str, tuple[str, dict]] = {
    "t2v_1.3b": ("WanTransformer3DModel", _1_3B),
    "t2v_14b": ("WanTransformer3DModel", _14B),
    "i2v_14b": ("WanTransformer3DModel", _14B | _IMAGE),
    "flf2v_14b": ("WanTransformer3DModel", _14B | _IMAGE | {"pos_embed_seq_len": 514}),
    "ti2v_5b": ("WanTransformer3DModel", _5B),
    "i2v_a14b": ("WanTransformer3DModel", _14B | {"in_channels": 36}),
    "vace_1.3b": ("WanVACETransformer3DModel", _1_3B | {"vace_layers": [*range(0, 30, 2)]}),
    "vace_14b": ("WanVACETransformer3DModel", _14B | {"vace_layers": [*range(0, 40, 5)]}),
    "vae_2.1": ("AutoencoderKLWan", {}),
    "vae_2.2": (
        "AutoencoderKLWan",
        {
            "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
            "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
            "latents_std": [1.0] * 48,
        },
    ),
    "umt5_xxl": (
        "UMT5EncoderModel",
        {
            "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
            "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu",
        },
    ),
    "clip_vit_h": (
        "CLIPVisionModel",
        {
            "hidden_size": 1280, "num_attention_heads": 16, "num_hidden_layers": 32, "intermediate_size": 5120,
            "patch_size": 14, "hidden_act": "gelu",
        },
    ),
}  # fmt: skip


def tree(kind: str, arguments: dict) -> tuple[dict, dict[str, tuple[int, ...]]]:
    """The whole config of a released size, and {name: shape} of its weights, on torch's meta device."""
    import diffusers
    import torch
    import transformers

    with torch.device("meta"):
        if kind == "UMT5EncoderModel":
            module = transformers.UMT5EncoderModel(transformers.UMT5Config(**arguments))
        elif kind == "CLIPVisionModel":
            module = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**arguments))
        else:
            module = getattr(diffusers, kind)(**arguments)
    config = dict(module.config) if kind not in ("UMT5EncoderModel", "CLIPVisionModel") else module.config.to_dict()
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    return json.loads(json.dumps(config, default=str)), shapes


def main(*wanted: str) -> None:
    """Makes the goldens of the stages that are named, or all."""
    GOLDENS.mkdir(exist_ok=True)
    for number, (name, stage) in enumerate(STAGES.items()):
        if wanted and name not in wanted:
            continue
        config, inputs = case(stage, number)
        outputs = refer(stage, number, config, inputs)[1]
        np.savez_compressed(GOLDENS / f"{name}.npz", seed=number, config=json.dumps(config), **outputs)
        print(f"{name:14} {sum(a.size for a in outputs.values()):8} numbers")
    if wanted and "trees" not in wanted:
        return
    trees = {name: json.dumps(tree(*sizes)) for name, sizes in TREES.items()}
    np.savez_compressed(GOLDENS / "trees.npz", **trees)
    print(f"trees: {', '.join(trees)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
