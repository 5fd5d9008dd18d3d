"""`dit-video import` and `dit-video export`: what they write, what they say, what they refuse."""

import errno
import json
import runpy
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dit_video.cli.main import main
from dit_video.core.errors import DitVideoError
from dit_video.export.verify import open_in_diffusers
from dit_video.weights.folder import load_model, save_model
from dit_video.weights.names import flatten, to_foreign
from dit_video.weights.original import original_table

made = runpy.run_path(str(Path(__file__).parents[1] / "weights" / "variants.py"))
variant = made["variant"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(variant("i2v"), tmp_path_factory.mktemp("models") / "wan", dtypes={"dit": "bfloat16"})


def weights(folder):
    return {name: tensor for file in sorted(folder.rglob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.tobytes()) == (other[name].dtype, other[name].tobytes()), name


def test_import_keeps_every_bit(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["import", str(folder), str(out), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["path"] == str(out)
    assert about["parts"] == ["dit", "vae", "text", "image"]
    assert about["pipeline"] == "WanImageToVideoPipeline"
    same(weights(folder), weights(out))
    assert (out / "manifest.json").is_file()
    assert main(["import", str(folder), str(out)]) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["import", str(folder), str(out), "--force", "--dtype", "float16"]) == 0
    assert {str(tensor.dtype) for tensor in weights(out).values()} == {"float16"}


def test_a_denoiser_alone_wants_a_base(folder, tmp_path, capsys):
    model = load_model(folder)
    tensors = to_foreign(original_table(model.dit), flatten(model.params["dit"]))
    (tmp_path / "wan").mkdir()
    save_file({name: np.ascontiguousarray(2 * x) for name, x in tensors.items()}, tmp_path / "wan/a.safetensors")
    config = {"_class_name": "WanModel", "dim": model.dit.width, "num_heads": model.dit.heads}
    (tmp_path / "wan/config.json").write_text(json.dumps(config))
    line = ["import", str(tmp_path / "wan"), str(tmp_path / "out")]
    assert main(line) == 2
    assert "--base MODEL" in capsys.readouterr().err
    assert main([*line, "--base", str(folder)]) == 0
    np.testing.assert_array_equal(load_model(tmp_path / "out").params["dit"]["table"], 2 * model.params["dit"]["table"])


def test_export_merges_and_verifies(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dit_video.export.verify.find_spec", lambda name: None)  # loading torch takes long
    save_file(
        {"transformer.blocks.0.attn1.to_q.lora_A.weight": np.ones((1, 32), np.float32),
         "transformer.blocks.0.attn1.to_q.lora_B.weight": np.ones((32, 1), np.float32)}, tmp_path / "lora.safetensors",
    )  # fmt: skip
    out = tmp_path / "out"
    line = ["export", str(out), "--model", str(folder), "--to", "diffusers", "--dtype", "float32", "--verify", "--json"]
    assert main([*line, "--lora", f"{tmp_path / 'lora.safetensors'}=0.5"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["verified"], about["diffusers"]) == (len(weights(folder)), None)
    name = "blocks.0.attn1.to_q.weight"
    np.testing.assert_allclose(weights(out)[name], weights(folder)[name].astype(np.float32) + 0.5, atol=0.02)


def test_a_folder_for_diffusers_says_what_it_is(folder, tmp_path, capsys, monkeypatch):
    """A manifest and a card, as in every export; the model's hash is that of its files without them."""
    monkeypatch.setattr("dit_video.export.verify.find_spec", lambda name: None)  # loading torch takes long
    score = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 96}
    (tmp_path / "scores.json").write_text(json.dumps({"suite": "toyworld", "scores": {"shape": score}}))
    plain, out = save_model(load_model(folder), tmp_path / "plain", dtypes={"dit": "bfloat16"}), tmp_path / "out"
    line = ["export", str(out), "--model", str(plain), "--to", "diffusers"]
    assert main([*line, "--verify", "--scores", str(tmp_path / "scores.json")]) == 0
    about, was = (json.loads((place / "manifest.json").read_text()) for place in (out, plain))
    assert about["sha256"] == was["sha256"] and load_model(out).digest == load_model(plain).digest
    assert about["format"] == "diffusers" and about["model"]["hash"] == load_model(plain).digest
    assert about["measured"] == {"tensors": len(weights(out)), "diffusers": None, "differing": 0, "against": str(plain)}
    assert {"created", "versions", "defaults", "rule", "scores", "needs", "dtype"} <= set(about)
    assert set(about["parameters"]) == {"dit", "vae", "text", "image"}
    compile(about["run"], "example.py", "exec")
    assert "WanImageToVideoPipeline.from_pretrained" in about["run"] and "image=load_image(" in about["run"]
    card = (out / "README.md").read_text()
    assert about["run"] in card and "| shape | 90.0 % | 80.0 % - 95.0 % | 96 |" in card and "run.py" not in card
    # It is a model: what other exports may replace, and renew, it is not.
    capsys.readouterr()
    assert main(["export", str(out), "--refresh"]) == 2
    assert "it is a model, which does not age" in capsys.readouterr().err
    assert main([*line, "--force"]) == 0 and "without the numbers" in (out / "README.md").read_text()


@pytest.mark.parity
def test_diffusers_opens_what_was_exported(folder, tmp_path, capsys):
    for package in ("torch", "diffusers", "transformers"):
        pytest.importorskip(package)
    out = tmp_path / "out"
    assert main(["export", str(out), "--model", str(folder), "--to", "diffusers", "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["diffusers"].startswith("0.")
    file = out / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["proj_elsewhere.weight"] = tensors.pop("proj_out.weight")
    save_file(tensors, file)
    with pytest.raises(DitVideoError, match=r"(?s)does not open.*transformer: .*'missing_keys': \['proj_out.weight'\]"):
        open_in_diffusers(out)


def test_nothing_is_left_of_a_failure(folder, tmp_path, capsys):
    save_file({"x.lora_A.weight": np.ones((1, 3), np.float32)}, tmp_path / "lora.safetensors")
    line = ["export", str(tmp_path / "out"), "--to", "diffusers", "--model", str(folder)]
    assert main([*line, "--lora", str(tmp_path / "lora.safetensors")]) == 2
    assert "one half of a product" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "lora.safetensors"), str(tmp_path / "out"), "--base", str(folder)]) == 2
    assert "no denoiser of the Wan family" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "out"), "--to", "onnxx"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]


def test_a_hub_name_without_a_hub(tmp_path, capsys, monkeypatch):
    import importlib

    def offline(name, **_):
        raise OSError(f"no network for {name}\nmore")

    monkeypatch.setattr(
        "dit_video.weights.find.import_module", lambda name: types.SimpleNamespace(snapshot_download=offline)
    )
    assert main(["import", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", str(tmp_path / "out")]) == 3
    assert "Hub did not give it: no network for Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in capsys.readouterr().err
    monkeypatch.setattr("dit_video.weights.find.import_module", lambda name: importlib.import_module("no_such_hub"))
    assert main(["import", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", str(tmp_path / "out")]) == 3
    assert "pip install huggingface_hub" in capsys.readouterr().err


@pytest.fixture
def small(tiny, tmp_path):
    return str(save_model(tiny, tmp_path / "model"))


def test_export_of_programs_refuses(small, tmp_path, capsys, monkeypatch):
    """Each before anything is written, with what to do."""
    from dit_video.weights.runs import open_base as opened

    out = tmp_path / "out"

    def refused(*flags, code=2):
        assert main(["export", str(out), "--model", small, *flags]) == code
        return capsys.readouterr().err

    assert "'onnxx'" in refused("--to", "onnxx") and not out.exists()
    assert "--to FORMAT is missing" in refused()
    assert "Use 9 or 13" in refused("--to", "stablehlo", "--shapes", "10x32x32")
    assert "multiple of 16" in refused("--to", "stablehlo", "--shapes", "9x32x40")
    assert "frames x height x width" in refused("--to", "stablehlo", "--shapes", "9x32")
    assert "go with --to stablehlo or onnx" in refused("--to", "diffusers", "--shapes", "9x32x32")
    assert "no export here to renew" in refused("--refresh", code=3)
    assert "onnx-env/bin/python" in refused("--to", "onnx", "--converter", str(tmp_path / "none"), code=3)
    assert "--converter goes with --to onnx" in refused("--to", "stablehlo", "--converter", "python")
    monkeypatch.setattr("dit_video.weights.runs.open_base", lambda name: pytest.fail("it was opened"))
    for to, dtypes in {"stablehlo": "Use float32 or bfloat16", "onnx": "float32 only"}.items():
        assert dtypes in refused("--to", to, "--dtype", "float16")
    scores, report = tmp_path / "scores.json", {"suite": "toyworld", "scores": {"shape": {"value": 1, "n": 5}}}
    assert "no such file" in refused("--to", "stablehlo", "--scores", str(scores), code=3)
    for wrong in ({"scores": {"a": 1}}, [1], {"suite": "toyworld"}, report):
        scores.write_text(json.dumps(wrong))
        assert "scores.json" in refused("--to", "stablehlo", "--scores", str(scores))
    assert "cannot be read: Is a directory" in refused("--to", "stablehlo", "--scores", small)
    scores.unlink()
    monkeypatch.setattr("dit_video.weights.runs.open_base", opened)
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
    assert "0.0 MB are free there" in refused("--to", "stablehlo")
    assert "0.0 MB are free there" in refused("--to", "diffusers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert "it is not an export, and is not replaced" in refused("--to", "stablehlo", "--force")
    assert "is no export" in refused("--refresh")
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_disk_that_fills_up_leaves_nothing(small, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dit_video.export.stablehlo.write_programs", full)
    assert main(["export", str(tmp_path / "out"), "--to", "stablehlo", "--model", small]) == 2
    assert "no space left there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_refresh_is_of_the_same_model(small, tmp_path, capsys, monkeypatch):
    """What an export was made with stands in its manifest; a model that has changed is not taken in its place."""
    made = []
    monkeypatch.setattr("dit_video.export.stablehlo.write_programs", lambda *a: made.append(a[2]) or {})
    out = str(tmp_path / "out")
    assert main(["export", out, "--to", "stablehlo", "--model", small, "--shapes", "9x32x32"]) == 0
    assert main(["export", out, "--to", "stablehlo", "--model", small]) == 2
    assert "is there already. Choose another place or force" in capsys.readouterr().err
    assert main(["export", out, "--refresh", "--json"]) == 0
    assert made == [((9, 32, 32),)] * 2
    assert json.loads(capsys.readouterr().out)["format"] == "stablehlo"
    assert main(["export", out, "--refresh", "--to", "onnx"]) == 2
    assert "wants a folder of its own" in capsys.readouterr().err
    manifest = tmp_path / "out" / "manifest.json"
    about = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(about | {"model": about["model"] | {"hash": "0" * 12}}))
    assert main(["export", out, "--refresh"]) == 2
    assert "was made from 000000000000" in capsys.readouterr().err
    manifest.write_text(json.dumps(about | {"scores": {"scores": {"a": 1}}}))
    assert main(["export", out, "--refresh"]) == 2
    assert "manifest.json: what it says under scores is not what" in capsys.readouterr().err
