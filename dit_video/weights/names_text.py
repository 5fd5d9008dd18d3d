"""The name table of the text encoder: `UMT5EncoderModel` of transformers."""

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
