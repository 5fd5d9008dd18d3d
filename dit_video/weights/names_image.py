"""The name table of the image encoder: `CLIPVisionModel` of transformers, and the same with a projection at its end,
which the pipelines of the Wan family never ask for."""

from typing import Any

from dit_video.core.errors import BadInput
from dit_video.models.image_encoder import ImageConfig
from dit_video.weights.names import LINEAR, SAME, Row, Table

_LAYER = "encoder.layers.{i}."
_LINEARS = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "out",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
_NORMS = {
    "pre_layrnorm": "norm_in",
    "post_layernorm": "norm_out",
    _LAYER + "layer_norm1": "layers/norm_attn",
    _LAYER + "layer_norm2": "layers/norm_mlp",
}


def _row(foreign: str, ours: str, layout: str = SAME, sizes: tuple[tuple[str, int], ...] = ()) -> Row:
    # transformers 5 writes names without the prefix, older ones and the published checkpoints have it
    return Row(foreign, ours, layout, sizes, also=(f"vision_model.{foreign}",))


def image_table(cfg: ImageConfig) -> Table:
    """The rows for an encoder of this config. Numbered positions, which old checkpoints carry, are left, and so is the
    projection of `CLIPVisionModelWithProjection`."""
    square = (("h", cfg.patch), ("w", cfg.patch))
    rows = [
        _row("embeddings.class_embedding", "whole"),
        _row("embeddings.patch_embedding.weight", "patch/kernel", "o c h w -> (h w c) o", square),
        _row("embeddings.position_embedding.weight", "positions"),
    ]
    for foreign, ours in _NORMS.items():
        rows += [_row(f"{foreign}.weight", f"{ours}/scale"), _row(f"{foreign}.bias", f"{ours}/bias")]
    for foreign, ours in _LINEARS.items():
        rows.append(_row(f"{_LAYER}{foreign}.weight", f"layers/{ours}/kernel", LINEAR))
        rows.append(_row(f"{_LAYER}{foreign}.bias", f"layers/{ours}/bias"))
    return Table(rows=tuple(rows), ignored=(r"(vision_model\.)?embeddings\.position_ids", r"visual_projection\.weight"))


def from_transformers(config: dict[str, Any]) -> ImageConfig:
    """`image_encoder/config.json` -> ImageConfig. Raises `BadInput` for an encoder of another structure."""
    config = {**config, **config.get("vision_config", {})}
    if config.get("model_type") not in ("clip_vision_model", "clip") or config.get("num_channels", 3) != 3:
        raise BadInput(f"image_encoder: {config.get('model_type')} is not read; clip_vision_model with 3 channels is")
    return ImageConfig(
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        depth=config["num_hidden_layers"],
        ffn_dim=config["intermediate_size"],
        size=config["image_size"],
        patch=config["patch_size"],
        eps=config["layer_norm_eps"],
        activation=config["hidden_act"],
    )


def to_transformers(cfg: ImageConfig) -> dict[str, Any]:
    """The inverse: what stands in `image_encoder/config.json`."""
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": cfg.width,
        "num_attention_heads": cfg.heads,
        "num_hidden_layers": cfg.depth,
        "intermediate_size": cfg.ffn_dim,
        "image_size": cfg.size,
        "patch_size": cfg.patch,
        "num_channels": 3,
        "layer_norm_eps": cfg.eps,
        "hidden_act": cfg.activation,
        "attention_dropout": 0.0,
    }
