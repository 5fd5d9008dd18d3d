"""Parts of models that goldens are made of: what the reference implementations compute for tiny random ones.

A stage is a model, or a part of its preparation, with everything about it drawn from a seed: the config, the inputs,
and every weight by its name. So a golden holds only the seed, the config and the reference's outputs, and tests draw
the same again and compare: with the goldens anywhere, and against the living reference with fresh seeds where diffusers
0.42.1 and transformers 5.23.0 are installed. Arrays are channels-last here, as in the package.
"""

import copy
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

GOLDENS = Path(__file__).resolve().parents[1] / "tests" / "goldens"
Arrays = dict[str, np.ndarray]
TEXT_ROWS = 512  # that the reference pads text to


class Stage(NamedTuple):
    config: Callable[[np.random.Generator], dict]  # as the reference's config.json has it
    inputs: Callable[[dict, np.random.Generator], Arrays]
    reference: Callable[[dict], Any]  # the reference's module; None: there are no weights
    outputs: Callable[[Any, dict, Arrays], Arrays]


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A weight of the reference's name and shape, away from the zeros and ones at which mistakes hide."""
    u = np.random.default_rng([seed, zlib.crc32(name.encode())]).random(shape, np.float32) * 2 - 1
    if "norm" in name and not name.endswith("bias"):
        return 1 + u / 2
    if len(shape) < 2 or "table" in name or "pos_embed" in name:
        return u / 2
    if "SelfAttention.q" in name:  # T5 does not scale its logits, the size of the queries' weights does
        u /= 4
    return u * np.float32(np.sqrt(3 / np.prod(shape[1:])))


def case(stage: Stage, seed: int, config: dict | None = None) -> tuple[dict, Arrays]:
    """The config (unless it is given) and the inputs of a seed."""
    config = stage.config(np.random.default_rng([seed, 0])) if config is None else config
    return config, stage.inputs(config, np.random.default_rng([seed, 1]))


def refer(stage: Stage, seed: int, config: dict, inputs: Arrays) -> tuple[Any, Arrays]:
    """The reference's module with its weights (None where there is none), and what it computes."""
    import torch

    module = stage.reference(config)
    module = None if module is None else weighted(module, seed)
    with torch.no_grad():
        return module, {name: np.asarray(array) for name, array in stage.outputs(module, config, inputs).items()}


def weighted(module: Any, seed: int) -> Any:
    """The reference's module with weights drawn by their names."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(draw(name, tuple(parameter.shape), seed)))
    return module.eval()


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def first(array: np.ndarray) -> Any:
    """Channels-last NumPy -> channels-first torch."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def last(tensor: Any) -> np.ndarray:
    return np.moveaxis(tensor.detach().float().numpy(), 1, -1)


# -- text encoder, image encoder -------------------------------------------------------------------------------------


def text_config(rng):
    return {
        "model_type": "umt5", "vocab_size": 64, "d_model": 8 * int(rng.integers(2, 5)),
        "d_kv": 8 * int(rng.integers(1, 4)), "d_ff": 8 * int(rng.integers(3, 7)),
        "num_layers": int(rng.integers(1, 4)), "num_heads": int(rng.integers(1, 4)),
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
    }  # fmt: skip


def text_inputs(config, rng):
    S = int(rng.integers(20, 180))
    length = np.array([S, *rng.integers(1, S, 2)], np.int32)
    ids = rng.integers(3, config["vocab_size"], (3, S)).astype(np.int32)
    return {"ids": np.where(np.arange(S) < length[:, None], ids, 0).astype(np.int32), "length": length}


def text_reference(config):
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**config))


def text_outputs(module, config, inputs):
    import torch

    mask = np.arange(inputs["ids"].shape[1]) < inputs["length"][:, None]
    rows = module(
        torch.from_numpy(inputs["ids"]).long(), attention_mask=torch.from_numpy(mask).long()
    ).last_hidden_state
    return {"rows": np.where(mask[..., None], rows.numpy(), 0)}


def image_config(rng):
    heads, patch = int(rng.integers(1, 4)), int(rng.choice([2, 7, 14]))
    return {
        "model_type": "clip_vision_model", "hidden_size": heads * 8 * int(rng.integers(1, 3)),
        "num_attention_heads": heads, "num_hidden_layers": int(rng.integers(2, 5)),
        "intermediate_size": 8 * int(rng.integers(3, 7)), "image_size": patch * int(rng.integers(2, 5)),
        "patch_size": patch, "num_channels": 3, "layer_norm_eps": 1e-5,
        "hidden_act": str(rng.choice(["gelu", "quick_gelu"])),
    }  # fmt: skip


