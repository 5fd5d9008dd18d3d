"""Name tables: both directions from one row, stacked layers, and errors that list what does not fit."""

import numpy as np
import pytest

from dit_video.core.errors import BadInput, DitVideoError
from dit_video.weights.names import (
    CONV3D,
    GAMMA3D,
    LINEAR,
    Row,
    Table,
    check,
    flatten,
    leaves,
    to_foreign,
    to_ours,
    unflatten,
)

TABLE = Table(
    rows=(
        Row("patch_embedding.weight", "patch/kernel", "o c t h w -> (t h w c) o", (("t", 1), ("h", 2), ("w", 2))),
        Row("shared.weight", "embed/embedding", also=("encoder.embed_tokens.weight",)),
        Row("blocks.{i}.attn1.to_q.weight", "blocks/attn1/to_q/kernel", LINEAR),
        Row("blocks.{i}.attn1.to_q.bias", "blocks/attn1/to_q/bias"),
        Row("up.{i}.resnets.{j}.norm.gamma", "up/{i}/resnets/norm/scale", GAMMA3D),
        Row("conv.{i}.weight", "conv/{i}/kernel", CONV3D),
    ),
    ignored=(r"rope\..*",),
)
SHAPES = {
    "patch/kernel": (12, 5),
    "embed/embedding": (7, 5),
    "blocks/attn1/to_q/kernel": (4, 5, 6),
    "blocks/attn1/to_q/bias": (4, 6),
    "up/0/resnets/norm/scale": (2, 3),
    "up/1/resnets/norm/scale": (3, 4),
    "conv/0/kernel": (3, 2, 1, 4, 6),
}


@pytest.fixture
def foreign():
    rng = np.random.default_rng(0)
    tensors = {
        "patch_embedding.weight": (5, 3, 1, 2, 2),
        "shared.weight": (7, 5),
        **{f"blocks.{i}.attn1.to_q.weight": (6, 5) for i in range(4)},
        **{f"blocks.{i}.attn1.to_q.bias": (6,) for i in range(4)},
        **{f"up.0.resnets.{j}.norm.gamma": (3, 1, 1, 1) for j in range(2)},
        **{f"up.1.resnets.{j}.norm.gamma": (4, 1, 1, 1) for j in range(3)},
        "conv.0.weight": (6, 4, 3, 2, 1),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tensors.items()}


def test_values_go_where_the_row_says(foreign):
    ours = to_ours(TABLE, foreign, SHAPES)
    assert {path: array.shape for path, array in ours.items()} == SHAPES
    np.testing.assert_array_equal(ours["blocks/attn1/to_q/kernel"][2], foreign["blocks.2.attn1.to_q.weight"].T)
    np.testing.assert_array_equal(ours["up/1/resnets/norm/scale"][2], foreign["up.1.resnets.2.norm.gamma"].ravel())
    # (t h w c) o: c runs fastest, then w
    assert ours["patch/kernel"][1 * 6 + 1 * 3 + 2, 4] == foreign["patch_embedding.weight"][4, 2, 0, 1, 1]
    assert ours["conv/0/kernel"][2, 1, 0, 3, 5] == foreign["conv.0.weight"][5, 3, 2, 1, 0]


def test_the_inverse_is_exact_and_contiguous(foreign):
    back = to_foreign(TABLE, to_ours(TABLE, foreign, SHAPES))
    assert back.keys() == foreign.keys()
    for name, tensor in foreign.items():
        np.testing.assert_array_equal(back[name], tensor)
        assert back[name].flags.c_contiguous


def test_a_tied_name_or_both_or_an_ignored_one_is_fine(foreign):
    expected = to_ours(TABLE, foreign, SHAPES)
    both = foreign | {"encoder.embed_tokens.weight": foreign["shared.weight"], "rope.freqs": np.zeros(3)}
    other = {name: tensor for name, tensor in both.items() if name != "shared.weight"}
    for tensors in (both, other):
        np.testing.assert_array_equal(to_ours(TABLE, tensors, SHAPES)["embed/embedding"], expected["embed/embedding"])


def test_one_error_lists_missing_unknown_and_misshaped(foreign):
    del foreign["blocks.1.attn1.to_q.bias"]
    foreign["blocks.4.attn1.to_q.bias"] = np.zeros(6, np.float32)
    foreign["up.0.resnets.0.norm.gamma"] = foreign["up.0.resnets.1.norm.gamma"] = np.zeros((9, 1, 1, 1), np.float32)
    with pytest.raises(BadInput) as caught:
        to_ours(TABLE, foreign, SHAPES, source="transformer/x.safetensors")
    text = str(caught.value)
    assert "transformer/x.safetensors does not fit the model: 1 missing, 1 unknown, 2 of another shape" in text
    assert "blocks.1.attn1.to_q.bias  (6,)" in text
    assert "blocks.4.attn1.to_q.bias  (6,)" in text
    assert "up.0.resnets.0.norm.gamma .. up.0.resnets.1.norm.gamma (2 tensors)" in text
    assert "has (9, 1, 1, 1), the model wants (3, 1, 1, 1)" in text


def test_nothing_is_read_before_everything_fits(foreign):
    found = {name: tensor.shape for name, tensor in foreign.items()} | {"stray": (1,)}
    reads = []
    with pytest.raises(BadInput, match="stray"):
        leaves(TABLE, found, lambda name: reads.append(name), SHAPES)
    assert reads == []


def test_a_parameter_without_a_row_is_an_error(foreign):
    found = {name: tensor.shape for name, tensor in foreign.items()}
    with pytest.raises(DitVideoError, match="head/kernel"):
        check(TABLE, found, SHAPES | {"head/kernel": (1, 2)})


def test_dtype_is_cast_on_the_way(foreign):
    halves = {name: tensor.astype(np.float16) for name, tensor in foreign.items()}
    ours = to_ours(TABLE, halves, SHAPES, dtype=np.float32)
    assert {array.dtype for array in ours.values()} == {np.dtype(np.float32)}
    assert to_ours(TABLE, halves, SHAPES)["patch/kernel"].dtype == np.float16


def test_paths_and_trees_are_inverses():
    tree = {"a": {0: {"kernel": 1}, 1: {"kernel": 2}}, "b": 3}
    assert flatten(tree) == {"a/0/kernel": 1, "a/1/kernel": 2, "b": 3}
    assert unflatten(flatten(tree)) == tree
