"""The name table of the denoiser: `WanTransformer3DModel` of diffusers."""

from collections.abc import Iterator

from dit_video.models.dit import DiTConfig
from dit_video.weights.names import LINEAR, Row, Table

_BLOCK = "blocks.{i}."
_TABLE = "1 n d -> n d"
_LINEARS = {
    _BLOCK + "attn1.to_q": "blocks/attn/q",
    _BLOCK + "attn1.to_k": "blocks/attn/k",
    _BLOCK + "attn1.to_v": "blocks/attn/v",
    _BLOCK + "attn1.to_out.0": "blocks/attn/out",
    _BLOCK + "attn2.to_q": "blocks/cross/q",
    _BLOCK + "attn2.to_k": "blocks/cross/k",
    _BLOCK + "attn2.to_v": "blocks/cross/v",
    _BLOCK + "attn2.to_out.0": "blocks/cross/out",
    _BLOCK + "ffn.net.0.proj": "blocks/up",
    _BLOCK + "ffn.net.2": "blocks/down",
    "condition_embedder.time_embedder.linear_1": "time_in",
    "condition_embedder.time_embedder.linear_2": "time_out",
    "condition_embedder.time_proj": "time_proj",
    "condition_embedder.text_embedder.linear_1": "text_in",
    "condition_embedder.text_embedder.linear_2": "text_out",
    "proj_out": "head",
}
_SCALES = {
    _BLOCK + "attn1.norm_q": "blocks/attn/norm_q",
    _BLOCK + "attn1.norm_k": "blocks/attn/norm_k",
    _BLOCK + "attn2.norm_q": "blocks/cross/norm_q",
    _BLOCK + "attn2.norm_k": "blocks/cross/norm_k",
}


def _rows(cfg: DiTConfig) -> Iterator[Row]:
    for foreign, ours in _LINEARS.items():
        yield Row(foreign + ".weight", ours + "/kernel", LINEAR)
        yield Row(foreign + ".bias", ours + "/bias")
    for foreign, ours in _SCALES.items():
        yield Row(foreign + ".weight", ours + "/scale")
    if cfg.cross_attn_norm:
        yield Row(_BLOCK + "norm2.weight", "blocks/norm_cross/scale")
        yield Row(_BLOCK + "norm2.bias", "blocks/norm_cross/bias")
    yield Row(_BLOCK + "scale_shift_table", "blocks/table", _TABLE)
    yield Row("scale_shift_table", "table", _TABLE)
    strides = tuple(zip("thw", cfg.patch, strict=True))
    yield Row("patch_embedding.weight", "patch/kernel", "o c t h w -> (t h w c) o", strides)
    yield Row("patch_embedding.bias", "patch/bias")


def dit_table(cfg: DiTConfig) -> Table:
    """The rows for a denoiser of this config. `rope.*` are tables that old checkpoints carry; ours are computed."""
    return Table(rows=tuple(_rows(cfg)), ignored=(r"rope\..*",))


def from_diffusers(config: dict) -> DiTConfig:
    """`transformer/config.json` of diffusers -> DiTConfig; keys that a text-to-video model has no use for are left."""
    return DiTConfig(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"] or config["in_channels"],
        heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        depth=config["num_layers"],
        ffn_dim=config["ffn_dim"],
        freq_dim=config["freq_dim"],
        text_dim=config["text_dim"],
        patch=tuple(config["patch_size"]),
        eps=config["eps"],
        cross_attn_norm=config["cross_attn_norm"],
    )


def to_diffusers(cfg: DiTConfig) -> dict:
    """The inverse: what stands in `transformer/config.json`."""
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(cfg.patch),
        "num_attention_heads": cfg.heads,
        "attention_head_dim": cfg.head_dim,
        "in_channels": cfg.in_channels,
        "out_channels": cfg.out_channels,
        "text_dim": cfg.text_dim,
        "freq_dim": cfg.freq_dim,
        "ffn_dim": cfg.ffn_dim,
        "num_layers": cfg.depth,
        "cross_attn_norm": cfg.cross_attn_norm,
        "qk_norm": "rms_norm_across_heads",
        "eps": cfg.eps,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": None,
    }
