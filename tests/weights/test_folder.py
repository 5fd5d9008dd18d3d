"""The model folder: there and back, damage is found, what does not fit is listed; and diffusers opens it."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dit_video.core.errors import BadInput, MissingError, NonFinite
from dit_video.core.types import Time
from dit_video.models.dit import DiTConfig
from dit_video.models.text import TextConfig
from dit_video.models.tokenizer import train
from dit_video.models.vae import VAEConfig
from dit_video.weights.folder import check_saved, find_model, load_model, manifest, open_model, save_model
from dit_video.weights.model import Defaults, Model, shapes
from dit_video.weights.names import flatten, unflatten

DIT = DiTConfig(in_channels=6, out_channels=6, heads=2, head_dim=16, depth=2, ffn_dim=48, freq_dim=32, text_dim=24)
TEXT = TextConfig(vocab=128, width=24, heads=2, head_dim=8, ffn_dim=32, depth=2)
VAE = VAEConfig(
    base=8,
    z=6,
    mult=(1, 1, 2),
    res_blocks=1,
    temporal=(True, True),
    patch=2,
    latents_mean=tuple(np.linspace(-1, 1, 6).tolist()),
    latents_std=tuple(np.linspace(0.5, 2, 6).tolist()),
)
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 2.5,
}


def random_params(cfg, rng):
    return unflatten({p: (rng.standard_normal(s) * 0.2).astype(np.float32) for p, s in shapes(cfg).items()})


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    configs = {"dit": DIT, "vae": VAE, "text": TEXT}
    return Model(
        **configs,
        params={part: random_params(cfg, rng) for part, cfg in configs.items()},
        tokenizer=train(["a red circle moves right", "the quick brown fox jumps over the lazy dog"], 120),
        scheduler=SCHEDULER,
        defaults=Defaults(height=16, width=32, num_frames=5, sizes=((16, 32), (32, 16)), guidance=3.5),
    )


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return save_model(model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "tiny")


def without_manifest(folder):
    (folder / "manifest.json").unlink()
    return folder


def edit_weights(folder, change, part="transformer", file="diffusion_pytorch_model.safetensors"):
    path = without_manifest(folder) / part / file
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def assert_same_params(one, other, **tolerance):
    assert flatten(one).keys() == flatten(other).keys()
    for path, array in flatten(one).items():
        np.testing.assert_allclose(flatten(other)[path], array, err_msg=path, **tolerance)


def test_there_and_back(model, saved):
    loaded = load_model(saved)
    assert replace(loaded, params={}, name="", digest="") == replace(model, params={})
    assert_same_params(model.params, loaded.params, rtol=0)
    assert {array.dtype for array in flatten(loaded.params).values()} == {np.dtype("float32")}
    assert loaded.name == str(saved)
    assert len(loaded.digest) == 12
    halved = load_model(str(saved), dtype=jnp.bfloat16).params["dit"]
    assert (halved["blocks"]["up"]["kernel"].dtype, halved["table"].dtype) == (jnp.bfloat16, jnp.float32)


def test_what_the_denoiser_puts_out_is_told_by_the_scheduler(model, tmp_path):
    path = save_model(replace(model, dit=replace(DIT, predicts="data")), tmp_path / "data")
    file = path / "scheduler/scheduler_config.json"
    assert json.loads(file.read_text()) == SCHEDULER | {"prediction_type": "sample"}
    assert load_model(path).dit.predicts == "data"
    without_manifest(path)
    file.write_text(json.dumps(SCHEDULER | {"prediction_type": "epsilon"}))
    with pytest.raises(BadInput, match="epsilon"):
        load_model(path)


def test_the_layout_is_that_of_diffusers(saved):
    files = {file.relative_to(saved).as_posix() for file in saved.rglob("*") if file.is_file()}
    assert files == {
        "model_index.json",
        "manifest.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    }
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    assert index["expand_timesteps"] is True
    assert index["transformer_2"] == [None, None]
    vae = json.loads((saved / "vae/config.json").read_text())
    assert vae["temperal_downsample"] == [True, True]
    assert (vae["patch_size"], vae["in_channels"], vae["scale_factor_spatial"]) == (2, 12, 8)
    assert set(json.loads((saved / "manifest.json").read_text())["sha256"]) == files - {"manifest.json"}


def test_stored_dtypes_by_part(model, tmp_path):
    path = save_model(model, tmp_path / "half", dtypes={"dit": "float16", "vae": "bfloat16"})
    halves = load_file(path / "transformer/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in halves.values()} == {np.dtype("float16")}
    loaded = load_model(path)
    assert_same_params(model.params["dit"], loaded.params["dit"], rtol=1e-3, atol=1e-6)
    assert_same_params(model.params["vae"], loaded.params["vae"], rtol=1e-2)
    assert_same_params(model.params["text"], loaded.params["text"], rtol=0)
    assert {array.dtype for array in flatten(loaded.params).values()} == {np.dtype("float32")}
    with pytest.raises(BadInput, match="float8"):
        save_model(model, tmp_path / "other", dtypes={"dit": "float8"})
    params = jax.tree.map(lambda x: x * 1e6, model.params)
    with pytest.raises(NonFinite, match="does not fit into float16"):
        save_model(replace(model, params=params), tmp_path / "other", dtypes={"dit": "float16"})
    assert not any(tmp_path.glob("*other*"))
    assert not any(tmp_path.glob(".*"))  # no folder half written


def test_an_existing_folder_is_kept_unless_forced(model, folder):
    with pytest.raises(BadInput, match="there already"):
        save_model(model, folder)
    (folder / "note.txt").write_text("of the old one")
    save_model(model, folder, force=True)
    assert not (folder / "note.txt").exists()
    assert load_model(folder).text == TEXT
    precious = folder.parent / "home"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="not a model"):
        save_model(model, precious, force=True)
    assert (precious / "letter.txt").read_text() == "dear"
    assert {path.name for path in folder.parent.iterdir()} == {"tiny", "home"}


@pytest.mark.parametrize(
    "file", ["vae/diffusion_pytorch_model.safetensors", "tokenizer/spiece.model", "vae/config.json"]
)
def test_a_flipped_byte_is_found(folder, file):
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(BadInput, match=f"{file} not as written"):
        load_model(folder)


def test_a_missing_or_truncated_file_is_named(folder):
    weights = folder / "text_encoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"model\.safetensors not as written"):
        load_model(folder)
    with pytest.raises(BadInput, match=r"text_encoder/model\.safetensors: the weights cannot be read"):
        load_model(folder, verify=False)
    weights.unlink()
    with pytest.raises(MissingError, match=r"text_encoder/model\.safetensors missing"):
        load_model(folder)
    with pytest.raises(MissingError, match=r"text_encoder has no weights"):
        load_model(without_manifest(folder))


def test_nan_in_weights_is_named(folder):
    edit_weights(folder, lambda tensors: tensors["proj_out.weight"].__setitem__((0, 0), np.nan))
    with pytest.raises(NonFinite, match=r"transformer: NaN or infinity in head/kernel"):
        load_model(folder)


def test_a_checkpoint_of_another_shape_lists_tensors_and_shapes(folder):
    def change(tensors):
        tensors["blocks.1.attn1.to_q.weight"] = np.zeros((32, 40), np.float32)
        del tensors["proj_out.bias"]
        tensors["stray"] = np.zeros(3, np.float32)

    edit_weights(folder, change)
    with pytest.raises(BadInput) as caught:
        load_model(folder)
    text = str(caught.value)
    assert "1 missing, 1 unknown, 1 of another shape" in text
    assert "blocks.1.attn1.to_q.weight  has (32, 40), the model wants (32, 32)" in text
    assert "proj_out.bias  (24,)" in text
    assert "stray  (3,)" in text


def test_weights_in_several_files_are_read(model, folder):
    file = without_manifest(folder) / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    for number, part in enumerate((names[:9], names[9:])):
        target = file.with_name(f"diffusion_pytorch_model-{number + 1:05}-of-00002.safetensors")
        save_file({name: tensors[name] for name in part}, target)
    file.unlink()
    assert_same_params(model.params["dit"], load_model(folder).params["dit"], rtol=0)


def test_unknown_models(tmp_path):
    with pytest.raises(BadInput, match=r"unknown model 'nope': there is no such folder .*only 'board'"):
        find_model("nope")
    with pytest.raises(BadInput, match=r"no model_index\.json"):
        find_model(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match="it is a file"):
        find_model(tmp_path / "a.safetensors")


def test_configs_that_are_not_read(folder):
    config = json.loads((without_manifest(folder) / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "z_dim"}))
    with pytest.raises(BadInput, match="z_dim"):
        load_model(folder)
    (folder / "vae/config.json").write_text("{")
    with pytest.raises(BadInput, match=r"vae/config\.json cannot be read"):
        load_model(folder)


def test_modules_hold_the_parameters(model):
    tokens = model.tokenizer.encode(["a red circle"])
    text = jax.jit(model.module("text"))(jnp.asarray(tokens.ids), jnp.asarray(tokens.length))
    np.testing.assert_array_equal(text.rows[0, int(tokens.length[0]) :], 0)
    np.testing.assert_array_equal(
        model.module("vae").decoder.conv_in.bias[...], model.params["vae"]["decoder"]["conv_in"]["bias"]
    )


def test_the_manifest_does_not_depend_on_the_place(saved, folder):
    assert manifest(saved) == manifest(folder)


@pytest.fixture(scope="module")
def pipe(saved):
    pytest.importorskip("torch")
    return pytest.importorskip("diffusers").WanPipeline.from_pretrained(saved)


@pytest.mark.parity
class TestDiffusers:
    """What diffusers and transformers make of the folder."""

    def test_no_key_is_missing_or_unexpected(self, saved):
        torch = pytest.importorskip("torch")
        diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
        kinds = {
            "transformer": diffusers.WanTransformer3DModel,
            "vae": diffusers.AutoencoderKLWan,
            "text_encoder": transformers.UMT5EncoderModel,
        }
        for name, kind in kinds.items():
            part, info = kind.from_pretrained(saved / name, output_loading_info=True)
            assert {p.dtype for p in part.parameters()} == {torch.float32}, name
            assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (name, info)

    def test_the_pipeline_is_configured(self, pipe):
        assert pipe.config.expand_timesteps is True
        assert pipe.scheduler.config.flow_shift == 2.5
        assert pipe.vae_scale_factor_spatial == 8
        assert pipe.vae_scale_factor_temporal == 4

    def test_the_same_text(self, pipe, model):
        torch = pytest.importorskip("torch")
        prompts = ["A red circle moves  right.", "", "&quot;caf\u00e9&quot; \u65e5\u672c"]
        with torch.no_grad():
            theirs = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=32)[0].numpy()
        tokens = model.tokenizer.encode(prompts)
        rows = model.module("text")(jnp.asarray(tokens.ids), jnp.asarray(tokens.length)).rows
        padded = np.pad(rows, ((0, 0), (0, 32 - rows.shape[1]), (0, 0)))
        np.testing.assert_allclose(padded, theirs, atol=1e-4)

    def test_the_same_velocity(self, pipe, model):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(1)
        x = rng.standard_normal((2, 2, 4, 6, 6)).astype(np.float32)
        tokens = model.tokenizer.encode(["a red circle", ""])
        text = model.module("text")(jnp.asarray(tokens.ids), jnp.asarray(tokens.length))
        rows = np.pad(text.rows, ((0, 0), (0, 512 - text.rows.shape[1]), (0, 0)))
        time = np.array([[0.0, 0.75], [0.0, 0.25]], np.float32)
        index = np.ones((2, 2, 4, 6), np.int32)
        index[:, 0] = 0  # the first frame is known
        velocity = jax.jit(lambda x, text: model.module("dit")(x, Time(jnp.asarray(time), jnp.asarray(index)), text))(
            x, text
        )
        with torch.no_grad():
            theirs = pipe.transformer(
                torch.tensor(x.transpose(0, 4, 1, 2, 3)),
                torch.tensor(np.repeat(time * 1000, 6, axis=1)),  # a frame has 2 x 3 tokens
                torch.tensor(rows),
            ).sample.numpy()
        np.testing.assert_allclose(velocity, theirs.transpose(0, 2, 3, 4, 1), atol=2e-4)

    def test_the_same_latents_and_video(self, pipe, model):
        torch = pytest.importorskip("torch")
        video = np.random.default_rng(2).uniform(-1, 1, (1, 5, 16, 32, 3)).astype(np.float32)
        vae = model.module("vae")
        mean, _ = vae.encode(jnp.asarray(video))
        with torch.no_grad():
            theirs = pipe.vae.encode(torch.tensor(video.transpose(0, 4, 1, 2, 3))).latent_dist.mode()
            frames = pipe.vae.decode(theirs).sample.numpy().transpose(0, 2, 3, 4, 1)
        np.testing.assert_allclose(mean, theirs.numpy().transpose(0, 2, 3, 4, 1), atol=1e-4)
        np.testing.assert_allclose(np.clip(vae.decode(mean), -1, 1), frames, atol=1e-3)
        np.testing.assert_allclose(
            vae.normalize(mean), (mean - np.array(VAE.latents_mean)) / np.array(VAE.latents_std), atol=1e-5
        )

    def test_the_same_frames_of_a_model_that_puts_out_data(self, model, tmp_path):
        torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
        from dit_video.generate.pipeline import VideoPipeline

        path = save_model(replace(model, dit=replace(DIT, predicts="data")), tmp_path / "data")
        pipe = diffusers.WanPipeline.from_pretrained(path)
        pipe.set_progress_bar_config(disable=True)
        noise = np.random.default_rng(4).standard_normal((1, 2, 2, 4, 6)).astype(np.float32)
        ours = VideoPipeline.from_pretrained(path, dtype="float32")(
            ["a red circle"], height=16, width=32, num_frames=5, num_inference_steps=6, guidance_scale=3.5,
            latents=noise,
        ).frames  # fmt: skip
        theirs = pipe(
            "a red circle", height=16, width=32, num_frames=5, num_inference_steps=6, guidance_scale=3.5,
            latents=torch.from_numpy(noise.transpose(0, 4, 1, 2, 3).copy()), output_type="np",
        ).frames  # fmt: skip
        assert theirs.std() > 0.02
        assert np.abs(np.stack(ours).astype(np.float32) - 255 * theirs).max() <= 2.0

    def test_it_runs(self, pipe):
        pipe.set_progress_bar_config(disable=True)
        out = pipe("a red circle", height=16, width=32, num_frames=5, num_inference_steps=2, output_type="np")
        assert out.frames.shape == (1, 5, 16, 32, 3)
        assert np.isfinite(out.frames).all()


@pytest.mark.parity
@pytest.mark.parametrize("count", [4])  # tools/same_frames.py does it for sixteen
def test_the_weights_on_board_make_the_same_frames_in_diffusers(count, tmp_path):
    """Exported in float32, at the stored defaults, from the same latents: at most 2/255 apart on 99.9 % of pixels."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from dit_video.generate.pipeline import VideoPipeline

    model = open_model()
    folder = save_model(model, tmp_path / "board", dtypes=dict.fromkeys(model.parts, "float32"))
    assert check_saved(model, folder, dtypes=dict.fromkeys(model.parts, "float32")) > 100
    what = (("circle", "right"), ("square", "up"), ("star", "left"), ("triangle", "down"))
    colours = ("red", "blue", "yellow", "green")
    prompts = [f"a {colour} {shape} moves {way}" for shape, way in what for colour in colours][:count]
    d = model.defaults
    shape = (count, *model.vae.latent_shape(d.num_frames, d.height, d.width))
    latents = np.random.default_rng(3).standard_normal(shape, np.float32)
    ours = VideoPipeline.from_pretrained(folder, dtype="float32")(prompts, latents=latents, seed=0).frames
    pipe = diffusers.WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompts, height=d.height, width=d.width, num_frames=d.num_frames, num_inference_steps=d.steps,
        guidance_scale=d.guidance, latents=torch.from_numpy(latents.transpose(0, 4, 1, 2, 3).copy()), output_type="np",
    ).frames  # fmt: skip
    apart = np.abs(np.stack(ours).astype(np.float32) - 255 * theirs)
    assert theirs.std() > 0.02  # there is something to see
    assert np.quantile(apart, 0.999) <= 2.0, np.quantile(apart, [0.5, 0.99, 0.999, 1.0])
