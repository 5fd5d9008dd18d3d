"""What the sides of a benchmark compute, each in a process of its own, which bench.py starts and tells what to do.

    python tools/sides.py '{"side": "diffusers", "case": "text", "config": {...}, ...}'

Every side draws the same weights, by the reference's names, and the same inputs. Some can compute it in several ways:
`calls` has one for each. When all is made, the process says which there are and what it runs on; then it answers every
line [what, way, file]: `first` compiles and keeps the result in the file, `peak` watches memory meanwhile, `time` does
nothing but the call. Whatever libraries print goes to stderr.
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from golden_stages import TEXT_ROWS, dit_reference, draw, first, normal, text_reference, vae_reference, weighted
from memory import Peak, device_peak

SEED = 0
Job = dict[str, Any]


class Side(NamedTuple):
    calls: dict[str, Callable[[], Any]]  # each waits for what it returns
    array: Callable[[Any], np.ndarray]  # of that, channels last
    device: str
    versions: dict[str, str]
    device_bytes: Callable[[], int | None]  # the most that was held on an accelerator; None on a CPU


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inputs(job: Job) -> list[np.ndarray]:
    """What a part of a model is given, in the order of its arguments. `size`: of a block frames, height and width in
    patches; of the text encoder tokens; of the VAE frames, height and width in pixels."""
    config, rng, size = job["config"], np.random.default_rng(SEED), job["size"]
    if job["case"] == "block":
        width = config["num_attention_heads"] * config["attention_head_dim"]
        shapes = ((1, int(np.prod(size)), width), (1, TEXT_ROWS, width), (1, 1, 6, width))
        return [normal(rng, *shape) for shape in shapes]
    if job["case"] == "text":
        return [rng.integers(3, config["vocab_size"], (1, *size)).astype(np.int32)]
    frames, height, width = size
    if job["case"] == "encode":
        return [rng.random((1, *size, 3), np.float32) * 2 - 1]
    slots, factor = 1 + (frames - 1) // config["scale_factor_temporal"], config["scale_factor_spatial"]
    return [normal(rng, 1, slots, height // factor, width // factor, config["z_dim"])]


# -- ours --------------------------------------------------------------------------------------------------------------


def ours(job: Job) -> Side:
    import jax

    from dit_video.cli.generate import prepare_jax

    prepare_jax("auto")
    if job["dtype"] == "float32" and jax.default_backend() == "gpu":  # no shorter products under that name
        jax.config.update("jax_default_matmul_precision", "highest")
    functions = OURS[job["case"]](job)
    calls = {way: lambda run=run: jax.block_until_ready(run()) for way, run in functions.items()}
    device, versions = jax.devices()[0].device_kind, {"jax": version("jax")}
    return Side(calls, lambda x: np.asarray(x, np.float32), device, versions, device_peak)


def our_part(job: Job) -> tuple[Any, Any, list[Any]]:
    """Config, weights and inputs of a part, on the device."""
    import jax.numpy as jnp

    cfg = our_config(job)
    return cfg, our_weights(cfg), [jnp.asarray(array) for array in inputs(job)]


def our_config(job: Job) -> Any:
    from dataclasses import replace

    from dit_video.weights import names_dit, names_text, names_vae

    there = {"text": names_text.from_transformers, "encode": names_vae.from_diffusers,
             "decode": names_vae.from_diffusers}.get(job["case"], names_dit.from_diffusers)  # fmt: skip
    return replace(there(job["config"]), dtype=job["dtype"], **job.get("how", {}))


def our_weights(cfg: Any) -> Any:
    from dit_video.weights.folder import table
    from dit_video.weights.model import shapes
    from dit_video.weights.names import leaves, places, unflatten
    from dit_video.weights.place import place

    found = {one.names[0]: one.shape for one in places(table(cfg), shapes(cfg))}
    stored = leaves(table(cfg), found, lambda name: draw(name, found[name], SEED), shapes(cfg), source="random")
    return place(unflatten(stored), None, cfg.dtype)


def merged(cfg: Any, weights: Any) -> Any:
    from flax import nnx

    from dit_video.weights.model import abstract

    return nnx.merge(nnx.split(abstract(cfg), nnx.Param)[0], weights)


def our_block(job: Job) -> dict[str, Callable[[], Any]]:
    """A block with the keys and values of the text, which sampling makes once: the rival makes them in every call."""
    from dataclasses import replace

    import jax
    from flax import nnx

    from dit_video.models.dit import Tokens
    from dit_video.nn.rotary import grid_positions, rotary

    cfg, weights, (x, rows, modulation) = our_part(job)
    x, rows = x.astype(cfg.dtype), rows.astype(cfg.dtype)
    positions = rotary(grid_positions(tuple(job["size"])), cfg.head_dim, cfg.rope_theta)

    def block(backend: str, weights: Any, x: Any, rows: Any, tokens: Any) -> Any:
        graph, layers = nnx.split(merged(replace(cfg, attention=backend), weights).blocks)
        layer = nnx.merge(graph, jax.tree.map(lambda a: a[0], layers))
        return layer(x, tokens, layer.context(rows, None))

    tokens = Tokens(modulation, None, positions)
    return {way: partial(jax.jit(partial(block, way)), weights, x, rows, tokens) for way in job["attention"]}


def our_text(job: Job) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp

    cfg, weights, (ids,) = our_part(job)
    encode = jax.jit(lambda weights, ids, length: merged(cfg, weights)(ids, length).rows)
    return {"whole": partial(encode, weights, ids, jnp.array([ids.shape[1]]))}


def our_vae(job: Job) -> dict[str, Callable[[], Any]]:
    from dataclasses import replace

    import jax

    cfg, weights, given = our_part(job)
    cfg = replace(cfg, conv="folded" if jax.default_backend() == "cpu" else "direct")
    call = {
        "encode": lambda weights, video: merged(cfg, weights).encode(video)[0],
        "decode": lambda weights, z: merged(cfg, weights).decode(z),
    }[job["case"]]
    return {"whole": partial(jax.jit(call), weights, *given)}


def our_clip(job: Job) -> dict[str, Callable[[], Any]]:
    from dit_video import VideoPipeline

    pipe = VideoPipeline.from_pretrained(job["model"], dtype=job["dtype"])
    noise, sampling = np.load(job["noise"]), job["sampling"]
    return {"whole": lambda: pipe(job["prompt"], latents=noise, output_type="np", **sampling).frames[0]}


def our_tokens(job: Job) -> dict[str, Callable[[], Any]]:
    """A denoiser step for each of `shapes` (clips, and frames, height and width in patches), by their names."""
    import jax
    import jax.numpy as jnp

    from dit_video.core.types import Text, Time

    cfg = our_config(job)
    weights = our_weights(cfg)
    step = jax.jit(lambda weights, x, time, context: merged(cfg, weights)(x, Time(time), context))
    encode = jax.jit(lambda weights, rows, length: merged(cfg, weights).context(Text(rows, length)))
    calls = {}
    for name, (clips, *grid) in job["shapes"].items():
        rng = np.random.default_rng(SEED)
        rows = normal(rng, 1, TEXT_ROWS, cfg.text_dim).repeat(clips, 0)
        size = [n * p for n, p in zip(grid, cfg.patch, strict=True)]
        x, time = normal(rng, clips, *size, cfg.in_channels), jnp.full((clips, 1), 0.5)
        context = encode(weights, jnp.asarray(rows), jnp.full((clips,), TEXT_ROWS))
        calls[name] = partial(step, weights, jnp.asarray(x), time, context)
    return calls


def our_train(job: Job) -> dict[str, Callable[[], Any]]:
    """`step`: the loss of one training step; `product`: a matrix product, of which the step may be a part."""
    import jax
    import jax.numpy as jnp
    from measure import product

    from dit_video.core.mesh import Rules, make_mesh
    from dit_video.models.text import TextConfig
    from dit_video.train.conditions import Batch
    from dit_video.train.denoise import Denoise
    from dit_video.train.optim import Optimizer
    from dit_video.train.step import compiled_halves, initial_state, layout, place, trained

    cfg = our_config(job)
    text = TextConfig(vocab=256, width=cfg.text_dim, heads=4, head_dim=16, ffn_dim=64, depth=1, dtype=cfg.dtype)
    objective, rules, mesh = Denoise(dit=cfg, text=text), Rules(), make_mesh(devices=jax.devices()[:1])
    parts, optimizer, decays = trained(objective, rules), Optimizer().build(1000), (0.999,)
    shapes, where = layout(objective, parts, optimizer, mesh, rules, decays)
    state = initial_state(objective, optimizer, mesh, rules, where, shapes, seed=SEED, decays=decays)
    gradients, update = compiled_halves(objective, parts, optimizer, where, decays)
    rng, size = np.random.default_rng(SEED), job["size"]
    latents, known = normal(rng, 1, *size, cfg.in_channels), np.zeros((1, *size), bool)
    ids = rng.integers(3, text.vocab, (1, job["rows"])).astype(np.int32)
    batch = place(Batch(latents, known, ids, np.array([job["rows"]], np.int32), None), mesh, rules)
    key = jax.random.key(SEED)

    def step() -> Any:
        nonlocal state
        grads, metrics = gradients(None, state.params, state.step, batch, key)
        state, metrics = update(state, grads, metrics)
        return jnp.where(metrics["skipped"] > 0, jnp.nan, metrics["loss"])

    return {"step": step, "product": product(job["product"], cfg.dtype)}


OURS = {"block": our_block, "text": our_text, "encode": our_vae, "decode": our_vae, "clip": our_clip,
        "tokens": our_tokens, "train": our_train}  # fmt: skip


# -- diffusers and transformers, in torch ------------------------------------------------------------------------------


def diffusers(job: Job) -> Side:
    """Eager, and with the part that does the work compiled; attention is torch's own choice."""
    import torch

    torch.set_num_threads(cores())
    torch.backends.cudnn.allow_tf32 = False
    cuda = torch.cuda.is_available()
    owner, part, call = THEIRS[job["case"]](job, "cuda" if cuda else "cpu", getattr(torch, job["dtype"]))
    parts = {"eager": getattr(owner, part)}
    if job["compile"]:
        parts["compiled"] = torch.compile(parts["eager"])

    def ready(chosen: Any) -> Any:
        setattr(owner, part, chosen)
        with torch.inference_mode():
            result = call()
            if cuda:
                torch.cuda.synchronize()
        return result

    return Side(
        {way: partial(ready, chosen) for way, chosen in parts.items()},
        lambda x: torch.as_tensor(x).float().cpu().numpy(),
        torch.cuda.get_device_name() if cuda else "cpu",
        {name: version(name) for name in ("torch", "diffusers", "transformers")},
        lambda: torch.cuda.max_memory_allocated() if cuda else None,
    )


