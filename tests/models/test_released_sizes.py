"""The released sizes, without their weights: every tensor of the reference, name by name and shape by shape.

The lists are those of the reference on torch's meta device, stored by tools/make_goldens.py.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.errors import BadInput
from dit_video.core.types import Time
from dit_video.weights import names_dit, names_image, names_text, names_vae
from dit_video.weights.model import abstract, shapes
from dit_video.weights.names import check

ROOT = Path(__file__).parents[2]
TREES = {name: json.loads(str(tree)) for name, tree in np.load(ROOT / "tests" / "goldens" / "trees.npz").items()}
PARAMETERS = {  # in billions, as the releases say
    "t2v_1.3b": 1.42, "t2v_14b": 14.29, "i2v_14b": 16.40, "ti2v_5b": 5.00, "umt5_xxl": 5.68, "clip_vit_h": 0.63,
}  # fmt: skip


def family(name: str):
    """(config from the reference's, its table, config to the reference's)"""
    if name.startswith("vae"):
        return names_vae.from_diffusers, lambda _: names_vae.VAE_NAMES, names_vae.to_diffusers
    if name == "umt5_xxl":
        return names_text.from_transformers, lambda _: names_text.TEXT, names_text.to_transformers
    if name == "clip_vit_h":
        return names_image.from_transformers, names_image.image_table, names_image.to_transformers
    return names_dit.from_diffusers, names_dit.dit_table, names_dit.to_diffusers


@pytest.mark.parametrize("name", TREES)
def test_every_tensor_has_its_place(name):
    config, theirs = TREES[name]
    there, table, back = family(name)
    cfg = there(config)
    found = {tensor: tuple(shape) for tensor, shape in theirs.items()}
    assert {tensor for tensor, _ in check(table(cfg), found, shapes(cfg), name)} == set(found)
    loading = ("_class_name", "architectures", "dropout_rate")  # what says nothing about the structure
    written = {key: value for key, value in back(cfg).items() if key in config and key not in loading}
    assert {key: config[key] for key in written} == written
    count = sum(np.prod(shape, dtype=float) for shape in found.values()) / 1e9
    assert abs(count - PARAMETERS.get(name, count)) < 0.006


def test_what_the_released_sizes_make():
    """Traced at real sizes, without a number being computed."""

    def trace(name, call, *args):
        graph, state = nnx.split(abstract(family(name)[0](TREES[name][0])))
        return jax.eval_shape(lambda w, *args: call(nnx.merge(graph, w), *args), state, *args)

    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)  # noqa: E731
    text = trace("umt5_xxl", lambda m, *a: m(*a), shape(1, 512, dtype=jnp.int32), shape(1, dtype=jnp.int32))
    assert text.rows.shape == (1, 512, 4096)
    tokens = trace("clip_vit_h", lambda m, a: m(a), shape(2, 224, 224, 3))
    assert tokens.shape == (2, 257, 1280)
    context = trace("flf2v_14b", lambda m, text, two: m.context(text, two.reshape(1, 514, 1280)), text, tokens)
    assert context.image_keys.shape == (40, 1, 514, 40, 128)
    velocity = trace("flf2v_14b", lambda m, *a: m(*a), shape(1, 21, 90, 160, 36), Time(shape(1, 1)), context)
    assert velocity.shape == (1, 21, 90, 160, 16)
    latents = trace("vae_2.2", lambda m, video: m.encode(video)[0], shape(1, 121, 704, 1280, 3))
    assert latents.shape == (1, 31, 44, 80, 48)
    assert trace("vae_2.2", lambda m, z: m.decode(z), latents).shape == (1, 121, 704, 1280, 3)


def test_older_files_of_the_image_encoder():
    """With a prefix, and with numbered positions."""
    config, theirs = TREES["clip_vit_h"]
    cfg = names_image.from_transformers(config)
    found = {f"vision_model.{tensor}": tuple(shape) for tensor, shape in theirs.items()}
    found["vision_model.embeddings.position_ids"] = (1, 257)
    assert len(check(names_image.image_table(cfg), found, shapes(cfg))) == len(theirs)


def test_an_image_encoder_with_a_projection():
    """The class that the released folders of image-to-video name: one tensor more, which nothing asks for."""
    config, theirs = TREES["clip_vit_h"]
    cfg = names_image.from_transformers({**config, "architectures": ["CLIPVisionModelWithProjection"]})
    found = {f"vision_model.{tensor}": tuple(shape) for tensor, shape in theirs.items()}
    found["visual_projection.weight"] = (1024, 1280)
    assert len(check(names_image.image_table(cfg), found, shapes(cfg))) == len(theirs)


def test_other_structures_are_refused():
    config, _ = TREES["i2v_14b"]
    for wrong in ({"added_kv_proj_dim": 4096}, {"added_kv_proj_dim": None}, {"qk_norm": "layer_norm"}):
        with pytest.raises(BadInput, match="is not read"):
            names_dit.from_diffusers({**config, **wrong})
    with pytest.raises(BadInput, match="siglip"):
        names_image.from_transformers({**TREES["clip_vit_h"][0], "model_type": "siglip_vision_model"})


@pytest.mark.parity
def test_the_lists_are_those_of_the_reference():
    for package in ("torch", "diffusers", "transformers"):
        pytest.importorskip(package)
    tool = runpy.run_path(str(ROOT / "tools" / "make_goldens.py"))
    assert set(tool["TREES"]) == set(TREES)
    for name, (kind, arguments) in tool["TREES"].items():
        assert json.loads(json.dumps(tool["tree"](kind, arguments)))[1] == TREES[name][1], name


COMPILE = """
import sys, time
import jax, jax.numpy as jnp
from flax import nnx
from dit_video.core.types import Text, Time
from dit_video.models.dit import DiT, DiTConfig

cfg = DiTConfig(heads=40, depth=int(sys.argv[1]), ffn_dim=13824, dtype="bfloat16", attention="chunked")
graph, weights = nnx.split(nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0))))
shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
inputs = (
    weights, shape(1, 21, 60, 104, 16), Time(shape(1, 1)), Text(shape(1, 512, 4096), shape(1, dtype=jnp.int32))
)
jax.jit(lambda x: x + 1)(1.0)  # what starting costs is not compiling
start = time.process_time()
jax.jit(lambda w, *args: nnx.merge(graph, w)(*args)).lower(*inputs).compile()
print(time.process_time() - start)
"""


@pytest.mark.slow
def test_the_14b_denoiser_compiles_in_time_that_depth_does_not_know():
    """Abstract weights, 480 x 832 x 81: under 60 s of CPU time, whoever else is at work, and for 40 layers as for 4."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    seconds = {depth: [] for depth in (4, 40)}
    for depth in (4, 40, 40, 4):  # the best of two each: what disturbs only adds
        run = subprocess.run(
            [sys.executable, "-c", COMPILE, str(depth)], capture_output=True, text=True, env=environment, timeout=600
        )
        assert run.returncode == 0, run.stderr
        seconds[depth].append(float(run.stdout))
    print("seconds of CPU time by depth:", seconds)
    assert min(seconds[40]) < 60
    assert abs(min(seconds[40]) / min(seconds[4]) - 1) < 0.2
