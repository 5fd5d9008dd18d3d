"""The denoiser's name table, without the reference implementation."""

import pytest
from flax import nnx

from dit_video.models.dit import DiT, DiTConfig
from dit_video.weights.names import flatten
from dit_video.weights.names_dit import dit_table, from_diffusers, to_diffusers


@pytest.mark.parametrize("norm", [True, False])
def test_every_weight_has_one_row(norm):
    cfg = DiTConfig(heads=2, head_dim=8, depth=2, ffn_dim=16, text_dim=8, cross_attn_norm=norm)
    state = nnx.state(nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0))), nnx.Param)
    rows = [row.ours for row in dit_table(cfg).rows]
    assert sorted(rows) == sorted(flatten(nnx.to_pure_dict(state)))


def test_config_goes_there_and_back():
    cfg = DiTConfig(heads=3, head_dim=10, in_channels=4, out_channels=8, depth=5, ffn_dim=7, cross_attn_norm=False)
    assert from_diffusers(to_diffusers(cfg)) == cfg
