"""The pipeline with a model in miniature: what is promised of seeds, batches, images, steps and failures."""

import functools
import operator
from dataclasses import replace

import jax
import numpy as np
import pytest

from dit_video.core.errors import BadInput, Interrupted, NonFinite
from dit_video.core.log import Progress
from dit_video.core.mesh import MeshShape, make_mesh
from dit_video.diffusion.cache import Curve
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.noise import clip_noise
from dit_video.diffusion.sample import scan
from dit_video.diffusion.schedule import Schedule
from dit_video.diffusion.solvers import SOLVERS
from dit_video.generate.calibrate import calibrate
from dit_video.generate.clip import frames_sha256
from dit_video.generate.decode import Strip, decode_frames
from dit_video.generate.pipeline import VideoPipeline
from dit_video.generate.request import resolve
from dit_video.generate.unfinished import Unfinished
from dit_video.models.dit import DiT
from dit_video.weights.place import numbers

PROMPT = "a red circle moves right"


@pytest.fixture(scope="module")
def pipe(tiny):
    return VideoPipeline(tiny)


@pytest.fixture(scope="module")
def plain(pipe):
    """The clip that the others are compared with."""
    return pipe(PROMPT, seed=7)


def worst(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_guidance_in_an_interval_rescaled_and_zero_star(pipe, plain):
    made = lambda **how: pipe(PROMPT, seed=7, **how)  # noqa: E731
    np.testing.assert_array_equal(made(guidance_interval=(0.0, 1.0)).frames[0], plain.frames[0])
    never = made(guidance_interval=(0.0, 1e-6))
    assert worst(never.frames[0], made(guidance_scale=1.0).frames[0]) <= 1
    assert never.metadata[0]["guidance_interval"] == [0.0, 1e-6]
    picture = np.full((32, 32, 3), 90, np.uint8)
    given = [made(image=picture, **how).frames[0] for how in ({"guidance_interval": (0, 1e-6)}, {"guidance_scale": 1})]
    assert worst(*given) <= 1
    for how in ({"guidance_interval": (0.0, 0.9)}, {"guidance_rescale": 0.7}, {"cfg_zero_star": True}):
        other = made(**how)
        assert (other.frames[0] != plain.frames[0]).any()
        assert set(how) <= set(other.metadata[0])
    long = {"num_frames": 13, "long": "window", "window": 3, "overlap": 1}
    ways = [made(**long, **how).frames[0] for how in ({"guidance_interval": (0, 1e-6)}, {"guidance_scale": 1.0})]
    assert worst(*ways) <= 1


def test_frames_and_metadata(plain, tiny):
    (frames,) = plain.frames
    assert (frames.shape, frames.dtype) == ((5, 32, 32, 3), np.uint8)
    assert frames.std() > 5
    (meta,) = plain.metadata
    assert meta["prompt"] == meta["prompt_used"] == PROMPT
    assert (meta["seed"], meta["num_frames"], meta["height"], meta["width"], meta["fps"]) == (7, 5, 32, 32, 8.0)
    assert (meta["num_inference_steps"], meta["solver"], meta["guidance_scale"], meta["shift"]) == (
        3,
        "unipc",
        2.0,
        3.0,
    )
    assert meta["frames_sha256"] == frames_sha256(frames)
    assert set(meta["seconds"]) == {"load", "compile", "denoise", "decode"}
    assert len(meta["model"]["hash"]) == 12
    assert plain.seed == 7


def test_it_is_the_network_under_the_mathematics(plain, tiny, pipe):
    """The same clip by hand: two networks in turn, guidance written out, all steps in one scan, decoded whole."""
    dit, vae, text = (tiny.module(part) for part in ("dit", "vae", "text"))
    tokens = tiny.tokenizer.encode([PROMPT, ""])
    encoded = jax.jit(lambda ids, length: text(ids, length))(tokens.ids, tokens.length)
    row = lambda i: jax.tree.map(lambda a: a[i : i + 1], encoded)  # noqa: E731
    assert isinstance(dit, DiT)

    def velocity(x, time, memory):
        with_prompt, without = dit(x, time, row(0)), dit(x, time, row(1))
        return without + 2.0 * (with_prompt - without), memory

    noise = clip_noise(7, [0], 2, (4, 4, 4))
    latents = jax.jit(lambda x: scan(velocity, SOLVERS["unipc"], x, Schedule(3, 3.0).instants()).x)(noise)
    np.testing.assert_allclose(plain.clips[0].latents, latents[0], atol=2e-3)
    video = np.asarray(jax.jit(lambda z: vae.decode(vae.denormalize(z)))(plain.clips[0].latents[None]))[0]
    assert worst(plain.frames[0], np.round((video + 1) * 127.5)) <= 1


def test_same_seed_same_frames_whatever_the_batch(plain, pipe):
    assert worst(pipe(PROMPT, seed=7).frames[0], plain.frames[0]) == 0
    batch = pipe([PROMPT, "a blue star", PROMPT], seed=7)
    assert worst(batch.frames[0], plain.frames[0]) <= 1
    # another clip of the batch has its own noise
    assert worst(batch.frames[2], plain.frames[0]) > 20
    assert worst(pipe(PROMPT, seed=8).frames[0], plain.frames[0]) > 20
    assert [m["clip"] for m in batch.metadata] == [0, 1, 2]


def test_the_prompts_matter(plain, pipe):
    assert worst(pipe("a blue star moves left", seed=7).frames[0], plain.frames[0]) > 2
    assert worst(pipe(PROMPT, "a red circle", seed=7).frames[0], plain.frames[0]) > 2


def test_guidance_one_is_no_guidance(pipe):
    """Without guidance the negative prompt is not looked at."""
    one = pipe(PROMPT, seed=7, guidance_scale=1.0)
    assert worst(one.frames[0], pipe(PROMPT, "a blue star", seed=7, guidance_scale=1.0).frames[0]) == 0
    assert worst(one.frames[0], pipe(PROMPT, seed=7, guidance_scale=1.0001).frames[0]) <= 1


def test_a_longer_clip_starts_from_the_same_noise(pipe):
    noise = clip_noise(7, [0], 3, (4, 4, 4))
    np.testing.assert_array_equal(noise[:, :2], clip_noise(7, [0], 2, (4, 4, 4)))
    by_seed = pipe(PROMPT, seed=7, num_frames=9, output_type="latent").frames[0]
    given = pipe(PROMPT, seed=1, num_frames=9, latents=noise, output_type="latent").frames[0]
    np.testing.assert_array_equal(by_seed, given)


def test_any_number_of_steps_scale_and_shift_is_one_program(pipe, plain):
    before = len(pipe.programs.compiled)
    pipe(PROMPT, seed=1, num_inference_steps=5, guidance_scale=7.0, shift=1.5, fps=12.0)
    assert len(pipe.programs.compiled) == before


def test_new_weights_find_compiled_programs(pipe, tiny, plain):
    other = VideoPipeline(replace(tiny, params=jax.tree.map(lambda a: a * 0.9, tiny.params)))
    assert other.programs is pipe.programs
    before = len(pipe.programs.compiled)
    assert worst(other(PROMPT, seed=7).frames[0], plain.frames[0]) > 2
    assert len(pipe.programs.compiled) == before
    assert other.hash != pipe.hash


def test_a_first_frame_is_kept(pipe, tiny):
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = (250, 30, 30)
    seen = []
    out = pipe(PROMPT, seed=7, image=image, callback_on_step_end=lambda p, i, t, kw: seen.append((i, t)) or None)
    vae = tiny.module("vae")
    encoded = jax.jit(lambda x: vae.normalize(vae.encode(x)[0]))(image[None, None].astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(out.clips[0].latents[0], encoded[0, 0], atol=1e-4)
    assert [i for i, _ in seen] == [0, 1, 2]
    np.testing.assert_allclose([t for _, t in seen], [999, 857, 600], atol=0.01)
    assert worst(out.frames[0][1:], pipe(PROMPT, seed=7, image=255 - image).frames[0][1:]) > 2
    assert out.metadata[0]["image"] == {"image": "given", "height": 32, "width": 32, "resize": "crop"}


@pytest.mark.parametrize("given", [{"num_frames": 1}, {"aspect": "9:16"}])
def test_other_shapes(pipe, given):
    out = pipe(PROMPT, seed=7, **given)
    meta = out.metadata[0]
    assert out.frames[0].shape == (meta["num_frames"], meta["height"], meta["width"], 3)


def test_output_types(pipe, plain):
    as_floats = pipe(PROMPT, seed=7, output_type="np").frames[0]
    assert as_floats.dtype == np.float32
    np.testing.assert_allclose(as_floats * 255, plain.frames[0], atol=1e-3)
    latents = pipe(PROMPT, seed=7, output_type="latent")
    assert latents.frames[0].shape == (2, 4, 4, 4)
    with pytest.raises(BadInput, match="no frames"):
        latents.save("a.mp4")
    with pytest.raises(BadInput, match="output_type"):
        pipe(PROMPT, output_type="jpeg")


def test_saving(pipe, plain, tmp_path):
    assert plain.save(tmp_path / "a.mp4") == [tmp_path / "a.mp4"]
    two = pipe([PROMPT, "a blue star", PROMPT], seed=7)
    assert [p.name for p in two.save(tmp_path / "b.gif")] == ["b_0.gif", "b_1.gif", "b_2.gif"]


def test_a_callback_can_replace_latents_and_stop(pipe, plain):
    def freeze(p, step, t, given):
        return {"latents": np.zeros_like(given["latents"])}

    assert worst(pipe(PROMPT, seed=7, callback_on_step_end=freeze).frames[0], plain.frames[0]) > 2

    def stop(p, step, t, given):
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(Unfinished, match="step 1/3") as error:
        pipe(PROMPT, seed=7, callback_on_step_end=stop)
    assert error.value.exit_code == 130
    assert error.value.latents.shape == (1, 2, 4, 4, 4)


def test_wrong_arguments_are_told(pipe):
    with pytest.raises(BadInput, match="latents must be float32"):
        pipe(PROMPT, latents=np.zeros((1, 2, 4, 4, 3), np.float32))
    with pytest.raises(BadInput, match="unknown argument stepz"):
        pipe(PROMPT, stepz=3)
    with pytest.raises(BadInput, match="dtype"):
        VideoPipeline(pipe.model, dtype="float8")


def test_broken_weights_name_the_step_and_the_part(tiny):
    broken = jax.tree.map(np.copy, tiny.params)
    broken["dit"]["head"]["kernel"][0, 0] = np.nan
    with pytest.raises(NonFinite, match=r"step 1/3.*weights of dit"):
        VideoPipeline(replace(tiny, params=broken))(PROMPT, seed=7)


@pytest.mark.parametrize("at, value", [("post_quant_conv", np.nan), ("decoder/conv_out", np.inf)])
def test_latents_survive_a_failed_decode(tiny, plain, at, value):
    broken = jax.tree.map(np.copy, tiny.params)
    functools.reduce(operator.getitem, at.split("/"), broken["vae"])["bias"][:] = value
    with pytest.raises(Unfinished, match="weights of vae") as error:
        VideoPipeline(replace(tiny, params=broken))(PROMPT, seed=7)
    assert error.value.exit_code == NonFinite.exit_code
    np.testing.assert_allclose(error.value.latents[0], plain.clips[0].latents, atol=1e-5)


def test_infinity_is_not_white_in_a_clip_that_is_decoded_in_pieces(pipe, tiny):
    broken = jax.tree.map(np.copy, tiny.params["vae"])
    broken["decoder"]["conv_out"]["bias"][:] = np.inf
    with pytest.raises(NonFinite, match="from frame 0 on"):
        list(decode_frames(pipe.programs, broken, Strip(np.zeros((3, 4, 4, 4), np.float32))))


def test_a_long_clip_is_decoded_in_pieces(pipe, monkeypatch):
    from dit_video.generate import pipeline

    whole = pipe(PROMPT, seed=7, num_frames=9).frames[0]
    monkeypatch.setattr(pipeline, "STREAM_FROM", 3)
    assert worst(pipe(PROMPT, seed=7, num_frames=9).frames[0], whole) <= 1


def test_how_a_clip_is_decoded_is_planned_once(pipe, monkeypatch):
    """Memory that goes after the request was made does not make one part of a call plan otherwise than another."""
    for memory, whole in ((None, True), (10**12, True), (1000, False)):
        request = resolve(pipe.model, PROMPT, seed=7, memory=memory)
        monkeypatch.setattr("dit_video.generate.pipeline.free_memory", lambda device: pytest.fail("it is read again"))
        assert pipe.whole(request) == whole
    with pytest.raises(BadInput, match="0 are free"):
        pipe.film(request)


@pytest.fixture
def large(tiny, monkeypatch):
    """Makes a pipeline whose parts come and go as those of large models do, with room for all or for either the text
    encoder or the denoiser; `order`: (part, what is there when it comes)."""
    from dit_video.generate import held

    def make(model=tiny, room=True):
        monkeypatch.setattr(held, "LARGE", 1)
        pipe, order = VideoPipeline(model), []
        put, weights = pipe.params.put, pipe.params
        weights.put = lambda part: order.append((part, sorted(weights.placed))) or put(part)
        sizes = weights.bytes
        most = sum(sizes.values()) if room else max(sizes["text"], sizes["dit"])
        weights.free = lambda: most - sum(sizes[part] for part in weights.placed)
        return pipe, order

    return make


def test_a_large_text_encoder_goes_before_the_denoiser_comes(large, plain):
    pipe, order = large()
    for _ in range(2):  # what was encoded is kept
        assert worst(pipe(PROMPT, seed=7).frames[0], plain.frames[0]) == 0
        assert sorted(pipe.params.placed) == ["dit", "vae"]
    assert order == [("text", []), ("vae", []), ("dit", ["vae"])]
    assert pipe.seconds(Progress(False))["load"] > 0


def test_a_call_reads_all_its_prompts_before_the_denoiser_comes(large, pipe, monkeypatch):
    """Also where its clips are made one after the other, and as the command line makes them."""
    monkeypatch.setattr("dit_video.generate.pipeline.STREAM_FROM", 1)
    prompts = [PROMPT, "a blue star", "a green square"]
    tight, order = large(room=False)
    made = tight(prompts, seed=7, output_type="latent").frames
    request = resolve(tight.model, prompts, seed=7)
    for clip in range(3):
        np.testing.assert_array_equal(tight.film(request, clip, decodes=False).latents, made[clip])
    assert order == [("text", []), ("dit", [])]
    # one that comes later finds room, and the clip is that of a pipeline which has made nothing else
    again = tight("a red ring", seed=7, output_type="latent").frames[0]
    assert order[2:] == [("text", []), ("dit", [])]
    np.testing.assert_array_equal(again, pipe("a red ring", seed=7, output_type="latent").frames[0])


def test_no_more_texts_are_kept_and_read_in_one_go_than_there_is_room_for(tiny, monkeypatch):
    monkeypatch.setattr("dit_video.generate.texts.KEPT", 3)
    pipe, quiet = VideoPipeline(tiny), Progress(False)
    pipe.texts.read(["a", ""], quiet, [["b", ""], ["c", ""], ["d", ""]])
    assert [text for text, _ in pipe.texts.rows] == ["a", "", "b"]
    text = pipe.texts.read(["c", "a", ""], quiet)
    assert [text for text, _ in pipe.texts.rows] == ["a", "", "c"]
    alone = VideoPipeline(tiny).texts.read(["c"], quiet)
    np.testing.assert_array_equal(text.rows[:1], alone.rows)


def test_weights_are_hashed_before_the_first_step(tiny, monkeypatch):
    """It takes long with large models, and there is nothing to lose yet."""
    order = []
    monkeypatch.setattr("dit_video.generate.pipeline.digest_of", lambda model: order.append("hash") or "0" * 12)
    note = lambda p, step, t, now: order.append(step)  # noqa: E731
    VideoPipeline(tiny)(PROMPT, seed=7, callback_on_step_end=note)
    VideoPipeline(tiny).film(resolve(tiny, PROMPT, seed=7), callback=note)
    assert order == ["hash", 0, 1, 2] * 2


def test_what_stops_the_measuring_of_a_cache_carries_no_latents(tiny, monkeypatch):
    """They are of no clip that was asked for. And it is measured with plain guidance, whatever the clip's is."""
    pipe, asked = VideoPipeline(tiny), []

    def stop(request, **_):
        asked.append(request)
        raise Unfinished("interrupted at step 2/32", Interrupted, np.zeros((1, 2, 4, 4, 4), np.float32), request)

    monkeypatch.setattr(pipe, "run", stop)
    with pytest.raises(Interrupted, match="step 2/32"):
        calibrate(pipe, [resolve(tiny, PROMPT, seed=7, cfg_zero_star=True, guidance_rescale=0.5)])
    assert asked[0].guidance == Guidance()


def test_a_cache_is_measured_once_at_the_size_that_is_asked_for(tiny, monkeypatch, tmp_path, caplog):
    """Another pipeline, as of another process, finds what was kept; a broken file is measured again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []

    def calibrate(pipe, requests):
        measured.extend(requests)
        return Curve((1.0, 0.5, 0.1), (0.0, 0.1, 0.3), (0.0, 0.0, 0.0))

    monkeypatch.setattr("dit_video.generate.calibrate.calibrate", calibrate)
    asked = {"num_frames": 9, "height": 32, "width": 48, "seed": 3, "cache": "fast", "guidance_scale": 3.0}
    curves = [VideoPipeline(tiny).curve(resolve(tiny, text, **asked)) for text in (PROMPT, "a blue star")]
    assert curves[0] == curves[1] and curves[0].change == (0.0, 0.1, 0.3)
    (one,) = measured
    assert (one.num_frames, one.height, one.width, one.guidance_scale, one.prompts) == (9, 32, 48, 3.0, (PROMPT,))
    (file,) = tmp_path.rglob("*.json")
    assert "costs 32 steps" in caplog.text and str(file) in caplog.text
    pipe = VideoPipeline(tiny)
    for other in ({"height": 48}, {"guidance_scale": 1.0}, {"num_frames": 41, "long": "window", "window": 4}):
        pipe.curve(resolve(tiny, PROMPT, **(asked | other)))
    assert (len(measured), measured[-1].num_frames, measured[-1].plan.mode) == (4, 13, "single")
    file.write_text("[[1.0, 0")
    pipe.curve(resolve(tiny, PROMPT, **asked))
    assert len(measured) == 5 and pipe.curve(resolve(tiny, PROMPT, **asked)) == curves[0]


def test_many_clips_are_made_in_equal_parts(pipe, plain, monkeypatch):
    from dit_video.generate import pipeline

    monkeypatch.setattr(pipeline, "AT_ONCE", 3)
    out = pipe([PROMPT] * 5, seed=7, output_type="latent")
    assert [meta["clip"] for meta in out.metadata] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(out.frames[0], plain.clips[0].latents, atol=1e-4)
    assert np.abs(out.frames[2] - out.frames[0]).max() > 0.1


@pytest.mark.parametrize("error, code", [(MemoryError("no room"), 4), (ValueError("mine"), 1)])
def test_clips_already_made_outlive_an_error_in_a_later_part(pipe, plain, monkeypatch, error, code):
    monkeypatch.setattr("dit_video.generate.pipeline.AT_ONCE", 1)
    calls = []

    def callback(*_):
        calls.append(1)
        if len(calls) == 4:  # of three steps each
            raise error

    with pytest.raises(Unfinished) as told:
        pipe(["a red circle", "a blue square"], seed=1, num_inference_steps=3, callback_on_step_end=callback)
    assert told.value.exit_code == code
    (kept,) = told.value.clips
    assert kept.metadata["prompt"] == "a red circle" and kept.frames.shape[0] > 0


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (fake) devices")
def test_a_mesh_gives_the_same_clip(tiny, plain):
    out = VideoPipeline(tiny, mesh=MeshShape(data=2, fsdp=2, tensor=2))(PROMPT, seed=7)
    assert worst(out.frames[0], plain.frames[0]) <= 1


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (fake) devices")
def test_on_a_mesh_a_device_needs_room_for_its_share_of_the_weights(tiny):
    """Or a model that is larger than a device is refused by the very mesh that it is split over."""
    pipe = VideoPipeline(tiny, mesh=make_mesh(MeshShape(fsdp=8)))
    held = {part: pipe.params[part] for part in pipe.params}
    for part, weights in held.items():
        share = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(weights))
        assert numbers(tiny.params[part], pipe._shardings(part)) == share
    assert numbers(tiny.params["dit"], pipe._shardings("dit")) < 0.5 * numbers(tiny.params["dit"])
    assert pipe.params.bytes["dit"] == 4 * numbers(tiny.params["dit"]), "what a CPU calls devices has one memory"
