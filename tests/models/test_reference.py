"""Every model against its reference: with stored goldens anywhere, and live, with fresh random configs, inputs and
weights, where the references are installed. See tools/make_goldens.py."""

import json
import runpy
import secrets
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dit_video.core.types import Text, Time
from dit_video.diffusion.sample import iterate, start, step_function
from dit_video.diffusion.schedule import Schedule
from dit_video.diffusion.solvers import solver_named
from dit_video.generate.pipeline import VideoPipeline
from dit_video.generate.request import native_shift, resolve
from dit_video.models.dit import Control, DiT, DiTConfig
from dit_video.models.given import control_latents, kept_and_made, with_mask
from dit_video.models.image_encoder import ImageEncoder, prepare
from dit_video.models.text import TextConfig, TextEncoder
from dit_video.models.tokenizer import Tokens
from dit_video.models.vae import VAE, VAEConfig
from dit_video.weights import names_dit, names_image, names_text, names_vae
from dit_video.weights.lora import merge, read_lora
from dit_video.weights.model import Defaults, Model
from dit_video.weights.names import check, flatten, to_foreign, to_ours, unflatten
from dit_video.weights.released import with_defaults

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


PARTS = {  # of a pipeline: ours, prefix of its names, family
    "dit": ("transformer.", "dit"),
    "dit_2": ("transformer_2.", "dit"),
    "vae": ("vae.", "vae"),
    "text": ("text_encoder.", "text"),
    "image": ("image_encoder.", "image"),
}


def parts(stage: str, config: dict) -> dict[str, tuple[str, str, dict]]:
    """{part: (prefix of names, family, config)} of every model of a stage."""
    if stage in ("picture", "given", "scheduler"):
        return {}
    if not stage.startswith("pipeline"):
        return {family(stage): ("", family(stage), config)}
    of = {part: config["transformer" if kind == "dit" else prefix[:-1]] for part, (prefix, kind) in PARTS.items()}
    return {part: (*PARTS[part], of[part]) for part in PARTS if of[part] and (part != "dit_2" or config["boundary"])}


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


def denoiser_arguments(inputs):
    """What the denoiser is called with, by name."""
    values, index = inputs["t"][:, None], None
    if "known" in inputs:
        values, index = np.concatenate([values, 0 * values], 1), inputs["known"].astype(np.int32)
    named = {"x": inputs["x"], "time": Time(values, index), "text": Text(inputs["rows"], inputs["length"])}
    if "image" in inputs:
        named["image"] = inputs["image"]
    if "control" in inputs:
        named["control"] = Control(inputs["control"], inputs["scale"])
    return jax.tree.map(jnp.asarray, named)


def dit(stage, config, seed, dtype, inputs):
    run = model(stage, config, seed, dtype)
    return {"velocity": run(lambda m, arguments: m(**arguments), denoiser_arguments(inputs))}


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


def lora(stage, config, seed, dtype, inputs):
    """The denoiser with the adapter of a file merged into it."""
    cfg, graph, state, shapes, table = abstract("dit", config, dtype)
    tensors = {name: inputs[name] for name in inputs if name.startswith("transformer.")}
    with TemporaryDirectory() as folder:
        save_file(tensors, f"{folder}/lora.safetensors")
        found = read_lora(f"{folder}/lora.safetensors", {"dit": cfg})["dit"]
        merged = merge(unflatten(to_ours(table, drawn(table, shapes, seed), shapes)), found, cfg)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, merged))
    run = jax.jit(lambda state, arguments: nnx.merge(graph, state)(**arguments))
    return {"velocity": run(state, denoiser_arguments(inputs))}


def scheduler(stage, config, seed, dtype, inputs):
    """The solver and the shift that a model takes from its scheduler_config.json."""
    outputs = {}
    for name in ("unipc", "euler"):
        model = with_defaults(Model(DiTConfig(), VAEConfig(), TextConfig(), {}, None, config[name]))
        solver = solver_named(model.defaults.solver)
        schedule = Schedule(config["steps"], native_shift(model), solver.schedule)
        step = jax.jit(step_function(lambda x, t, memory: (TOOL["bent"](x, t.values[0, 0], jnp.sin), memory), solver))
        path = [carry.x for _, carry in iterate(step, start(jnp.asarray(inputs["x"]), solver), schedule)]
        outputs |= {f"{name}_times": 1000 * schedule.instants().model[:-1], f"{name}_path": np.stack(path)}
    return outputs


class Ids:
    """A tokenizer of two texts, whose ids are known."""

    def __init__(self, **known):
        self.known = known

    def encode(self, texts, max_length=512):
        ids, length = zip(*(self.known[text] for text in texts), strict=True)
        return Tokens(np.stack(ids), np.stack(length), ("",) * len(texts))

    def decode(self, ids):
        return ""