def image_inputs(config, rng):
    return {"pictures": normal(rng, 2, config["image_size"], config["image_size"], 3)}


def image_reference(config):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**config))


def image_outputs(module, config, inputs):
    return {"tokens": module(first(inputs["pictures"]), output_hidden_states=True).hidden_states[-2].numpy()}


def picture_inputs(config, rng):
    sizes = rng.integers(20, 200, (3, 2))
    return {f"picture_{n}": rng.integers(0, 256, (*size, 3), np.uint8) for n, size in enumerate(sizes)}


def picture_outputs(module, config, inputs):
    from transformers import CLIPImageProcessorPil

    size = config["size"]
    prepare = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return {name: last(prepare(picture, return_tensors="pt").pixel_values)[0] for name, picture in inputs.items()}


# -- VAE -------------------------------------------------------------------------------------------------------------

FRAMES = (1, 5, 17)


def vae_config(rng, *, residual: bool):
    patch = 2 if residual else int(rng.choice([1, 2]))
    temporal = [[True, True], [False, True, True]][int(rng.integers(2))]
    mult = [1, *([2] * len(temporal))] if residual else [1, *(int(m) for m in rng.integers(1, 4, len(temporal)))]
    z, base = int(rng.integers(2, 6)), 4 * int(rng.integers(1, 3))
    return {
        "base_dim": base, "decoder_base_dim": base + 4 * int(rng.integers(0, 2)), "z_dim": z, "dim_mult": mult,
        "num_res_blocks": int(rng.integers(1, 3)), "attn_scales": [], "temperal_downsample": temporal,
        "is_residual": residual, "in_channels": 3 * patch**2, "out_channels": 3 * patch**2,
        "patch_size": patch if patch > 1 else None, "scale_factor_temporal": 4,
        "scale_factor_spatial": patch * 2 ** len(temporal), "latents_mean": [0.0] * z, "latents_std": [1.0] * z,
    }  # fmt: skip


