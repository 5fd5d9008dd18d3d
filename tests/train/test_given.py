"""Image-to-video models and pairs of denoisers are trained on what generation gives them, when it does."""

import logging
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.cli.train import write_samples
from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape, Rules, make_mesh
from dit_video.core.types import Text, Time
from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder
from dit_video.data.latents import Latents
from dit_video.data.pool import Pool
from dit_video.data.video import read_video, write_video
from dit_video.diffusion.flow import RectifiedFlow
from dit_video.generate.encoded import encode
from dit_video.generate.pipeline import VideoPipeline
from dit_video.generate.request import resolve
from dit_video.models.given import takes_frames
from dit_video.train.conditions import Conditions
from dit_video.train.denoise import Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.loop import train
from dit_video.train.lora import FineTune, LoRA
from dit_video.train.optim import Optimizer
from dit_video.train.step import initial_params, loss_of, place, trained
from dit_video.weights.folder import read, save_model
from dit_video.weights.lora import merge_files
from dit_video.weights.names import flatten
from dit_video.weights.runs import Run, load_run

variant = runpy.run_path(str(Path(__file__).parents[1] / "weights" / "variants.py"))["variant"]
PROMPT = "a red circle moves right"
ONE = partial(make_mesh, MeshShape(data=1))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of one clip of 9 frames, each another picture."""
    folder = tmp_path_factory.mktemp("clips")
    coarse = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    write_video(folder / "a.mp4", coarse.repeat(4, 1).repeat(4, 2), 8.0, crf=1)
    (folder / "a.txt").write_text(PROMPT)
    return folder


def experiment(clips, init="models/x", slots=2, first=0.0, **objective):
    shown = Conditions(1.0 - first, first, picture=0.0, tail=0.0, tail_with_sink=0.0, window=0.0, drop_caption=0.0)
    denoise = Denoise(path=RectifiedFlow(shift=5.0), conditions=shown, crops=(Crop(slots, 1.0),),
                      pool=Pool(clips=2, pictures=0, chunk=2), tokens=16)  # fmt: skip
    settings = {"keep": "float32", "lora": LoRA(rank=2, targets=("cross", "up")), **objective}
    return Experiment(
        objective=FineTune(denoise, **settings), data=Folder(str(clips), fps=8.0), buckets=(Bucket(9, 32, 32),),
        optimizer=Optimizer(lr=0.02, warmup=1, weight_decay=0.0), steps=2, batch=2, ema=(0.1,), init=init,
        eval_batches=1, eval_every=2, sample_every=0, mesh=MeshShape(data=1),
    )  # fmt: skip


def opened(e, model, tmp_path, monkeypatch):
    """Objective, base and the first batch of a run that starts from a model."""
    monkeypatch.setattr("dit_video.train.lora.open_base", lambda name: model)
    objective, base = e.objective.resolve(e, Run(tmp_path / "run"))
    return objective, base, next(objective.stream(e, base, held_out=False))


def ends(clips):
    """The first and the last frame of the clip, as its bytes are read."""
    frames = Folder(str(clips), fps=8.0).open((Bucket(9, 32, 32),)).load(0).arrays["frames"]
    return {"image": frames[0], "last_image": frames[-1]}


def in_generation(model, **pictures):
    """Channels beside the noise and image tokens that generation makes of pictures, for two clips."""
    request = resolve(model, PROMPT, num_frames=9, height=32, width=32, **pictures)
    encoded = encode(VideoPipeline(model), request)
    return jnp.repeat(encoded.beside, 2, 0), jnp.repeat(encoded.image, 2, 0)


def test_with_the_last_frame_clips_are_whole_and_given_as_in_generation(clips, tmp_path, monkeypatch):
    model = variant("flf2v")
    batch = opened(experiment(clips), model, tmp_path, monkeypatch)[2]
    beside, image = in_generation(model, **ends(clips))
    assert batch.latents.shape == (2, 3, 4, 4, 4)
    np.testing.assert_allclose(batch.beside, beside, atol=1e-4)
    np.testing.assert_allclose(batch.image, image, atol=1e-4)


def test_the_loss_is_that_of_the_model_with_what_generation_gives_it(clips, tmp_path, monkeypatch):
    model = variant("i2v")
    objective, base, batch = opened(experiment(clips), model, tmp_path, monkeypatch)
    beside, image = in_generation(model, image=ends(clips)["image"])
    beside = beside[:, :2]
    assert batch.latents.shape == (2, 2, 4, 4, 4) and not batch.known.any()
    np.testing.assert_allclose(batch.beside, beside, atol=1e-4)
    np.testing.assert_allclose(batch.image, image, atol=1e-4)

    key = jax.random.key(5)
    time_key, noise_key = jax.random.split(key)
    t, noise = RectifiedFlow(shift=5.0).sample_time(time_key, 2), jax.random.normal(noise_key, batch.latents.shape)
    s = t[:, None, None, None, None]
    seen = jnp.concatenate([(1 - s) * batch.latents + s * noise, beside], -1)
    dit, text = model.module("dit"), model.module("text")
    rows = text(jnp.asarray(batch.ids), jnp.asarray(batch.length))
    velocity = jax.jit(lambda x: dit(x, Time(t[:, None]), rows, image=image))(seen)
    by_hand = jnp.mean(jnp.square(velocity - (noise - batch.latents)))
    frozen = objective.frozen(base, ONE(jax.devices()[:1]), Rules())
    params, parts = initial_params(objective, Rules(), jax.random.key(0)), trained(objective, Rules())
    step = jax.jit(jax.value_and_grad(lambda p, f, batch: loss_of(objective, parts, f)(p, batch, key)[0]))
    np.testing.assert_allclose(step(params, frozen, batch)[0], by_hand, rtol=1e-4)
    for _ in range(5):  # adapters learn from it
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, step(params, frozen, batch)[1])
    assert float(step(params, frozen, batch)[0]) < float(by_hand) - 1e-3


def test_a_first_frame_is_known_by_its_time_where_the_model_has_one_a_token(clips, tmp_path, monkeypatch):
    """TI2V of Wan 2.2: its VAE is residual; adapters learn from batches in which some clips have their first frame."""
    model = variant("ti2v")
    e = replace(experiment(clips, first=0.5), batch=8)
    objective, base, batch = opened(e, model, tmp_path, monkeypatch)
    first = batch.known[:, 0].all((1, 2))
    assert 0 < first.sum() < 8 and not batch.known[:, 1:].any() and batch.beside is None and batch.extra is None
    vae = model.module("vae")
    frames = Folder(str(clips), fps=8.0).open((Bucket(9, 32, 32),)).load(0).arrays["frames"]
    latents = vae.normalize(vae.encode(jnp.asarray(frames)[None] / 127.5 - 1.0)[0])
    np.testing.assert_allclose(batch.latents, jnp.repeat(latents[:, :2], 8, 0), atol=1e-4)

    key = jax.random.key(5)
    time_key, noise_key = jax.random.split(key)
    t, noise = RectifiedFlow(shift=5.0).sample_time(time_key, 8), jax.random.normal(noise_key, batch.latents.shape)
    s = jnp.where(batch.known[..., None], 0.0, t[:, None, None, None, None])
    dit, text = model.module("dit"), model.module("text")
    rows = text(jnp.asarray(batch.ids), jnp.asarray(batch.length))
    time = Time(jnp.stack([jnp.zeros(8), t], 1), jnp.asarray(1 - batch.known.astype(np.int32)))
    velocity = jax.jit(lambda x: dit(x, time, rows))((1 - s) * batch.latents + s * noise)
    by_hand = jnp.mean(jnp.where(s > 0, jnp.square(velocity - (noise - batch.latents)), 0.0))
    frozen = objective.frozen(base, ONE(jax.devices()[:1]), Rules())
    params, parts = initial_params(objective, Rules(), jax.random.key(0)), trained(objective, Rules())
    step = jax.jit(jax.value_and_grad(lambda p, f, batch: loss_of(objective, parts, f)(p, batch, key)[0]))
    value, grads = step(params, frozen, batch)
    np.testing.assert_allclose(value, by_hand, rtol=1e-4)
    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        value, grads = step(params, frozen, batch)
    assert float(value) < float(by_hand) - 1e-3


@pytest.mark.parametrize("expert, part", [(1, (0.875, 1.0)), (2, (0.0, 0.875))])
def test_an_expert_is_tuned_at_its_own_times(expert, part, clips, tmp_path, monkeypatch):
    """The other is the model's, and the model is whole."""
    model = variant("t2v_a14b")
    e = experiment(clips, lora=None, expert=expert)
    monkeypatch.setattr("dit_video.train.lora.open_base", lambda name: model)
    objective, base = e.objective.resolve(e, Run(tmp_path / "run"))
    tuned, other = ("dit", "dit_2") if expert == 1 else ("dit_2", "dit")
    start = objective.initial(base)
    assert list(start) == list(trained(objective, Rules()).abstract) == [tuned]
    jax.tree.map(np.testing.assert_array_equal, start[tuned], model.params[tuned])
    made = objective.model({tuned: "learnt"}, base)
    assert made.params[tuned] == "learnt" and made.params[other] is model.params[other] and made.parts == model.parts
    t = objective.denoise.path.sample_time(jax.random.key(0), 4096)
    assert part[0] <= float(t.min()) and float(t.max()) <= part[1]


