"""The name table of the denoiser: `WanTransformer3DModel` and `WanVACETransformer3DModel` of diffusers."""

from collections.abc import Iterator

from dit_video.core.errors import BadInput
from dit_video.models.dit import DiTConfig
from dit_video.weights.names import LINEAR, Row, Table

_TABLE = "1 n d -> n d"
_LINEARS = {
    "condition_embedder.time_embedder.linear_1": "time_in",
    "condition_embedder.time_embedder.linear_2": "time_out",
    "condition_embedder.time_proj": "time_proj",
    "condition_embedder.text_embedder.linear_1": "text_in",
    "condition_embedder.text_embedder.linear_2": "text_out",
    "proj_out": "head",
}
_IMAGE = {
    "condition_embedder.image_embedder.ff.net.0.proj": "image/up",
    "condition_embedder.image_embedder.ff.net.2": "image/down",
}
_CONTROL = {"vace_blocks.0.proj_in": "control/into", "vace_blocks.{i}.proj_out": "control/blocks/out"}
_BLOCK_LINEARS = {
    "attn1.to_q": "attn/q",
    "attn1.to_k": "attn/k",
    "attn1.to_v": "attn/v",
    "attn1.to_out.0": "attn/out",
    "attn2.to_q": "cross/q",
    "attn2.to_k": "cross/k",
    "attn2.to_v": "cross/v",
    "attn2.to_out.0": "cross/out",
    "ffn.net.0.proj": "up",
    "ffn.net.2": "down",
}
_BLOCK_IMAGE = {"attn2.add_k_proj": "cross/image_k", "attn2.add_v_proj": "cross/image_v"}


def _linear(foreign: str, ours: str) -> tuple[Row, ...]:
    return Row(f"{foreign}.weight", f"{ours}/kernel", LINEAR), Row(f"{foreign}.bias", f"{ours}/bias")


def _norm(foreign: str, ours: str) -> tuple[Row, ...]:
    return Row(f"{foreign}.weight", f"{ours}/scale"), Row(f"{foreign}.bias", f"{ours}/bias")


def _patch(cfg: DiTConfig, foreign: str, ours: str) -> tuple[Row, ...]:
    strides = tuple(zip("thw", cfg.patch, strict=True))
    kernel = Row(f"{foreign}.weight", f"{ours}/kernel", "o c t h w -> (t h w c) o", strides)
    return kernel, Row(f"{foreign}.bias", f"{ours}/bias")


def _block(cfg: DiTConfig, foreign: str, ours: str) -> Iterator[Row]:
    image = cfg.image_dim is not None
    for theirs, here in (_BLOCK_LINEARS | (_BLOCK_IMAGE if image else {})).items():
        yield from _linear(f"{foreign}.{theirs}", f"{ours}/{here}")
    for attention, here in (("attn1", "attn"), ("attn2", "cross")):
        yield Row(f"{foreign}.{attention}.norm_q.weight", f"{ours}/{here}/norm_q/scale")
        yield Row(f"{foreign}.{attention}.norm_k.weight", f"{ours}/{here}/norm_k/scale")
    if image:
        yield Row(f"{foreign}.attn2.norm_added_k.weight", f"{ours}/cross/norm_image_k/scale")
    if cfg.cross_attn_norm:
        yield from _norm(f"{foreign}.norm2", f"{ours}/norm_cross")
    yield Row(f"{foreign}.scale_shift_table", f"{ours}/table", _TABLE)


def _rows(cfg: DiTConfig) -> Iterator[Row]:
    linears = _LINEARS | (_IMAGE if cfg.image_dim else {}) | (_CONTROL if cfg.vace_layers else {})
    for foreign, ours in linears.items():
        yield from _linear(foreign, ours)
    yield from _patch(cfg, "patch_embedding", "patch")
    yield Row("scale_shift_table", "table", _TABLE)
    yield from _block(cfg, "blocks.{i}", "blocks")
    if cfg.image_dim:
        yield from _norm("condition_embedder.image_embedder.norm1", "image/norm_in")
        yield from _norm("condition_embedder.image_embedder.norm2", "image/norm_out")
    if cfg.image_len:
        yield Row("condition_embedder.image_embedder.pos_embed", "image/positions", _TABLE)
    if cfg.vace_layers:
        yield from _patch(cfg, "vace_patch_embedding", "control/patch")
        yield from _block(cfg, "vace_blocks.{i}", "control/blocks/block")


def dit_table(cfg: DiTConfig) -> Table:
    """The rows for a denoiser of this config. `rope.*` are tables that old checkpoints carry; ours are computed.
    `norm_added_q` is carried by image-to-video checkpoints and used by nobody."""
    return Table(rows=tuple(_rows(cfg)), ignored=(r"rope\..*", r".*\.norm_added_q\..*"))


def from_diffusers(config: dict) -> DiTConfig:
    """`transformer/config.json` of diffusers -> DiTConfig. Raises `BadInput` for another structure."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    image_dim, projected = config.get("image_dim"), config.get("added_kv_proj_dim")
    if config.get("qk_norm", "rms_norm_across_heads") != "rms_norm_across_heads":
        raise BadInput(f"transformer: qk_norm={config['qk_norm']!r} is not read; rms_norm_across_heads is")
    if projected != (width if image_dim else None):
        raise BadInput(
            f"transformer: added_kv_proj_dim={projected} with image_dim={image_dim} is not read; "
            f"both, the first {width} as the model is wide, or none"
        )
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
        image_dim=image_dim,
        image_len=config.get("pos_embed_seq_len"),
        vace_layers=tuple(config.get("vace_layers") or ()),
        vace_channels=config.get("vace_in_channels") or DiTConfig.vace_channels,
    )


def to_diffusers(cfg: DiTConfig) -> dict:
    """The inverse: what stands in `transformer/config.json`."""
    vace = {"vace_layers": list(cfg.vace_layers), "vace_in_channels": cfg.vace_channels} if cfg.vace_layers else {}
    return {
        "_class_name": "WanVACETransformer3DModel" if vace else "WanTransformer3DModel",
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
        "image_dim": cfg.image_dim,
        "added_kv_proj_dim": cfg.width if cfg.image_dim else None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": cfg.image_len,
        **vace,
    }