def their_block(job: Job, device: str, dtype: Any) -> tuple[Any, str, Callable[[], Any]]:
    """(what holds the part that may be compiled, its name there, the call)"""
    import torch

    module = weighted(dit_reference(public(job)), SEED).to(device, dtype)
    x, rows, modulation = (torch.from_numpy(a).to(device) for a in inputs(job))
    x, rows, modulation = x.to(dtype), rows.to(dtype), modulation[:, 0]
    frames, height, width = job["size"]
    rotary = module.rope(torch.empty(1, 1, frames, 2 * height, 2 * width, device=device))
    blocks = module.blocks
    return blocks, "0", lambda: blocks[0](x, rows, modulation, rotary)


def their_text(job: Job, device: str, dtype: Any) -> tuple[Any, str, Callable[[], Any]]:
    import torch

    module = weighted(text_reference(public(job)), SEED).to(device, dtype)
    ids = torch.from_numpy(inputs(job)[0]).long().to(device)
    return module, "encoder", lambda: module(ids, attention_mask=torch.ones_like(ids)).last_hidden_state


def their_vae(job: Job, device: str, dtype: Any) -> tuple[Any, str, Callable[[], Any]]:
    module = weighted(vae_reference(public(job)), SEED).to(device, dtype)
    x = first(inputs(job)[0]).to(device, dtype)
    if job["case"] == "encode":
        return module, "encoder", lambda: module.encode(x).latent_dist.mean.movedim(1, -1)
    return module, "decoder", lambda: module.decode(x).sample.movedim(1, -1)