def vae_inputs(config, rng):
    side = config["scale_factor_spatial"]
    size = (2 * side, side * int(rng.integers(1, 3)))
    clips = {f"video_{n}": rng.random((1, n, *size, 3), np.float32) * 2 - 1 for n in FRAMES}
    latents = (2, size[1] // side, config["z_dim"])
    return clips | {f"latents_{n}": normal(rng, 1, 1 + (n - 1) // 4, *latents) for n in FRAMES}


def vae_reference(config):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**config)


def vae_outputs(module, config, inputs):
    outputs = {}
    for n in FRAMES:
        posterior = module.encode(first(inputs[f"video_{n}"])).latent_dist
        outputs |= {f"mean_{n}": last(posterior.mean), f"logvar_{n}": last(posterior.logvar)}
        outputs[f"video_{n}"] = last(module.decode(first(inputs[f"latents_{n}"])).sample)
    return outputs


# -- denoiser --------------------------------------------------------------------------------------------------------


def dit_config(rng, variant: str, z: int | None = None):
    heads, head_dim, layers = int(rng.integers(1, 4)), int(rng.choice([12, 16, 20, 32])), int(rng.integers(2, 5))
    z = z or int(rng.integers(2, 7))
    config = {
        "num_attention_heads": heads, "attention_head_dim": head_dim, "num_layers": 1 if variant == "block" else layers,
        "ffn_dim": 8 * int(rng.integers(3, 9)), "in_channels": z, "out_channels": z,
        "text_dim": 8 * int(rng.integers(1, 4)), "freq_dim": 32, "patch_size": [1, 2, 2],
        "cross_attn_norm": bool(rng.random() < 0.8), "eps": 1e-6, "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024, "image_dim": None, "added_kv_proj_dim": None, "pos_embed_seq_len": None,
    }  # fmt: skip
    if variant in ("block", "t2v"):
        config["patch_size"] = [[1, 2, 2], [2, 2, 1]][int(rng.integers(2))]
    if variant in ("i2v", "flf2v", "i2v_a14b"):
        config["in_channels"] = 2 * z + 4
    if variant in ("i2v", "flf2v"):
        config |= {"image_dim": 8 * int(rng.integers(1, 4)), "added_kv_proj_dim": heads * head_dim}
    if variant == "flf2v":
        config["pos_embed_seq_len"] = 2 * int(rng.integers(3, 9))
    if variant == "vace":
        config |= {"vace_layers": list(range(0, layers, int(rng.integers(1, 3)))), "vace_in_channels": 2 * z + 4}
    return config


def dit_inputs(config, rng, variant: str):
    lengths = rng.integers(1, 20, int(rng.integers(1, 3))).astype(np.int32)
    B, S = len(lengths), int(lengths.max())
    size = tuple(p * int(n) for p, n in zip(config["patch_size"], rng.integers(2, 5, 3), strict=True))
    rows = normal(rng, B, S, config["text_dim"]) * (np.arange(S) < lengths[:, None])[..., None]
    inputs = {
        "x": normal(rng, B, *size, config["in_channels"]), "t": rng.random(B, np.float32),
        "rows": rows, "length": lengths,
    }  # fmt: skip
    if config["image_dim"]:
        inputs["image"] = normal(rng, B, config["pos_embed_seq_len"] or int(rng.integers(2, 12)), config["image_dim"])
    if variant == "ti2v":  # time zero for what is known: each token has its own
        known = rng.random((B, size[0], size[1] // 2, size[2] // 2)) < 0.4
        inputs["known"] = known.repeat(2, 2).repeat(2, 3)
    if variant == "vace":
        inputs["control"] = normal(rng, B, *size, config["vace_in_channels"])
        inputs["scale"] = rng.random(len(config["vace_layers"]), np.float32) + 0.5
    return inputs


def dit_reference(config):
    import diffusers

    name = "WanVACETransformer3DModel" if "vace_layers" in config else "WanTransformer3DModel"
    return getattr(diffusers, name)(**config)


def dit_outputs(module, config, inputs):
    import torch

    rows = torch.from_numpy(inputs["rows"])
    time = 1000 * inputs["t"]
    if "known" in inputs:
        time = time[:, None] * ~inputs["known"][:, :, ::2, ::2].reshape(len(time), -1)
    arguments = {"encoder_hidden_states": torch.nn.functional.pad(rows, (0, 0, 0, TEXT_ROWS - rows.shape[1]))}
    if "image" in inputs:
        image = inputs["image"]
        if config["pos_embed_seq_len"]:  # the reference takes two pictures as two entries of the batch
            image = image.reshape(2 * len(image), -1, image.shape[-1])
        arguments["encoder_hidden_states_image"] = torch.from_numpy(image)
    if "control" in inputs:
        arguments["control_hidden_states"] = first(inputs["control"])
        arguments["control_hidden_states_scale"] = torch.from_numpy(inputs["scale"])
    time = torch.from_numpy(time.astype(np.float32))
    return {"velocity": last(module(first(inputs["x"]), time, **arguments, return_dict=False)[0])}


# -- what is given beside the noise ----------------------------------------------------------------------------------

FACTOR = 8  # pixels on a side of a latent position, in the encoder that stands in for a VAE


def subsampled(video: np.ndarray) -> np.ndarray:
    """An encoder that is easy to follow: every fourth frame, every eighth pixel."""
    return video[:, ::4, ::FACTOR, ::FACTOR] * 3 + 1


def given_inputs(config, rng):
    F, Y, X = (
        max(9, 1 + 4 * int(rng.integers(1, 5))),  # as many slots as pictures: the reference drops masks of more
        2 * FACTOR * int(rng.integers(1, 3)),
        2 * FACTOR * int(rng.integers(1, 3)),
    )
    mask = rng.random((1, F, Y, X), np.float32)
    pictures = rng.random((3, Y, X, 3), np.float32) * 2 - 1
    return {"video": rng.random((1, F, Y, X, 3), np.float32) * 2 - 1, "mask": mask, "pictures": pictures}


def given_outputs(module, config, inputs):
    import torch
    from diffusers import WanImageToVideoPipeline, WanVACEPipeline

    def encode(video):
        return SimpleNamespace(latents=first(subsampled(last(video))))

    vae = SimpleNamespace(
        encode=encode, dtype=torch.float32, device=torch.device("cpu"), modules=lambda: iter(()),
        config=SimpleNamespace(z_dim=3, latents_mean=[1.0] * 3, latents_std=[3.0] * 3),
    )  # fmt: skip
    pipeline = SimpleNamespace(
        vae=vae, vae_scale_factor_temporal=4, vae_scale_factor_spatial=FACTOR, _execution_device=torch.device("cpu"),
        config=SimpleNamespace(expand_timesteps=False),
        transformer=SimpleNamespace(config=SimpleNamespace(patch_size=(1, 2, 2))),
    )  # fmt: skip
    _, F, Y, X, _ = inputs["video"].shape
    pictures = first(inputs["pictures"])

    def prepare(**ends):
        return WanImageToVideoPipeline.prepare_latents(
            pipeline, pictures[:1], 1, 3, Y, X, F, torch.float32, torch.device("cpu"), None, None, **ends
        )[1]

    outputs = {"first": last(prepare()), "both": last(prepare(last_image=pictures[1:2]))}
    video, mask = first(inputs["video"]), torch.from_numpy(inputs["mask"])[:, None].repeat(1, 3, 1, 1, 1)
    for name, references in (("control", [[]]), ("with_references", [list(pictures)])):
        latents = WanVACEPipeline.prepare_video_latents(pipeline, video, mask, references)
        masks = WanVACEPipeline.prepare_masks(pipeline, mask, references)
        outputs[name] = last(torch.cat([latents, masks], 1))
    return outputs


# -- an adapter of low rank ------------------------------------------------------------------------------------------

RANK, ALPHA = 3, 2.0
# Modules of every block that have these at the end of their names; the third and fourth are those that read a picture.
TARGETS = ("to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj", "ffn.net.2")


def lora_inputs(config, rng, variant: str):
    """Inputs of the denoiser, and the tensors of a file as PEFT names them."""
    inputs, inner = dit_inputs(config, rng, variant), config["num_attention_heads"] * config["attention_head_dim"]
    sizes = {f"{attn}.{name}": inner for attn in ("attn1", "attn2") for name in ("to_q", "to_v", "to_out.0")}
    sizes["ffn.net.2"] = config["ffn_dim"]
    beside = {f"attn2.{name}": inner for name in ("add_k_proj", "add_v_proj")} if config["image_dim"] else {}
    blocks = {f"blocks.{i}": sizes | beside for i in range(config["num_layers"])}
    blocks |= {f"vace_blocks.{i}": sizes for i in range(len(config.get("vace_layers", ())))}
    for block, modules in blocks.items():
        for module, inside in modules.items():
            name = f"transformer.{block}.{module}"
            inputs[f"{name}.lora_A.weight"] = normal(rng, RANK, inside) * np.float32(inside**-0.5)
            inputs[f"{name}.lora_B.weight"] = normal(rng, inner, RANK) / 2
            inputs[f"{name}.alpha"] = np.array(ALPHA, np.float32)
    return inputs


def lora_outputs(module, config, inputs):
    import torch
    from peft import LoraConfig

    adapted = copy.deepcopy(module)
    adapted.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), init_lora_weights=False))
    found = 0
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.copy_(torch.from_numpy(inputs["transformer." + name.replace(".default", "")]))
            found += 1
    assert found == sum(".lora_" in name for name in inputs)
    return dit_outputs(adapted, config, inputs)


# -- schedulers ------------------------------------------------------------------------------------------------------


def scheduler_config(rng):
    """Two schedulers as their scheduler_config.json has them, and a number of steps."""
    shifts = rng.choice([1.0, 2.0, 5.0, 8.0, 12.0], 2)  # 3.0 is the converter's: a native one would stand in for it
    unipc = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    euler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": float(shifts[1])}
    return {"unipc": unipc | {"flow_shift": float(shifts[0])}, "euler": euler, "steps": int(rng.integers(3, 12))}


def scheduler_inputs(config, rng):
    return {"x": normal(rng, 1, 2, 3, 4, 2)}


def bent(x: Any, t: Any, sin: Callable) -> Any:
    """A velocity that neither solver follows exactly: it bends with place and time."""
    return sin(3 * x) * (0.5 + t) + x * (1 - t)


def scheduler_outputs(module, config, inputs):
    """The model's times, and where each step leads."""
    import diffusers
    import torch

    outputs = {}
    for name in ("unipc", "euler"):
        settings = dict(config[name])
        scheduler = getattr(diffusers, settings.pop("_class_name"))(**settings)
        scheduler.set_timesteps(config["steps"])
        x, path = torch.from_numpy(inputs["x"]), []
        for t in scheduler.timesteps:
            x = scheduler.step(bent(x, float(t) / 1000, torch.sin), t, x, return_dict=False)[0]
            path.append(x.numpy())
        outputs |= {f"{name}_times": scheduler.timesteps.float().numpy(), f"{name}_path": np.stack(path)}
    return outputs
