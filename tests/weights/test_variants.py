"""Every variant of the family goes to a folder of the diffusers layout and back, and diffusers opens the folder."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.weights.folder import check_saved, load_model, open_model, save_model
from dit_video.weights.model import shapes
from dit_video.weights.names import Stored, flatten
from dit_video.weights.released import release

made = runpy.run_path(str(Path(__file__).with_name("variants.py")))
VARIANTS, variant = made["VARIANTS"], made["variant"]


def tensors(folder):
    """Every tensor of every part, as bytes."""
    from safetensors import safe_open

    out = {}
    for file in sorted(folder.rglob("*.safetensors")):
        opened = safe_open(file, framework="numpy")
        for name in opened.keys():  # noqa: SIM118
            array = opened.get_tensor(name)
            out[file.parent.name, name] = (array.dtype, array.shape, array.tobytes())
    return out


@pytest.mark.parametrize("name", VARIANTS)
def test_there_and_back_bit_for_bit(name, tmp_path):
    model = variant(name)
    halves = {"dit": "bfloat16", "dit_2": "float16", "image": "bfloat16"}
    first = save_model(model, tmp_path / "first", dtypes={k: v for k, v in halves.items() if k in model.parts})
    opened = open_model(first)
    assert replace(opened, params={}, name="", digest="") == replace(model, params={}, name="")
    assert all(isinstance(leaf, Stored) for leaf in jax.tree.leaves(opened.params))
    second = save_model(opened, tmp_path / "second", shard=20_000)
    assert tensors(second) == tensors(first)
    assert (second / "transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    assert check_saved(opened, second) == len(tensors(first))
    for part, cfg in model.parts.items():
        ours = flatten(load_model(second).params[part])
        assert {path: array.shape for path, array in ours.items()} == shapes(cfg)
        for path, array in flatten(model.params[part]).items():
            np.testing.assert_allclose(ours[path], array, rtol=0.005, atol=1e-6, err_msg=path)


def test_stored_arrays_are_read_a_layer_at_a_time(tmp_path):
    model = variant("t2v")
    opened = open_model(save_model(model, tmp_path / "a"))
    leaf = opened.params["dit"]["blocks"]["up"]["kernel"]
    np.testing.assert_array_equal(leaf[1,], model.params["dit"]["blocks"]["up"]["kernel"][1])
    assert (leaf.shape, leaf.dtype) == ((2, 32, 48), np.float32)
    assert np.asarray(leaf, jnp.bfloat16).dtype == jnp.bfloat16


def test_experts_need_each_other(tmp_path):
    folder = save_model(variant("t2v_a14b"), tmp_path / "a")
    (folder / "manifest.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    assert index["boundary_ratio"] == 0.875
    (folder / "model_index.json").write_text(json.dumps(index | {"transformer_2": [None, None]}))
    with pytest.raises(BadInput, match=r"boundary_ratio, and no transformer_2"):
        open_model(folder)


def test_the_converters_shift_gives_way_to_the_native_one(tmp_path, caplog):
    model = variant("t2v_a14b")
    wide = replace(model.dit, heads=40, head_dim=2, in_channels=16, out_channels=16, depth=1)
    model = replace(model, dit=wide, dit_2=wide, name="models/a14b", params={})
    assert release(model).name == "Wan 2.2 T2V A14B"
    from dit_video.weights.released import with_defaults

    with caplog.at_level("INFO", logger="dit_video"):
        defaults = with_defaults(model).defaults
    assert (defaults.shift, defaults.guidance, defaults.guidance_2, defaults.solver) == (12.0, 4.0, 3.0, "unipc")
    assert "models/a14b: the scheduler's config says flow_shift 3, which the converter wrote" in caplog.text
    meant = with_defaults(replace(model, scheduler=made["EULER"])).defaults
    assert (meant.shift, meant.solver) == (5.0, "euler")


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("model_index.json", {"_class_name": "CogVideoXPipeline"}, r"'CogVideoXPipeline' is not read; WanPipeline"),
        ("transformer/config.json", {"_class_name": "LTXVideoTransformer3DModel"}, "is not read as transformer"),
        ("transformer/config.json", {"qk_norm": "layer_norm"}, r"qk_norm='layer_norm' is not read"),
        ("transformer/config.json", {"num_layers": 3}, r"blocks\.2\.attn1\.to_q\.weight"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "is not read as vae"),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "is not read as text_encoder"),
        ("text_encoder/config.json", {"feed_forward_proj": "relu"}, "gated-gelu is"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, r"'DDIMScheduler' is not known"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "epsilon"},
            'prediction_type is "epsilon", and this solver',
        ),
    ],
)
def test_what_is_not_read_says_so(tmp_path, file, change, message):
    folder = save_model(variant("t2v"), tmp_path / "a")
    (folder / "manifest.json").unlink()
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | change))
    with pytest.raises(BadInput, match=message):
        open_model(folder)


@pytest.mark.parity
@pytest.mark.parametrize("name", VARIANTS)
def test_diffusers_opens_it(name, tmp_path):
    """The pipeline of the right class, every part without a missing or unexpected key, the settings as they were; and
    what diffusers saves again is the same, bit for bit."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    model = variant(name)
    folder = save_model(model, tmp_path / "ours")
    index = json.loads((folder / "model_index.json").read_text())
    for part in ("transformer", "transformer_2", "vae", "text_encoder", "image_encoder"):
        library, kind = index.get(part) or (None, None)
        if kind is None:
            continue
        cls = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
        module, info = cls.from_pretrained(folder / part, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (part, info)
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    pipe = getattr(diffusers, model.pipeline).from_pretrained(folder)
    assert pipe.config.boundary_ratio == model.boundary
    assert pipe.config.get("expand_timesteps", False) == model.expand_timesteps
    pipe.save_pretrained(tmp_path / "theirs", safe_serialization=True)
    assert tensors_by_name(tmp_path / "theirs") == tensors_by_name(folder)
    again = open_model(tmp_path / "theirs")
    assert set(again.parts) == set(model.parts)
    for part, cfg in model.parts.items():
        assert getattr(again, part) == replace(cfg, **({"text_len": 512} if part.startswith("dit") else {}))


def tensors_by_name(folder):
    """Names without the prefixes that versions of transformers add or leave out; tied tensors once."""
    return {
        (part, name.removeprefix("vision_model.")): value
        for (part, name), value in tensors(folder).items()
        if name != "encoder.embed_tokens.weight"
    }
