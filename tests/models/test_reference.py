"""Every model against its reference: with stored goldens anywhere, and live, with fresh random configs, inputs and
weights, where the references are installed. See tools/make_goldens.py."""

import json
import runpy
import secrets
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.types import Text, Time
from dit_video.diffusion.experts import by_time
from dit_video.diffusion.guidance import guided, in_one_batch
from dit_video.diffusion.known import hold, known
from dit_video.diffusion.sample import start, step_function
from dit_video.diffusion.schedule import Schedule
from dit_video.diffusion.solvers import UniPC
from dit_video.models.dit import Control, DiT
from dit_video.models.given import control_latents, kept_and_made, with_mask
from dit_video.models.image_encoder import ImageEncoder, prepare
from dit_video.models.text import TextEncoder
from dit_video.models.vae import VAE
from dit_video.weights import names_dit, names_image, names_text, names_vae
from dit_video.weights.names import check, flatten, to_foreign, to_ours, unflatten

TOOLS = Path(__file__).parents[2] / "tools"
TOOL = {
    n: v for name in ("golden_stages", "make_goldens") for n, v in runpy.run_path(str(TOOLS / f"{name}.py")).items()
}
STAGES, GOLDENS, draw = TOOL["STAGES"], TOOL["GOLDENS"], TOOL["draw"]

FAMILIES = {  # module, its table, its config there and back
    "text": (TextEncoder, lambda _: names_text.TEXT, names_text.from_transformers, names_text.to_transformers),
    "image": (ImageEncoder, names_image.image_table, names_image.from_transformers, names_image.to_transformers),
    "vae": (VAE, lambda _: names_vae.VAE_NAMES, names_vae.from_diffusers, names_vae.to_diffusers),
    "dit": (DiT, names_dit.dit_table, names_dit.from_diffusers, names_dit.to_diffusers),
}


def family(stage: str) -> str:
    return stage.partition("_")[0] if stage.partition("_")[0] in FAMILIES else "dit"


def parts(stage: str, config: dict) -> list[tuple[str, str, dict]]:
    """(prefix of names, family, config) of every model of a stage."""
    if stage in ("picture", "given"):
        return []
    if not stage.startswith("pipeline"):
        return [("", family(stage), config)]
    both = [("transformer_2.", "dit", config["transformer"])] if config["boundary"] else []
    image = [("image_encoder.", "image", config["image_encoder"])] if config["image_encoder"] else []
    return [("transformer.", "dit", config["transformer"]), *both, ("vae.", "vae", config["vae"]), *image]


def abstract(kind: str, config: dict, dtype: str = "float32"):
    module, table, there, _ = FAMILIES[kind]
    cfg = replace(there(config), dtype=dtype)
    graph, state = nnx.split(nnx.eval_shape(lambda: module(cfg, rngs=nnx.Rngs(0))))
    shapes = {path: leaf.shape for path, leaf in flatten(nnx.to_pure_dict(state)).items()}
    return cfg, graph, state, shapes, table(cfg)


def drawn(table, shapes, seed: int, prefix: str = "") -> dict:
    """The tensors that the reference has."""
    empty = to_foreign(table, {path: np.zeros(shape, np.float32) for path, shape in shapes.items()})
    return {name: draw(prefix + name, tensor.shape, seed) for name, tensor in empty.items()}


def build(kind: str, config: dict, seed: int, dtype: str = "float32", prefix: str = ""):
    """The module's graph, and its state with the weights that the reference has."""
    _, graph, state, shapes, table = abstract(kind, config, dtype)
    ours = to_ours(table, drawn(table, shapes, seed, prefix), shapes)
    nnx.replace_by_pure_dict(state, unflatten({path: jnp.asarray(array) for path, array in ours.items()}))
    return graph, state


def model(stage: str, config: dict, seed: int, dtype: str):
    """A function (call, arguments...) -> outputs of the module with the weights that the reference has."""
    graph, state = build(family(stage), config, seed, dtype)
    return lambda call, *args: jax.jit(lambda s, *a: call(nnx.merge(graph, s), *a))(
        state, *jax.tree.map(jnp.asarray, args)
    )


def text(stage, config, seed, dtype, inputs):
    run = model(stage, config, seed, dtype)
    return {"rows": run(lambda m, ids, length: m(ids, length).rows, inputs["ids"], inputs["length"])}


def image(stage, config, seed, dtype, inputs):
    run = model(stage, config, seed, dtype)
    return {"tokens": run(lambda m, pictures: m(pictures), inputs["pictures"])}


def vae(stage, config, seed, dtype, inputs):
    run = model(stage, config, seed, dtype)
    outputs = {}
    for n in TOOL["FRAMES"]:
        outputs[f"mean_{n}"], outputs[f"logvar_{n}"] = run(lambda m, v: m.encode(v), inputs[f"video_{n}"])
        outputs[f"video_{n}"] = run(lambda m, z: m.decode(z), inputs[f"latents_{n}"])
    return outputs


