"""Checkpoints as Wan's authors publish them (and ComfyUI repeats them): a denoiser alone, under its own names.

Their names follow from those of diffusers by the substitutions below; note that what is `norm3` in them is `norm2` in
diffusers. VAE, text encoder and tokenizer are pickles there, which are not read: a model in the diffusers layout
(`--base`) gives those.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from dit_video.core.errors import BadInput
from dit_video.models.dit import DiTConfig
from dit_video.weights.find import INDEX, find_model, read_json
from dit_video.weights.folder import open_model, open_part
from dit_video.weights.model import Model, shapes
from dit_video.weights.names import Table, leaves, unflatten
from dit_video.weights.names_dit import dit_table, from_diffusers
from dit_video.weights.released import as_released
from dit_video.weights.shards import Shards

# diffusers -> original, the first that fits is taken, piece by piece of a name from left to right.
SUBSTITUTIONS = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
    "norm2": "norm3",
    "proj_in": "before_proj",
}
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
EXPERTS = ("high_noise_model", "low_noise_model")
_PIECE = re.compile("|".join(rf"(?<![\w.]){re.escape(s)}(?!\w)|(?<=\.){re.escape(s)}(?!\w)" for s in SUBSTITUTIONS))


def original_name(name: str) -> str:
    """The name in an original checkpoint of a tensor, or a module, that diffusers calls `name`."""
    head, _, rest = name.partition(".")
    if head in ("scale_shift_table", "proj_out"):  # those of the whole model, not of a block
        return f"head.{'modulation' if head == 'scale_shift_table' else 'head'}{'.' * bool(rest)}{rest}"
    name = _PIECE.sub(lambda found: SUBSTITUTIONS[found[0]], name)
    return name.replace(".scale_shift_table", ".modulation").replace(".proj_out", ".after_proj")


def original_table(cfg: DiTConfig) -> Table:
    """The rows for an original checkpoint."""
    table = dit_table(cfg)
    rows = tuple(replace(row, foreign=original_name(row.foreign)) for row in table.rows)
    return Table(rows, ignored=(*table.ignored, r"freqs.*", r".*norm_q_img\..*"))


def config_of(found: Mapping[str, tuple[int, ...]], head_dim: int = 128) -> DiTConfig:
    """The sizes of an original denoiser, read off its tensors. All that were published have heads of 128."""
    try:
        kernel, out = found["patch_embedding.weight"], found["head.head.weight"]
        image = found.get("img_emb.proj.1.weight")
        places = found.get("img_emb.emb_pos")
        layers = {kind: [int(n) for name in found for n in re.findall(rf"^{kind}\.(\d+)\.", name)]
                  for kind in ("blocks", "vace_blocks")}  # fmt: skip
        depth, hints = (1 + max(numbers, default=-1) for numbers in layers.values())
        return DiTConfig(
            in_channels=kernel[1],
            out_channels=out[0] // prod(kernel[2:]),
            heads=kernel[0] // head_dim,
            head_dim=head_dim,
            depth=depth,
            ffn_dim=found["blocks.0.ffn.0.weight"][0],
            freq_dim=found["time_embedding.0.weight"][1],
            text_dim=found["text_embedding.0.weight"][1],
            patch=kernel[2:],
            cross_attn_norm="blocks.0.norm3.weight" in found,
            image_dim=image and image[1],
            image_len=places and places[1],
            vace_layers=tuple(range(0, depth, depth // hints)) if hints else (),
            **({"vace_channels": found["vace_patch_embedding.weight"][1]} if hints else {}),
        )
    except KeyError as error:
        raise BadInput(f"this is no denoiser of the Wan family: it has no tensor {error}") from None


def open_denoiser(source: Path) -> tuple[DiTConfig, dict[str, Any]]:
    """A denoiser alone, in the original format or in that of diffusers: its sizes, and its parameters as a tree of
    `Stored`. Raises as `weights.folder.open_part`."""
    file = source / "config.json"
    config = read_json(file) if file.is_file() else {}
    if "num_attention_heads" in config:
        cfg = from_diffusers(config)
        return cfg, open_part(source, cfg)
    shards = Shards(source)
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in shards.shapes)), "")
    found = {name.removeprefix(prefix): shape for name, shape in shards.shapes.items()}
    dtypes = {name.removeprefix(prefix): dtype for name, dtype in shards.dtypes.items()}
    head_dim = config["dim"] // config["num_heads"] if {"dim", "num_heads"} <= set(config) else 128
    cfg = config_of(found, head_dim)
    arrays = leaves(
        original_table(cfg), found, lambda name: shards.read(prefix + name), shapes(cfg), dtypes=dtypes,
        source=str(source),
    )  # fmt: skip
    return cfg, unflatten(arrays)


def find_source(source: str | Path) -> Path:
    """The file or folder that `open_any` opens; fetched, if it is a name of the Hub's. Raises as `find_model`."""
    path = Path(source).expanduser()
    return path if path.exists() else find_model(source)


def open_any(source: Path, base: str | Path | None = None) -> Model:
    """A model folder, or a denoiser alone (a file, a folder, a folder with one for each expert), which takes all else
    from `base`; where it is of another size, defaults and shift are those of its own release. Nothing is read yet.

    Raises `BadInput` for a denoiser without a base, or one that does not fit it; and as `open_model`.
    """
    experts = [source / name for name in EXPERTS if (source / name).is_dir()]
    if not source.is_file() and not experts and (source / INDEX).is_file():
        if base is not None:
            raise BadInput(f"--base {base}: {source} is whole, it takes nothing from another model")
        return open_model(source)
    opened = [open_denoiser(folder) for folder in experts or [source]]
    if base is None:
        raise BadInput(
            f"{source} holds a denoiser alone. Give a model in the diffusers layout that its VAE, text encoder and "
            "tokenizer are taken from: --base MODEL."
        )
    model = open_model(base)
    parts = dict(zip(("dit", "dit_2"), opened, strict=False))
    if set(parts) != {"dit", "dit_2"} & set(model.parts):
        raise BadInput(f"{source} has {len(parts)} denoiser(s), and --base {base} is a model with another number")
    for part, (cfg, _) in parts.items():
        theirs = getattr(model, part)
        fields = ("in_channels", "out_channels", "text_dim", "image_dim", "image_len")
        differ = [f"{name} {getattr(cfg, name)}" for name in fields if getattr(cfg, name) != getattr(theirs, name)]
        if bool(cfg.vace_layers) != bool(theirs.vace_layers):
            differ.append(f"{'a' if cfg.vace_layers else 'no'} control branch")
        if differ:
            raise BadInput(f"{source} has {', '.join(differ)}, and --base {base} has not: take a base of the same kind")
    configs = {part: cfg for part, (cfg, _) in parts.items()}
    params = model.params | {part: params for part, (_, params) in parts.items()}
    opened = replace(model, params=params, name=str(source), digest="", **configs)
    if all((cfg.heads, cfg.depth) == (getattr(model, part).heads, getattr(model, part).depth)
           for part, cfg in configs.items()):  # fmt: skip
        return opened
    return as_released(opened)
