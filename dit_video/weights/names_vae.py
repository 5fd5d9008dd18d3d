"""Names of the VAE in diffusers' `AutoencoderKLWan` (Wan 2.1 and 2.2), as rows for `dit_video.weights.names`."""

from typing import Any

from dit_video.models.vae import VAEConfig
from dit_video.weights.names import CONV2D, CONV3D, GAMMA2D, GAMMA3D, Row, Table


def _conv(foreign: str, ours: str, layout: str = CONV3D) -> tuple[Row, ...]:
    return Row(f"{foreign}.weight", f"{ours}/kernel", layout), Row(f"{foreign}.bias", f"{ours}/bias")


def _block(foreign: str) -> tuple[Row, ...]:
    ours = foreign.replace(".", "/")
    return (
        Row(f"{foreign}.norm1.gamma", f"{ours}/norm1/gamma", GAMMA3D),
        *_conv(f"{foreign}.conv1", f"{ours}/conv1"),
        Row(f"{foreign}.norm2.gamma", f"{ours}/norm2/gamma", GAMMA3D),
        *_conv(f"{foreign}.conv2", f"{ours}/conv2"),
        *_conv(f"{foreign}.conv_shortcut", f"{ours}/conv_shortcut"),
    )


def _attention(foreign: str) -> tuple[Row, ...]:
    ours = foreign.replace(".", "/")
    return (
        Row(f"{foreign}.norm.gamma", f"{ours}/norm/gamma", GAMMA2D),
        *_conv(f"{foreign}.to_qkv", f"{ours}/to_qkv", CONV2D),
        *_conv(f"{foreign}.proj", f"{ours}/proj", CONV2D),
    )


def _resample(foreign: str) -> tuple[Row, ...]:
    ours = foreign.replace(".", "/")
    return (
        *_conv(f"{foreign}.resample.1", f"{ours}/resample", CONV2D),
        *_conv(f"{foreign}.time_conv", f"{ours}/time_conv"),
    )


def _half(name: str) -> tuple[Row, ...]:
    return (
        *_conv(f"{name}.conv_in", f"{name}/conv_in"),
        *_block(f"{name}.mid_block.resnets.{{i}}"),
        *_attention(f"{name}.mid_block.attentions.{{i}}"),
        Row(f"{name}.norm_out.gamma", f"{name}/norm_out/gamma", GAMMA3D),
        *_conv(f"{name}.conv_out", f"{name}/conv_out"),
    )


VAE_NAMES = Table(
    rows=(
        *_half("encoder"),
        # the encoder's blocks, attentions and resamplers stand in one list; each has its own names
        *_block("encoder.down_blocks.{i}"),
        *_attention("encoder.down_blocks.{i}"),
        *_resample("encoder.down_blocks.{i}"),
        # in the residual VAE each level has its own list
        *_block("encoder.down_blocks.{i}.resnets.{j}"),
        *_resample("encoder.down_blocks.{i}.downsampler"),
        *_conv("quant_conv", "quant_conv"),
        *_conv("post_quant_conv", "post_quant_conv"),
        *_half("decoder"),
        *_block("decoder.up_blocks.{i}.resnets.{j}"),
        *_resample("decoder.up_blocks.{i}.upsamplers.{j}"),
        *_resample("decoder.up_blocks.{i}.upsampler"),  # of the residual VAE
    )
)


def from_diffusers(config: dict[str, Any]) -> VAEConfig:
    """`vae/config.json` of diffusers -> VAEConfig. Raises `BadInput` for sizes that cannot be."""
    return VAEConfig(
        base=config["base_dim"],
        decoder_base=config.get("decoder_base_dim"),
        z=config["z_dim"],
        mult=tuple(config["dim_mult"]),
        res_blocks=config["num_res_blocks"],
        temporal=tuple(config["temperal_downsample"]),
        attn_scales=tuple(config["attn_scales"]),
        patch=config.get("patch_size") or 1,
        residual=bool(config.get("is_residual")),
        latents_mean=tuple(config["latents_mean"]),
        latents_std=tuple(config["latents_std"]),
    )


def to_diffusers(cfg: VAEConfig) -> dict[str, Any]:
    """The inverse: what stands in `vae/config.json`, with the spelling of diffusers."""
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": cfg.base,
        "decoder_base_dim": cfg.decoder_base,
        "z_dim": cfg.z,
        "dim_mult": list(cfg.mult),
        "num_res_blocks": cfg.res_blocks,
        "attn_scales": list(cfg.attn_scales),
        "temperal_downsample": list(cfg.temporal),
        "dropout": 0.0,
        "latents_mean": list(cfg.latents_mean or (0.0,) * cfg.z),
        "latents_std": list(cfg.latents_std or (1.0,) * cfg.z),
        "is_residual": cfg.residual,
        "in_channels": 3 * cfg.patch**2,
        "out_channels": 3 * cfg.patch**2,
        "patch_size": cfg.patch if cfg.patch > 1 else None,
        "scale_factor_temporal": cfg.stride,
        "scale_factor_spatial": cfg.factor,
    }
