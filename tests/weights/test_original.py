"""Checkpoints in the authors' own names: the swapped norms, sizes read off the tensors, what is taken from a base."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from dit_video.core.errors import BadInput, MissingError
from dit_video.weights import released
from dit_video.weights.folder import save_model
from dit_video.weights.model import Defaults
from dit_video.weights.names import flatten, to_foreign
from dit_video.weights.names_dit import dit_table
from dit_video.weights.original import config_of, open_any, original_name, original_table

made = runpy.run_path(str(Path(__file__).with_name("variants.py")))
variant = made["variant"]


@pytest.mark.parametrize(
    "diffusers, original",
    [
        ("blocks.3.norm2.weight", "blocks.3.norm3.weight"),
        ("blocks.12.attn1.to_out.0.bias", "blocks.12.self_attn.o.bias"),
        ("blocks.0.attn2.add_k_proj.weight", "blocks.0.cross_attn.k_img.weight"),
        ("blocks.0.attn2.norm_added_k.weight", "blocks.0.cross_attn.norm_k_img.weight"),
        ("blocks.1.ffn.net.0.proj.weight", "blocks.1.ffn.0.weight"),
        ("blocks.1.scale_shift_table", "blocks.1.modulation"),
        ("scale_shift_table", "head.modulation"),
        ("proj_out.weight", "head.head.weight"),
        ("vace_blocks.2.proj_out.weight", "vace_blocks.2.after_proj.weight"),
        ("vace_blocks.0.proj_in.bias", "vace_blocks.0.before_proj.bias"),
        ("condition_embedder.image_embedder.norm2.weight", "img_emb.proj.4.weight"),
        ("condition_embedder.time_proj.weight", "time_projection.1.weight"),
        ("patch_embedding.weight", "patch_embedding.weight"),
    ],
)
def test_names(diffusers, original):
    assert original_name(diffusers) == original


def checkpoint(model, part="dit", prefix=""):
    cfg = getattr(model, part)
    tensors = to_foreign(original_table(cfg), flatten(model.params[part]))
    return {prefix + name: tensor for name, tensor in tensors.items()}


def wide(name):
    """With heads of 128, as all that were published."""
    model = variant(name)
    cfg = replace(model.dit, heads=1, head_dim=128, text_len=512)
    return replace(model, dit=cfg, params=model.params | {"dit": made["miniature"]["random_weights"](cfg, 1)})


@pytest.mark.parametrize("name", ["t2v", "flf2v", "vace"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_denoiser_alone(name, prefix, tmp_path):
    model = wide(name)
    base = save_model(replace(model, params=jax.tree.map(np.zeros_like, model.params)), tmp_path / "base")
    save_file(checkpoint(model, prefix=prefix), tmp_path / "wan.safetensors")
    opened = open_any(tmp_path / "wan.safetensors", base)
    # the head size and the number of rows of text do not show in the tensors
    assert opened.dit == model.dit
    for path, leaf in flatten(opened.params["dit"]).items():
        np.testing.assert_array_equal(np.asarray(leaf), flatten(model.params["dit"])[path], err_msg=path)
    assert not np.asarray(opened.params["text"]["embed"]["embedding"]).any()
    with pytest.raises(BadInput, match=r"--base MODEL"):
        open_any(tmp_path / "wan.safetensors")
    with pytest.raises(BadInput, match="is whole"):
        open_any(base, base)


def test_a_denoiser_of_another_size_is_sampled_as_its_own_release(tmp_path, monkeypatch):
    base = replace(wide("t2v"), defaults=Defaults(shift=8.0, guidance=6.0))
    larger = replace(base.dit, heads=2)
    mine = released._wan("a larger one", sizes=released._720, shift=5.0)
    monkeypatch.setitem(released.RELEASES, ("WanPipeline", 2, larger.in_channels, 1), mine)
    folder = save_model(base, tmp_path / "base")
    model = replace(base, dit=larger, params={"dit": made["miniature"]["random_weights"](larger, 1)})
    for name, one in (("same", base), ("larger", model)):
        save_file(checkpoint(one), tmp_path / f"{name}.safetensors")
    assert open_any(tmp_path / "same.safetensors", folder).defaults == base.defaults
    opened = open_any(tmp_path / "larger.safetensors", folder)
    assert (opened.defaults, opened.scheduler["flow_shift"]) == (mine.defaults, 5.0)


def test_two_experts_in_a_folder(tmp_path):
    model = variant("t2v_a14b")
    base = save_model(model, tmp_path / "base")
    config = {"_class_name": "WanModel", "dim": model.dit.width, "num_heads": model.dit.heads}
    for folder, part in (("high_noise_model", "dit_2"), ("low_noise_model", "dit")):  # the other way round than in base
        (tmp_path / "wan" / folder).mkdir(parents=True)
        save_file(checkpoint(model, part), tmp_path / "wan" / folder / "diffusion_pytorch_model.safetensors")
        (tmp_path / "wan" / folder / "config.json").write_text(json.dumps(config))
    opened = open_any(tmp_path / "wan", base)
    np.testing.assert_array_equal(
        np.asarray(opened.params["dit"]["head"]["kernel"]), model.params["dit_2"]["head"]["kernel"]
    )
    assert opened.boundary == 0.875
    (tmp_path / "wan/low_noise_model/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingError, match="low_noise_model has no weights"):
        open_any(tmp_path / "wan", base)


def test_a_base_of_another_kind_is_refused(tmp_path):
    """A denoiser that wants a picture, with the parts of a model that has no image encoder."""
    base = save_model(wide("t2v"), tmp_path / "base")
    save_file(checkpoint(wide("flf2v")), tmp_path / "flf2v.safetensors")
    with pytest.raises(BadInput, match="has in_channels .*image_dim .*take a base of the same kind"):
        open_any(tmp_path / "flf2v.safetensors", base)


def test_what_is_no_denoiser(tmp_path):
    base = save_model(variant("t2v"), tmp_path / "base")
    save_file({"encoder.conv1.weight": np.zeros((2, 2), np.float32)}, tmp_path / "vae.safetensors")
    with pytest.raises(BadInput, match=r"no denoiser of the Wan family: it has no tensor 'patch_embedding\.weight'"):
        open_any(tmp_path / "vae.safetensors", base)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/Wan2.1_VAE.pth").write_bytes(b"\x80\x04")
    with pytest.raises(BadInput, match=r"Wan2\.1_VAE\.pth is a pickle: reading one runs"):
        open_any(tmp_path / "old", base)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["t2v", "flf2v", "vace", "i2v_a14b"])
def test_names_are_those_of_the_reference_converter(name):
    pytest.importorskip("torch")
    convert = pytest.importorskip("diffusers.loaders.single_file_utils").convert_wan_transformer_to_diffusers
    model = variant(name)
    theirs = convert(checkpoint(model))
    if "img_emb.emb_pos" in theirs:  # this converter leaves it; the script that made the published folders does not
        theirs["condition_embedder.image_embedder.pos_embed"] = theirs.pop("img_emb.emb_pos")
    ours = to_foreign(dit_table(model.dit), flatten(model.params["dit"]))
    assert theirs.keys() == ours.keys()
    for key, tensor in ours.items():
        np.testing.assert_array_equal(theirs[key], tensor, err_msg=key)


def test_sizes_are_read_off_the_tensors():
    found = {name: tensor.shape for name, tensor in checkpoint(variant("vace")).items()}
    assert config_of(found, head_dim=16) == replace(variant("vace").dit, text_len=512)
