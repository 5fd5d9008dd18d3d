"""The name table of the text encoder: `UMT5EncoderModel` of transformers."""

from typing import Any

from dit_video.core.errors import BadInput
from dit_video.models.text import TextConfig
from dit_video.weights.names import LINEAR, Row, Table

_BLOCK = "encoder.block.{i}.layer."

TEXT = Table(
    rows=(
        Row("shared.weight", "embed/embedding", also=("encoder.embed_tokens.weight",)),
        Row(_BLOCK + "0.layer_norm.weight", "blocks/norm_attn/scale"),
        Row(_BLOCK + "0.SelfAttention.q.weight", "blocks/attn/q/kernel", LINEAR),
        Row(_BLOCK + "0.SelfAttention.k.weight", "blocks/attn/k/kernel", LINEAR),
        Row(_BLOCK + "0.SelfAttention.v.weight", "blocks/attn/v/kernel", LINEAR),
        Row(_BLOCK + "0.SelfAttention.o.weight", "blocks/attn/o/kernel", LINEAR),
        Row(_BLOCK + "0.SelfAttention.relative_attention_bias.weight", "blocks/attn/bias/embedding"),
        Row(_BLOCK + "1.layer_norm.weight", "blocks/norm_ffn/scale"),
        Row(_BLOCK + "1.DenseReluDense.wi_0.weight", "blocks/ffn/gate/kernel", LINEAR),
        Row(_BLOCK + "1.DenseReluDense.wi_1.weight", "blocks/ffn/up/kernel", LINEAR),
        Row(_BLOCK + "1.DenseReluDense.wo.weight", "blocks/ffn/down/kernel", LINEAR),
        Row("encoder.final_layer_norm.weight", "norm/scale"),
    )
)


def from_transformers(config: dict[str, Any]) -> TextConfig:
    """`text_encoder/config.json` -> TextConfig. Raises `BadInput` for an encoder of another structure."""
    kind = config.get("model_type"), config.get("feed_forward_proj", "gated-gelu")
    if kind != ("umt5", "gated-gelu"):
        raise BadInput(f"text_encoder: {kind[0]} with {kind[1]} feed-forward is not read; umt5 with gated-gelu is")
    return TextConfig(
        vocab=config["vocab_size"],
        width=config["d_model"],
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        ffn_dim=config["d_ff"],
        depth=config["num_layers"],
        buckets=config["relative_attention_num_buckets"],
        max_distance=config.get("relative_attention_max_distance", 128),
        eps=config["layer_norm_epsilon"],
    )


def to_transformers(cfg: TextConfig) -> dict[str, Any]:
    """The inverse: what stands in `text_encoder/config.json`."""
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": cfg.vocab,
        "d_model": cfg.width,
        "num_heads": cfg.heads,
        "d_kv": cfg.head_dim,
        "d_ff": cfg.ffn_dim,
        "num_layers": cfg.depth,
        "num_decoder_layers": cfg.depth,
        "relative_attention_num_buckets": cfg.buckets,
        "relative_attention_max_distance": cfg.max_distance,
        "layer_norm_epsilon": cfg.eps,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tokenizer_class": "T5Tokenizer",
    }