def dit(stage, config, seed, dtype, inputs):
    run = model(stage, config, seed, dtype)
    values, index = inputs["t"][:, None], None
    if "known" in inputs:
        values, index = np.concatenate([values, 0 * values], 1), inputs["known"].astype(np.int32)
    control = Control(inputs["control"], inputs["scale"]) if "control" in inputs else None
    arguments = (inputs["x"], Time(values, index), Text(inputs["rows"], inputs["length"]), inputs.get("image"), control)
    call = lambda m, x, time, text, image, control: m(x, time, text, image=image, control=control)  # noqa: E731
    return {"velocity": run(call, *arguments)}


def picture(stage, config, seed, dtype, inputs):
    return {name: prepare(array, config["size"]) for name, array in inputs.items()}


def given(stage, config, seed, dtype, inputs):
    encode = lambda video: (TOOL["subsampled"](video) - 1) / 3  # noqa: E731
    video, mask, pictures = (jnp.asarray(inputs[name]) for name in ("video", "mask", "pictures"))
    frames = np.arange(video.shape[1])

    def ends(*which):
        clip = jnp.zeros_like(video)
        for frame, picture in zip(which, pictures, strict=False):
            clip = clip.at[0, frame].set(picture)
        return with_mask(encode(clip), jnp.asarray(np.isin(frames, which))[None])

    both = [encode(half) for half in kept_and_made(video, mask)]
    references = jnp.concatenate([encode(picture[None, None]) for picture in pictures], 1)
    return {
        "first": ends(0),
        "both": ends(0, frames[-1]),
        "control": control_latents(*both, mask),
        "with_references": control_latents(*both, mask, references),
    }


def pipeline(stage, config, seed, dtype, inputs):
    """A whole run, composed of what a run is made of: no pipeline of ours stands between the models and the frames."""
    states = {prefix[:-1]: build(kind, part, seed, dtype, prefix) for prefix, kind, part in parts(stage, config)}
    latents = jnp.asarray(inputs["latents"])
    pixels = {name: inputs[name] / np.float32(127.5) - 1 for name in ("pictures", "video")}
    text = Text(jnp.asarray(inputs["rows"]), jnp.asarray(inputs["length"]))
    graphs = {name: graph for name, (graph, _) in states.items()}
    frames = config["frames"]

    def merged(weights, name):
        return nnx.merge(graphs[name], weights[name])

    def encode(weights, video):
        vae = merged(weights, "vae")
        return vae.normalize(vae.encode(video)[0])

    def beside(weights):
        """(channels after the noise's, tokens of the image encoder, control, what is known)"""
        first, last = (jnp.asarray(picture)[None, None] for picture in pixels["pictures"])
        tokens, flf2v = None, config["transformer"]["pos_embed_seq_len"]
        if config["image_encoder"]:
            size, pictures = config["image_encoder"]["image_size"], inputs["pictures"][: 2 if flf2v else 1]
            tokens = merged(weights, "image_encoder")(jnp.stack([prepare(p, size) for p in pictures]))
            tokens = jnp.concatenate([tokens.reshape(1, -1, tokens.shape[-1])] * 2)  # with the prompt and without it
        if config["references"]:
            mask = jnp.asarray(inputs["mask"] > 127, jnp.float32)[None]
            halves = [encode(weights, half) for half in kept_and_made(jnp.asarray(pixels["video"])[None], mask)]
            references = jnp.concatenate([encode(weights, picture) for picture in (first, last)], 1)
            return None, tokens, control_latents(*halves, mask, references), None
        if config["pipeline"] == "WanPipeline":
            return None, tokens, None, None
        if config["expand_timesteps"]:
            return None, tokens, None, jnp.broadcast_to(encode(weights, first), latents.shape)
        grey = jnp.zeros((1, frames - 2, *first.shape[2:]))
        clip = jnp.concatenate([first, grey, last if flf2v else 0 * last], 1)
        ends = jnp.zeros((1, frames), bool).at[:, 0].set(True).at[:, -1].set(bool(flf2v))
        return with_mask(encode(weights, clip), ends), tokens, None, None

    def start_of(weights):
        channels, tokens, control, clean = beside(weights)
        experts = [name for name in graphs if name.startswith("transformer")]
        return {name: merged(weights, name).context(text, tokens) for name in experts}, channels, control, clean

    weights = {name: state for name, (_, state) in states.items()}
    contexts, channels, control, clean = jax.jit(start_of)(weights)
    first_slot = jnp.zeros(latents.shape[:4], bool).at[:, 0].set(True)
    if control is not None:
        control = Control(jnp.concatenate([control, control]), jnp.ones(len(config["transformer"]["vace_layers"])))

    def step(weights, carry, now, then, contexts, channels, control, clean):
        def expert(name, scale):
            def velocity(x, t, memory):
                if channels is not None:
                    x = jnp.concatenate([x, jnp.concatenate([channels] * len(x))], -1)
                return merged(weights, name)(x, t, contexts[name], control=control), memory

            pair = in_one_batch(velocity)
            return guided(pair if clean is None else known(pair, clean, first_slot), scale)

        field = expert("transformer", config["guidance"])
        if config["boundary"]:
            field = by_time(field, expert("transformer_2", config["guidance_2"]), config["boundary"])
        return step_function(field, UniPC())(carry, now, then)[0]

    step, carry = jax.jit(step), start(latents, UniPC())
    for now, then in Schedule(config["steps"], config["flow_shift"]).pairs():
        carry = step(weights, carry, now, then, contexts, channels, control, clean)
    x = carry.x[:, config["references"] :] if clean is None else hold(carry.x, clean, first_slot)

    def decode(weights, x):
        vae = merged(weights, "vae")
        return vae.decode(vae.denormalize(x)) / 2 + 0.5

    return {"frames": jax.jit(decode)(weights, x)}