def their_clip(job: Job, device: str, dtype: Any) -> tuple[Any, str, Callable[[], Any]]:
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(job["model"], dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    latents = first(np.load(job["noise"])).to(device)
    asked = {"negative_prompt": "", "output_type": "np", **job["sampling"]}
    return pipe, "transformer", lambda: pipe(job["prompt"], latents=latents, **asked).frames[0]


def public(job: Job) -> dict[str, Any]:
    """A config without what only its file says of itself."""
    return {name: value for name, value in job["config"].items() if not name.startswith("_")}


THEIRS = {"block": their_block, "text": their_text, "encode": their_vae, "decode": their_vae, "clip": their_clip}


# -- ONNX Runtime: an exported model, by its own run.py ----------------------------------------------------------------


def onnx(job: Job) -> Side:
    run, asked = runpy.run_path(f"{job['model']}/run.py"), job["sampling"]
    about = json.loads((Path(job["model"]) / "manifest.json").read_text())
    programs = run["Programs"](about, tuple(asked[name] for name in ("num_frames", "height", "width")))
    ids, length = run["prompts"](about, job["prompt"], "")
    how = about["defaults"]
    instants = run["Schedule"](asked["num_inference_steps"], how["shift"], how["schedule"]).instants()
    noise, scale = np.load(job["noise"]), np.float32(asked["guidance_scale"])
    make = partial(programs.make, ids, length, noise, instants, scale)
    versions = {"onnxruntime": version("onnxruntime")}
    return Side({"whole": make}, lambda frames: frames[0].astype(np.float32) / 255, "cpu", versions, lambda: None)


SIDES = {"ours": ours, "diffusers": diffusers, "onnx": onnx}


# -- the process -------------------------------------------------------------------------------------------------------


def about(side: Side) -> dict[str, Any]:
    return {"ways": [*side.calls], "device": side.device, "versions": side.versions}


def answered(side: Side, what: str, way: str, file: str | None) -> dict[str, Any]:
    began = time.perf_counter()
    if what == "peak":
        with Peak() as peak:
            side.calls[way]()
        return {"seconds": time.perf_counter() - began, "bytes": side.device_bytes() or peak.most}
    result = side.calls[way]()
    spent = time.perf_counter() - began
    if file:
        np.save(file, side.array(result))
    return {"seconds": spent}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    side = SIDES[job["side"]](job)
    print(json.dumps(about(side)), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = answered(side, *json.loads(line))
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
