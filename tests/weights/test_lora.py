"""LoRA files: every layout gives the same sum, what does not fit is refused whole, diffusers reads what we write."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dit_video.core.errors import BadInput, MissingError, NonFinite
from dit_video.weights.folder import open_model, save_model
from dit_video.weights.lora import add_adapters, merge, merge_files, read_lora, save_lora
from dit_video.weights.names import Stored, flatten, unflatten
from dit_video.weights.original import original_name

made = runpy.run_path(str(Path(__file__).with_name("variants.py")))
variant = made["variant"]
MODULES = ("attn1.to_q", "attn1.to_out.0", "attn2.to_v", "ffn.net.0.proj", "ffn.net.2")
PATHS = {
    "attn1.to_q": "blocks/attn/q/kernel", "attn1.to_out.0": "blocks/attn/out/kernel",
    "attn2.to_v": "blocks/cross/v/kernel", "ffn.net.0.proj": "blocks/up/kernel", "ffn.net.2": "blocks/down/kernel",
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return variant("t2v_a14b")


@pytest.fixture(scope="module")
def halves(model):
    """(down, up) of five modules of both layers."""
    rng, out = np.random.default_rng(5), {}
    for module in MODULES:
        _, inside, outside = flatten(model.params["dit"])[PATHS[module]].shape
        for i in range(2):
            rank = 3 + i  # layers may differ
            down, up = rng.standard_normal((rank, inside)) / 4, rng.standard_normal((outside, rank)) / 4
            out[f"blocks.{i}.{module}"] = down.astype(np.float32), up.astype(np.float32)
    return out


def sums(model, halves, factor):
    """The weights with the adapters in them, the plain way."""
    flat = {path: array.copy() for path, array in flatten(model.params["dit"]).items()}
    for name, (down, up) in halves.items():
        _, i, module = name.split(".", 2)
        flat[PATHS[module]][int(i)] += factor * (up @ down).T
    return flat


def written(halves, layout, alpha=None):
    names = {
        "diffusers": (lambda m: f"transformer.{m}", "lora_A.weight", "lora_B.weight"),
        "peft": (lambda m: f"base_model.model.{m}", "lora_A.weight", "lora_B.weight"),
        "kohya": (lambda m: "lora_unet_" + original_name(m).replace(".", "_"), "lora_down.weight", "lora_up.weight"),
        "lightx2v": (lambda m: f"diffusion_model.{original_name(m)}", "lora_down.weight", "lora_up.weight"),
    }  # fmt: skip
    name, first, second = names[layout]
    tensors = {}
    for module, (down, up) in halves.items():
        tensors[f"{name(module)}.{first}"], tensors[f"{name(module)}.{second}"] = down, up
        if alpha is not None:
            tensors[f"{name(module)}.alpha"] = np.array(alpha * len(down), np.float32)
    return tensors


def close(params, flat):
    for path, array in flatten(params).items():
        np.testing.assert_allclose(array, flat[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize("layout", ["diffusers", "peft", "kohya", "lightx2v"])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_every_layout_gives_the_same_sum(model, halves, layout, alpha, tmp_path):
    save_file(written(halves, layout, alpha), tmp_path / "lora.safetensors")
    found = read_lora(tmp_path / "lora.safetensors", {"dit": model.dit, "dit_2": model.dit_2})
    assert list(found) == ["dit"]
    merged = merge(model.params["dit"], found["dit"], model.dit, 0.7)
    close(merged, sums(model, halves, 0.7 * (alpha or 1.0)))


def test_alpha_in_pefts_config(model, halves, tmp_path):
    config = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"ffn.net.2": 2}}
    save_file(
        written(halves, "diffusers"), tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(config)}
    )
    merged = merge(model.params["dit"], read_lora(tmp_path / "lora.safetensors", {"dit": model.dit})["dit"], model.dit)
    other = {name: half for name, half in halves.items() if name.endswith("ffn.net.2")}
    flat = sums(model, {name: half for name, half in halves.items() if name not in other}, 2.0)
    flat[PATHS["ffn.net.2"]] = sums(model, other, 0.5)[PATHS["ffn.net.2"]]
    close(merged, flat)


def test_what_is_said_of_the_only_denoiser_holds_for_the_second_too(model, halves, tmp_path):
    """As in diffusers with load_into_transformer_2. Where a file names both experts, each has its own."""
    file, config = tmp_path / "low.safetensors", {"transformer.r": 2, "transformer.lora_alpha": 8}
    tensors, metadata = written(halves, "diffusers"), {"lora_adapter_metadata": json.dumps(config)}
    save_file(tensors, file, metadata)
    second = replace(model, params=model.params | {"dit": model.params["dit_2"]})
    close(merge_files(model, [f"{file}@2"]).params["dit_2"], sums(second, halves, 4.0))
    both = tensors | {name.replace("transformer.", "transformer_2."): x for name, x in tensors.items()}
    save_file(both, file, metadata)
    merged = merge_files(model, [str(file)]).params
    close(merged["dit"], sums(model, halves, 4.0))
    close(merged["dit_2"], sums(second, halves, 1.0))


def test_the_first_pattern_that_fits_counts(model, halves, tmp_path):
    patterns = {"attn1.to_q|attn2.to_v": 2, "to_q": 16, "xx|net.2": 16, "fn.net.2": 32}
    config = {"r": 4, "lora_alpha": 4, "alpha_pattern": patterns, "rank_pattern": {"ffn.net.2": 2, "net.2": 8}}
    save_file(
        written(halves, "diffusers"), tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(config)}
    )
    merged = merge(model.params["dit"], read_lora(tmp_path / "lora.safetensors", {"dit": model.dit})["dit"], model.dit)
    flat = sums(model, halves, 1.0)
    for module, scale in (("attn1.to_q", 0.5), ("attn2.to_v", 0.5), ("ffn.net.2", 8.0)):
        some = {name: half for name, half in halves.items() if name.endswith(module)}
        flat[PATHS[module]] = sums(model, some, scale)[PATHS[module]]
    close(merged, flat)


@pytest.mark.parametrize("alpha", [np.ones(1, np.float32), np.int64(1), np.ones((1, 1), np.int32)])
def test_alpha_is_one_number_however_it_is_stored(model, halves, alpha, tmp_path):
    file, tensors = tmp_path / "lora.safetensors", written(halves, "kohya", 1.0)
    some = {name: np.asarray(x * alpha, np.asarray(alpha).dtype) for name, x in tensors.items() if "alpha" in name}
    save_file(tensors | some, file)
    close(merge_files(model, [str(file)]).params["dit"], sums(model, halves, 1.0))
    name = next(iter(some))
    save_file(tensors | {name: np.ones(2, np.float32)}, file)
    with pytest.raises(BadInput, match=rf"{name} is \(2,\), and alpha is one number"):
        merge_files(model, [str(file)])


@pytest.mark.parametrize("text, why", [("{r: 4}", "Expecting"), ("[4]", "it holds list, not named fields")])
def test_a_config_of_peft_that_cannot_be_read(model, halves, text, why, tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file(written(halves, "peft"), file, {"lora_adapter_metadata": text})
    with pytest.raises(
        BadInput, match=rf"lora\.safetensors: lora_adapter_metadata in its header cannot be read: {why}"
    ):
        merge_files(model, [str(file)])
    save_file(written(halves, "peft"), file)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(BadInput, match=rf"adapter_config\.json cannot be read: {why}"):
        merge_files(model, [str(file)])


def test_a_folder_of_peft_has_its_alpha(model, halves, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    save_file(written(halves, "peft"), tmp_path / "adapter_model.safetensors")
    for source in (tmp_path, tmp_path / "adapter_model.safetensors"):
        merged = merge(model.params["dit"], read_lora(source, {"dit": model.dit})["dit"], model.dit)
        close(merged, sums(model, halves, 2.0))


def test_alpha_zero_is_zero_and_not_one(model, halves, tmp_path):
    """As PEFT has it: what alpha 0 names is left as it is. A file in which that is all is refused."""
    file = tmp_path / "lora.safetensors"
    config = {"r": 4, "lora_alpha": 4, "alpha_pattern": {"ffn.net.2": 0}}
    save_file(written(halves, "diffusers"), file, {"lora_adapter_metadata": json.dumps(config)})
    merged = merge(model.params["dit"], read_lora(file, {"dit": model.dit})["dit"], model.dit)
    close(merged, sums(model, {name: half for name, half in halves.items() if not name.endswith("ffn.net.2")}, 1.0))
    save_file(written(halves, "kohya", 0.0), file)
    with pytest.raises(BadInput, match="alpha is 0 everywhere, so it would change nothing"):
        read_lora(file, {"dit": model.dit})


def test_rank_zero_is_told(model, halves, tmp_path):
    empty = {name: (down[:0], up[:, :0]) for name, (down, up) in halves.items()}
    save_file(written(empty, "kohya", 1.0), tmp_path / "lora.safetensors")
    with pytest.raises(BadInput, match="has rank 0"):
        read_lora(tmp_path / "lora.safetensors", {"dit": model.dit})


def test_whole_differences_of_weights_biases_and_norms(model, halves, tmp_path):
    tensors = written(halves, "lightx2v")
    tensors["diffusion_model.blocks.1.norm3.diff"] = np.full(32, 0.25, np.float32)
    tensors["diffusion_model.blocks.0.ffn.0.diff_b"] = np.full(48, 0.5, np.float32)
    tensors["diffusion_model.head.head.diff"] = np.full((16, 32), 0.125, np.float32)
    tensors["diffusion_model.blocks.0.modulation.diff"] = np.full((1, 6, 32), 1.0, np.float32)
    tensors["diffusion_model.blocks.1.diff_m"] = np.full((1, 6, 32), 2.0, np.float32)
    tensors["diffusion_model.head.diff_m"] = np.full((1, 2, 32), 3.0, np.float32)
    save_file(tensors, tmp_path / "lora.safetensors")
    merged = merge(model.params["dit"], read_lora(tmp_path / "lora.safetensors", {"dit": model.dit})["dit"], model.dit)
    flat = sums(model, halves, 1.0)
    flat["blocks/table"][1] += 2.0
    flat["table"] += 3.0
    flat["blocks/norm_cross/scale"][1] += 0.25
    flat["blocks/up/bias"][0] += 0.5
    flat["head/kernel"] += 0.125
    flat["blocks/table"][0] += 1.0
    close(merged, flat)


def test_several_files_strengths_and_experts(model, halves, tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file(written(halves, "kohya", 1.0), one)
    tensors = written(halves, "diffusers")
    both = tensors | {name.replace("transformer.", "transformer_2."): x for name, x in tensors.items()}
    save_file(both, two)
    merged = merge_files(model, [f"{one}=0.5", f"{two}", f"{one}@2=0.25"])
    close(merged.params["dit"], sums(model, halves, 1.5))
    first = replace(model, params=model.params | {"dit": model.params["dit_2"]})
    close(merged.params["dit_2"], sums(first, halves, 1.25))
    assert merged.params["vae"] is model.params["vae"]
    # A file of one denoiser calls it `transformer`, whichever it is for.
    save_file(tensors, two)
    merged = merge_files(model, [f"{two}@2"])
    close(merged.params["dit_2"], sums(first, halves, 1.0))
    assert merged.params["dit"] is model.params["dit"]
    with pytest.raises(BadInput, match="'much' is no number"):
        merge_files(model, [f"{one}=much"])
    with pytest.raises(BadInput, match="@2 names a second"):
        merge_files(variant("t2v"), [f"{one}@2"])


def test_stored_weights_stay_stored(model, halves, tmp_path):
    opened = open_model(save_model(model, tmp_path / "model", dtypes={"dit": "bfloat16"}))
    save_file(written(halves, "kohya", 1.0), tmp_path / "lora.safetensors")
    merged = merge_files(opened, [str(tmp_path / "lora.safetensors")])
    assert all(isinstance(leaf, Stored) for leaf in jax.tree.leaves(merged.params))
    leaf = merged.params["dit"]["blocks"]["up"]["kernel"]
    assert str(leaf.dtype) == "bfloat16"
    wanted = sums(model, halves, 1.0)["blocks/up/kernel"]
    np.testing.assert_allclose(np.asarray(leaf, np.float32), wanted, atol=0.02)


def refused(model, tensors, path, message, error=BadInput):
    save_file(tensors, path / "lora.safetensors")
    with pytest.raises(error, match=message):
        merge_files(model, [str(path / "lora.safetensors")])


def test_what_does_not_fit_is_refused_whole(model, halves, tmp_path):
    good = written(halves, "diffusers")
    name = "transformer.blocks.0.attn1.to_q.lora_A.weight"
    refused(model, good | {name: np.zeros((3, 40), np.float32)}, tmp_path,
            r"not a LoRA for this model: 1 of another size, 0 unknown, of 20\. Nothing was merged\.\n"
            r"  transformer\.blocks\.0\.attn1\.to_q\.lora_A\.weight: \(3, 40\) and \(32, 3\), the model's")  # fmt: skip
    refused(model, good | {"transformer.blocks.7.attn1.to_q.lora_A.weight": good[name],
                           "transformer.blocks.7.attn1.to_q.lora_B.weight": np.zeros((32, 3), np.float32)},
            tmp_path, r"2 unknown, of 22")  # fmt: skip
    refused(model, good | {"text_encoder.x.lora_A.weight": np.zeros(3, np.float32)}, tmp_path, "one half of a product")
    refused(model, {k: v for k, v in good.items() if k != name}, tmp_path, "one half of a product")
    refused(model, good | {"transformer.blocks.0.attn1.to_q.dora_scale": np.zeros(3, np.float32)}, tmp_path,
            r"dora_scale: unknown")  # fmt: skip
    refused(model, good | {name: np.full((3, 32), np.nan, np.float32)}, tmp_path, "NaN", NonFinite)
    with pytest.raises(MissingError, match="there is no LoRA"):
        merge_files(model, [str(tmp_path / "none.safetensors")])


def adapters(model, rng):
    flat = {}
    for path in PATHS.values():
        _, inside, outside = flatten(model.params["dit"])[path].shape
        flat[f"{path}/a"] = rng.standard_normal((2, inside, 4)).astype(np.float32) / 4
        flat[f"{path}/b"] = rng.standard_normal((2, 4, outside)).astype(np.float32) / 4
    return unflatten(flat)


def test_what_is_written_is_read(model, rng, tmp_path):
    made = adapters(model, rng)
    file = save_lora(tmp_path / "out", made, model.dit, scale=2.0)
    assert file.name == "pytorch_lora_weights.safetensors"
    assert load_file(file)["transformer.blocks.1.ffn.net.0.proj.lora_B.weight"].shape == (48, 4)
    merged = merge_files(model, [f"{tmp_path / 'out'}=0.5"])
    flat, pairs = dict(flatten(model.params["dit"])), flatten(made)
    for path in PATHS.values():
        flat[path] = flat[path] + pairs[f"{path}/a"] @ pairs[f"{path}/b"]
    close(merged.params["dit"], flat)
    close(add_adapters(model.params["dit"], made, 1.0), flat)


@pytest.mark.parity
@pytest.mark.parametrize("layout", ["diffusers", "kohya", "lightx2v"])
def test_diffusers_reads_the_same(layout, halves, rng, tmp_path):
    """The output of diffusers' transformer with a file loaded by diffusers (through PEFT), against that of diffusers'
    transformer with our sum in it; then the same for a file that we wrote."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    model = variant("t2v")
    full = dict(halves)
    if layout != "diffusers":  # its converters of these want every module of a block
        for module in ("attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_out.0"):
            for i in range(2):
                full[f"blocks.{i}.{module}"] = tuple(rng.standard_normal((2, 4, 32)).astype(np.float32) / 8)
        full = {name: (down, up if up.shape[0] != 4 else up.T) for name, (down, up) in full.items()}
    save_file(written(full, layout, None if layout == "diffusers" else 0.5), tmp_path / "lora.safetensors")
    save_lora(tmp_path / "ours", adapters(model, rng), model.dit, 0.5)
    folder = save_model(model, tmp_path / "model")
    for file in (tmp_path / "lora.safetensors", tmp_path / "ours/pytorch_lora_weights.safetensors"):
        pipe = diffusers.WanPipeline.from_pretrained(folder)
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
        with_theirs = velocity(torch, pipe.transformer)
        merged = save_model(merge_files(open_model(folder), [str(file)]), tmp_path / f"merged_{file.stem}")
        with_ours = velocity(torch, diffusers.WanTransformer3DModel.from_pretrained(merged / "transformer"))
        plain = velocity(torch, diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer"))
        size = np.linalg.norm(with_theirs)
        assert np.linalg.norm(with_theirs - plain) / size > 0.05
        assert np.linalg.norm(with_theirs - with_ours) / size < 1e-5


def velocity(torch, transformer):
    torch.manual_seed(0)
    with torch.no_grad():
        return transformer(torch.randn(1, 4, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 32, 24)).sample.numpy()