OURS = {"text": text, "image": image, "vae": vae, "dit": dit, "picture": picture, "given": given, "pipeline": pipeline}


def ours(stage, config, seed, inputs, dtype="float32"):
    return OURS[stage if stage in OURS else "pipeline" if stage.startswith("pipeline") else family(stage)](
        stage, config, seed, dtype, inputs
    )


def compare(got: dict, expected: dict, limit: float, what: str):
    assert set(got) == set(expected)
    for name, reference in expected.items():
        mine = np.asarray(got[name], np.float32)
        assert mine.shape == reference.shape, f"{what}: {name}"
        error = np.linalg.norm(mine - reference) / np.linalg.norm(reference)
        assert error <= limit, f"{what}: {name} is {error:.1e} off"
        if name == "frames":
            assert np.abs(mine - reference).max() <= 2e-3, what
            assert np.mean((reference > 0) & (reference < 1)) > 0.5, f"{what}: cut pixels hide differences"


def stages(*quick: str) -> list:
    """All of them, where whole pipelines are slow but for those that are named."""
    slow = [name for name in STAGES if name.startswith("pipeline") and name not in quick]
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in STAGES]


@pytest.mark.parametrize("stage", stages("pipeline_i2v_a14b"))
def test_the_numbers_of_the_golden(stage):
    stored = dict(np.load(GOLDENS / f"{stage}.npz"))
    seed, config = int(stored.pop("seed")), json.loads(str(stored.pop("config")))
    _, inputs = TOOL["case"](STAGES[stage], seed, config)
    compare(ours(stage, config, seed, inputs), stored, 1e-4, stage)


@pytest.mark.parametrize(
    "stage", [name for name in STAGES if name not in ("picture", "given") and not name.startswith("pipeline")]
)
def test_weights_go_there_and_back(stage):
    """Bit by bit, and the config too."""
    config = json.loads(str(np.load(GOLDENS / f"{stage}.npz")["config"]))
    for _, kind, part in parts(stage, config):
        cfg, _, _, shapes, table = abstract(kind, part)
        foreign = drawn(table, shapes, 5)
        back = to_foreign(table, to_ours(table, foreign, shapes))
        assert all(np.array_equal(back[name], tensor) for name, tensor in foreign.items())
        config_back = FAMILIES[kind][3](cfg)
        assert {key: config_back[key] for key in part} == part


@pytest.mark.parametrize("stage", ["text", "image", "vae_residual", "i2v", "vace"])
def test_bfloat16_is_near(stage):
    stored = dict(np.load(GOLDENS / f"{stage}.npz"))
    seed, config = int(stored.pop("seed")), json.loads(str(stored.pop("config")))
    _, inputs = TOOL["case"](STAGES[stage], seed, config)
    got = ours(stage, config, seed, inputs, "bfloat16")
    compare(got, stored, 2e-2, stage)
    with pytest.raises(AssertionError, match="off"):  # it was computed in bfloat16
        compare(got, stored, 1e-4, stage)


@pytest.mark.parity
@pytest.mark.parametrize("stage", stages())
@pytest.mark.parametrize("seed", [1001, "fresh"])
def test_the_numbers_of_the_reference(stage, seed):
    """Names, shapes, config and numbers of a case that was never seen before."""
    for package in ("torch", "diffusers", "transformers"):
        pytest.importorskip(package)
    seed = secrets.randbelow(2**31) if seed == "fresh" else seed
    config, inputs = TOOL["case"](STAGES[stage], seed)
    what = f"{stage} of seed {seed}"
    module, expected = TOOL["refer"](STAGES[stage], seed, config, inputs)
    if module is not None:
        theirs = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        for prefix, kind, part in parts(stage, config):
            _, _, _, shapes, table = abstract(kind, part)
            mine = {name.removeprefix(prefix): theirs.pop(name) for name in [*theirs] if name.startswith(prefix)}
            check(table, mine, shapes, what)
        assert not theirs
    compare(ours(stage, config, seed, inputs), expected, 1e-4, what)