def test_clips_of_another_rate_than_the_models_are_told(clips, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "dit_video")
    model = variant("t2v")
    monkeypatch.setattr("dit_video.train.lora.open_base", lambda name: model)
    e = experiment(clips)
    e.objective.resolve(e, Run(tmp_path / "run"))
    assert "frames a second" not in caplog.text
    model = replace(model, defaults=replace(model.defaults, fps=16.0))
    e.objective.resolve(e, Run(tmp_path / "run"))
    assert "8 frames a second, and models/x makes 16" in caplog.text and "Give --data.fps 16" in caplog.text


def test_what_a_model_cannot_be_shown_is_refused(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("dit_video.train.lora.open_base", lambda name: variant("i2v"))

    def refused(e, message):
        with pytest.raises(BadInput, match=message):
            e.objective.resolve(e, Run(tmp_path / "run"))

    e = experiment(clips)
    refused(replace(e, data=Latents("latents")), r"latents holds encoded clips, and models/x .* \(--data FOLDER\)")
    shown = replace(e.objective, denoise=replace(e.objective.denoise, conditions=Conditions(picture=0.0, tail=0.0)))
    refused(replace(e, objective=shown), r"one time .* set objective\.denoise\.conditions\.first, objective.* to 0")
    model = variant("i2v")
    with pytest.raises(BadInput, match=r"x: it takes 13 channels, its VAE has 4"):
        takes_frames(replace(model.dit, in_channels=13), model.vae, "x")
    assert not takes_frames(variant("t2v").dit, model.vae, "x")


@pytest.mark.slow
def test_the_mesh_changes_nothing(clips, tmp_path, monkeypatch):
    e = replace(experiment(clips, slots=1), batch=8)
    objective, base, batch = opened(e, variant("i2v"), tmp_path, monkeypatch)
    values = []
    for mesh in (ONE(jax.devices()[:1]), make_mesh(MeshShape(data=2, fsdp=2, tensor=2))):
        frozen = objective.frozen(base, mesh, Rules())
        loss = jax.jit(loss_of(objective, trained(objective, Rules()), frozen))
        with jax.set_mesh(mesh):
            params = initial_params(objective, Rules(), jax.random.key(0))
            values.append(float(loss(params, place(batch, mesh, Rules()), jax.random.key(1))[0]))
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, expert, lora", [("i2v", None, True), ("i2v_a14b", 2, True), ("i2v_a14b", 1, False), ("ti2v", None, True)]
)
def test_a_run_is_a_model_that_starts_from_a_picture(name, expert, lora, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("dit_video.train.loop.make_mesh", lambda shape: make_mesh(shape, jax.devices()[:1]))
    model = variant(name)
    more = {"lora": LoRA(rank=2, targets=("cross", "up"))} if lora else {"lora": None}
    first = 0.5 if name == "ti2v" else 0.0
    e = experiment(clips, str(save_model(model, tmp_path / "model")), expert=expert, first=first, **more)
    train(e, tmp_path / "run")
    run = load_run(tmp_path / "run")
    changed = {
        part for part in model.params for path, leaf in flatten(read(run.params[part])).items()
        if not np.array_equal(leaf, flatten(model.params[part])[path])
    }  # fmt: skip
    assert changed == {"dit_2" if expert == 2 else "dit"}
    if lora:  # the file that is left says the same
        merged = merge_files(model, [f"{tmp_path / 'run' / 'lora'}{'@2' if expert == 2 else ''}"])
        for part in changed:
            for path, leaf in flatten(merged.params[part]).items():
                np.testing.assert_allclose(leaf, flatten(read(run.params[part]))[path], atol=1e-6, err_msg=path)
    make = {"image": ends(clips)["image"], "seed": 1, "num_inference_steps": 2, "output_type": "latent"}
    pipes = VideoPipeline.from_pretrained(tmp_path / "run"), VideoPipeline(model)
    ours, plain = (pipe(PROMPT, **make).frames[0] for pipe in pipes)
    assert np.isfinite(ours).all() and np.abs(ours - plain).max() > 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("name, expert", [("i2v", None), ("i2v_a14b", 2)])
def test_diffusers_has_the_same_output_with_the_adapters(name, expert, clips, tmp_path, monkeypatch, rng):
    """The file that a run leaves, loaded by diffusers into its transformer, against the model that the run is."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    model = variant(name)  # diffusers counts 512 rows of text where there are tokens of a picture
    model = replace(
        model, **{part: replace(model.dit, text_len=512) for part in ("dit", "dit_2") if part in model.parts}
    )
    e = experiment(clips, expert=expert)
    monkeypatch.setattr("dit_video.train.lora.open_base", lambda name: model)
    objective, base = e.objective.resolve(e, Run(tmp_path / "run"))
    params = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32) / 2,
        initial_params(objective, Rules(), jax.random.key(0)),
    )
    objective.finish(params, e, base, Run(tmp_path / "run"))
    pipe = diffusers.WanImageToVideoPipeline.from_pretrained(save_model(model, tmp_path / "model"))
    theirs = pipe.transformer_2 if expert == 2 else pipe.transformer
    x, rows = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 2, 4, 4, 12), (1, 32, 24)))
    seen = {} if model.image is None else {"encoder_hidden_states_image": rng.standard_normal((1, 5, 20))}

    def velocity():
        with torch.no_grad():
            more = {key: torch.tensor(value, dtype=torch.float32) for key, value in seen.items()}
            latents = torch.tensor(x).permute(0, 4, 1, 2, 3)
            padded = torch.tensor(np.pad(rows, ((0, 0), (0, 480), (0, 0))))
            return theirs(latents, torch.tensor([500.0]), padded, **more).sample.permute(0, 2, 3, 4, 1)

    plain = velocity().numpy()
    pipe.load_lora_weights(str(tmp_path / "run" / "lora"), load_into_transformer_2=expert == 2)
    ours = objective.model(params, base)
    dit = replace(ours, params=read(ours.params)).module(objective.part)
    image = next((jnp.asarray(value, jnp.float32) for value in seen.values()), None)
    got = dit(jnp.asarray(x), Time(jnp.full((1, 1), 0.5)), Text(jnp.asarray(rows), jnp.array([32])), image=image)
    size = np.linalg.norm(velocity())
    assert np.linalg.norm(velocity().numpy() - plain) / size > 0.02
    assert np.linalg.norm(np.asarray(got) - velocity().numpy()) / size < 1e-3


@pytest.mark.parametrize("name", ["i2v", "flf2v"])
def test_samples_of_a_run_go_on_from_held_out_pictures(name, clips, tmp_path):
    e = replace(experiment(clips), prompts=("it grows", "it falls"))
    write_samples(variant(name), e, tmp_path, 3)
    for i, prompt in enumerate(e.prompts):
        footage = read_video(tmp_path / f"step_000003_{i}.mp4")
        assert footage.metadata["prompt"] == prompt and footage.frames.shape == (9, 32, 32, 3)
        assert footage.metadata["image"] or footage.metadata["given"]
    assert (tmp_path / "step_000003.png").is_file()
    write_samples(variant(name), replace(e, prompts=()), tmp_path, 4)
    assert read_video(tmp_path / "step_000004_3.mp4").metadata["prompt"] == PROMPT, "the clip's caption"