def pipeline(stage, config, seed, dtype, inputs):
    """A whole run, from ids of prompts, pictures and starting noise to frames."""
    cfgs, params = {}, {}
    for part, (prefix, kind, mine) in parts(stage, config).items():
        cfgs[part], _, _, shapes, table = abstract(kind, mine)
        params[part] = unflatten(to_ours(table, drawn(table, shapes, seed, prefix), shapes))
    (height, width), told = config["size"], zip(inputs["ids"], inputs["length"], strict=True)
    settings = {"_class_name": "UniPCMultistepScheduler", "flow_shift": config["flow_shift"]}
    defaults = Defaults(height, width, config["frames"], config["frames"], conditions=("first",))
    pipe = VideoPipeline(
        Model(**cfgs, params=params, tokenizer=Ids(**dict(zip(("with", "without"), told, strict=True))),
              scheduler=settings, defaults=defaults, pipeline=config["pipeline"], boundary=config["boundary"],
              expand_timesteps=config["expand_timesteps"])
    )  # fmt: skip
    first, last = inputs["pictures"]
    asked = {"image": first} if config["pipeline"] == "WanImageToVideoPipeline" else {}
    asked |= {"last_image": last} if config["transformer"]["pos_embed_seq_len"] else {}
    asked |= {"reference": [first, last]} if config["references"] else {}
    request = resolve(pipe.model, "with", negative_prompt="without", height=height, width=width, seed=0,
                      num_frames=config["frames"], num_inference_steps=config["steps"],
                      guidance_scale=config["guidance"], guidance_scale_2=config["guidance_2"], **asked)  # fmt: skip
    if config["references"]:  # files of footage would be compressed
        request = replace(request, given=replace(request.given, video=inputs["video"], keep=inputs["mask"] < 128))
    latents = pipe.run(request, latents=inputs["latents"], output_type="latent").frames[0]
    video = jax.jit(pipe.programs.decode_piece)(pipe.params["vae"], latents[None], None)[0]
    return {"frames": video / 2 + 0.5}


OURS = {"text": text, "image": image, "vae": vae, "dit": dit, "picture": picture, "given": given, "lora": lora,
        "scheduler": scheduler, "pipeline": pipeline}  # fmt: skip


def ours(stage, config, seed, inputs, dtype="float32"):
    kind = stage.partition("_")[0]
    return OURS[kind if kind in OURS else "dit"](stage, config, seed, dtype, inputs)


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


@pytest.mark.parametrize("stage", stages("pipeline_i2v_a14b", "pipeline_flf2v", "pipeline_vace"))
def test_the_numbers_of_the_golden(stage):
    stored = dict(np.load(GOLDENS / f"{stage}.npz"))
    seed, config = int(stored.pop("seed")), json.loads(str(stored.pop("config")))
    _, inputs = TOOL["case"](STAGES[stage], seed, config)
    compare(ours(stage, config, seed, inputs), stored, 1e-4, stage)


@pytest.mark.parametrize(
    "stage",
    [n for n in STAGES if n not in ("picture", "given", "scheduler") and not n.startswith(("pipeline", "lora"))],
)
def test_weights_go_there_and_back(stage):
    """Bit by bit, and the config too."""
    config = json.loads(str(np.load(GOLDENS / f"{stage}.npz")["config"]))
    for _, kind, part in parts(stage, config).values():
        cfg, _, _, shapes, table = abstract(kind, part)
        foreign = drawn(table, shapes, 5)
        back = to_foreign(table, to_ours(table, foreign, shapes))
        assert all(np.array_equal(back[name], tensor) for name, tensor in foreign.items())
        config_back = FAMILIES[kind][3](cfg)
        assert {key: config_back[key] for key in part} == part


@pytest.mark.parametrize(
    "stage", [n for n in STAGES if n not in ("picture", "given", "scheduler") and not n.startswith("pipeline")]
)
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
    for package in ("torch", "diffusers", "transformers", "peft"):
        pytest.importorskip(package)
    seed = secrets.randbelow(2**31) if seed == "fresh" else seed
    config, inputs = TOOL["case"](STAGES[stage], seed)
    what = f"{stage} of seed {seed}"
    module, expected = TOOL["refer"](STAGES[stage], seed, config, inputs)
    if module is not None:
        theirs = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        for prefix, kind, part in parts(stage, config).values():
            _, _, _, shapes, table = abstract(kind, part)
            mine = {name.removeprefix(prefix): theirs.pop(name) for name in [*theirs] if name.startswith(prefix)}
            check(table, mine, shapes, what)
        assert not theirs
    compare(ours(stage, config, seed, inputs), expected, 1e-4, what)
