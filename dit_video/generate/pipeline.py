"""`VideoPipeline`: a model ready to make clips.

pipe = VideoPipeline.from_pretrained()
pipe("a red circle moves right", seed=7).save("circle.mp4")
"""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from dit_video import __version__
from dit_video.core.errors import BadInput, NonFinite
from dit_video.core.log import Progress, log
from dit_video.core.mesh import MeshShape, Rules, make_mesh, shardings
from dit_video.diffusion.cache import Curve, caching_named, reuses
from dit_video.generate.calibrate import calibrate
from dit_video.generate.clip import Clip, frames_sha256
from dit_video.generate.decode import Strip, piece_bytes, tiles_for
from dit_video.generate.encoded import encode
from dit_video.generate.film import Film
from dit_video.generate.memory import free_memory
from dit_video.generate.mode import Plan
from dit_video.generate.programs import Programs, programs
from dit_video.generate.request import OPTIONS, Request, resolve
from dit_video.generate.sampler import Sampler, Unfinished, unfinished
from dit_video.generate.shots import WARM_UP
from dit_video.weights.place import place

if TYPE_CHECKING:
    from dit_video.weights.model import Model

OutputType = Literal["uint8", "np", "latent"]
MORE = frozenset(OPTIONS)
AT_ONCE = 16  # clips in one batch; more are made in equal parts
STREAM_FROM = 17  # latent slots from which frames are decoded in pieces, in bounded memory


@dataclass(frozen=True)
class Output:
    """Clips in the order of the prompts."""

    clips: list[Clip]
    seed: int
    output_type: OutputType = "uint8"

    @property
    def frames(self) -> list[np.ndarray]:
        """One array a clip: uint8 (T, H, W, 3); float32 in [0, 1] for "np"; normalised latents (t, h, w, z) for
        "latent"."""
        if self.output_type == "latent":
            return [clip.latents for clip in self.clips]
        if self.output_type == "np":
            return [clip.frames.astype(np.float32) / 255 for clip in self.clips]
        return [clip.frames for clip in self.clips]

    @property
    def metadata(self) -> list[dict[str, Any]]:
        """One dict a clip."""
        return [clip.metadata for clip in self.clips]

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
        """Writes the clip to `path`; several to NAME_0, NAME_1, ... Each with its JSON beside it."""
        if self.output_type == "latent":
            raise BadInput('output_type="latent" has no frames to save. Leave it out.')
        path = Path(path)
        paths = [path] if len(self.clips) == 1 else [path.with_stem(f"{path.stem}_{i}") for i in range(len(self.clips))]
        return [clip.save(p, force=force) for clip, p in zip(self.clips, paths, strict=True)]


class VideoPipeline:
    """A model, its compiled programs and where they run."""

    def __init__(
        self,
        model: "Model",
        mesh: Mesh | MeshShape | None = None,
        dtype: str | None = None,
        rules: Rules = Rules(),
        progress: bool = False,
        keep: str | None = None,
        offload: bool = False,
    ):
        """`dtype` of the computation: float32, bfloat16, or None or "auto" for what suits the device; the solver stays
        float32. `keep`: what matrices are kept as (float32, bfloat16, int8); None: as they are computed with.
        `offload`: those of layers stay in the host's memory. With a mesh, weights lie as their logical axes say and the
        batch is split."""
        check_variant(model)
        self.mesh = make_mesh(mesh) if isinstance(mesh, MeshShape) else mesh
        device = jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]
        self.dtype = choose_dtype(dtype, device.platform)
        conv = "folded" if device.platform == "cpu" else "direct"
        self.model = replace(
            model,
            dit=replace(model.dit, dtype=self.dtype, remat="none"),
            vae=replace(model.vae, dtype=self.dtype, conv=conv),
            text=replace(model.text, dtype=self.dtype),
        )
        self.rules, self.show = rules, progress
        self.programs: Programs = programs(self.model.dit, self.model.vae, self.model.text, self.mesh, rules)
        self.params = self._place(model.params, keep or self.dtype, offload)
        self.load_seconds = 0.0
        self._hash, self._curve = model.digest, None

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        mesh: Mesh | MeshShape | None = None,
        dtype: str | None = None,
        progress: bool = False,
        keep: str | None = None,
        offload: bool = False,
        lora: Sequence[str] = (),
    ) -> "VideoPipeline":
        """From a diffusers folder, a run folder or a name; None takes the weights on board. `lora`: adapters to merge,
        each PATH or PATH=STRENGTH. Weights go from their files to the devices an array at a time.

        Raises MissingError for a model that is not there and BadInput for one that does not fit together.
        """
        from dit_video.weights.checkpoints import open_base
        from dit_video.weights.lora import merge_files

        began = time.perf_counter()
        pipe = cls(merge_files(open_base(model), lora), mesh, dtype, progress=progress, keep=keep, offload=offload)
        pipe.load_seconds = time.perf_counter() - began
        return pipe

    @property
    def memory(self) -> int | None:
        """Bytes that are free where this pipeline computes."""
        return free_memory(None if self.mesh is None else self.mesh.devices.flat[0])

    def programs_for(self, plan: Plan) -> Programs:
        """The programs of a plan: others than the usual where it stretches positions."""
        if plan.stretch is None:
            return self.programs
        dit = replace(self.model.dit, stretch=plan.stretch)
        return programs(dit, self.model.vae, self.model.text, self.mesh, self.rules)

    def curve(self, request: Request) -> Curve:
        """How the velocity changes along the way: as the model says, or measured now, once."""
        rows = self.model.defaults.cache
        if rows:
            return Curve(*(tuple(column) for column in zip(*rows, strict=True)))
        if self._curve is None:
            log.info("this model's cache was never measured: measuring it on this prompt")
            self._curve = calibrate(self, request.prompts[:1])
        return self._curve

    @property
    def hash(self) -> str:
        """Which weights these are: hex digits, the model's own where it has them."""
        if not self._hash:
            self._hash = weights_hash(self.model.params)
        return self._hash

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | None = None,
        image: Any = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        latents: Float[np.ndarray, "B t h w z"] | None = None,
        prompt_at: Sequence[tuple[float, str]] | None = None,
        callback_on_step_end: Callable[["VideoPipeline", int, float, dict[str, Any]], dict | None] | None = None,
        output_type: OutputType = "uint8",
        **more: Any,
    ) -> Output:
        """Makes one clip a prompt. What is left out takes the model's defaults.

        `image` (a path, a PIL image, or uint8 (H, W, 3)) becomes the first frame. `latents` is starting noise, float32.
        `prompt_at`: [(seconds, prompt), ...], what is to be seen from then on.
        `callback_on_step_end(pipe, step, t, {"latents": x, "data": d})` is called after each step with t in 0..1000 and
        d what x is on the way to; it may return {"latents": ...} to go on from or {"stop": True}, and may raise.
        `more`: the other flags of `dit-video generate`, by their names; `keyframes` is {frame: picture}.

        Raises BadInput before anything is computed, NonFinite with the step, Unfinished when latents exist but frames
        could not be made of them.
        """
        if output_type not in ("uint8", "np", "latent"):
            raise BadInput(f"output_type={output_type!r} is unknown. Use uint8, np or latent.")
        unknown = sorted(set(more) - MORE)
        if unknown:
            raise BadInput(f"unknown argument {', '.join(unknown)}. Besides the named ones: {', '.join(sorted(MORE))}.")
        request = resolve(
            self.model, prompt, negative_prompt=negative_prompt, image=image, num_frames=num_frames, height=height,
            width=width, fps=fps, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, seed=seed,
            prompt_at=prompt_at, memory=self.memory, **more,
        )  # fmt: skip
        return self.run(request, latents=latents, callback=callback_on_step_end, output_type=output_type)

    def run(
        self,
        request: Request,
        latents: np.ndarray | None = None,
        callback: Callable | None = None,
        output_type: OutputType = "uint8",
    ) -> Output:
        """Makes the clips of a checked request."""
        shape = self.model.vae.latent_shape(request.num_frames, request.height, request.width)
        count = len(request.prompts)
        if latents is not None and (tuple(latents.shape) != (count, *shape) or latents.dtype != np.float32):
            raise BadInput(f"latents must be float32 {(count, *shape)}, got {latents.dtype} {tuple(latents.shape)}.")
        (shot, *more) = request.shots(self.model.vae.stride)
        if latents is not None and (more or shot.mid or request.plan.mode != "single"):
            raise BadInput(
                'latents go with clips of one pass. Give a seed, or long="single" without changes of prompt.'
            )
        progress = Progress(self.show)
        parts = -(-count // AT_ONCE) if self.whole(request) else count
        size = -(-count // parts)
        clips: list[Clip] = []
        for first in range(0, count, size):
            # the last part is filled up: one shape, one compile
            which = [min(first + i, count - 1) for i in range(size)]
            noise = None if latents is None else latents[which]
            film = None
            try:
                if self.whole(request):
                    made, frames = self._whole(request, which, noise, callback, progress, output_type != "latent")
                else:
                    film = self.film(request, which[0], noise, callback, progress)
                    made = film.latents[None]
                    frames = None if output_type == "latent" else [np.stack(list(film.frames()))]
            except Unfinished as error:
                error.clips = clips
                raise
            for i, clip in enumerate(which[: count - first]):
                shown = np.zeros((0, request.height, request.width, 3), np.uint8) if frames is None else frames[i]
                # Sampled at once: a matrix product rounds by its shape, so the same frames take the same batch.
                about = self.about(request, clip) | {"batch": [request.prompts[i] for i in which]}
                about |= film.metadata if film else {}
                about["frames_sha256"] = frames_sha256(shown) if len(shown) else None
                clips.append(Clip(shown, request.fps, about, made[i]))
        for clip in clips:
            clip.metadata["seconds"] = self.seconds(progress)
        return Output(clips, request.seed, output_type)

    def whole(self, request: Request) -> bool:
        """Whether clips are made and decoded in one piece each, several at once."""
        (shot, *more), vae = request.shots(self.model.vae.stride), self.model.vae
        plain = not more and not shot.mid and request.plan.mode == "single" and shot.slots < STREAM_FROM
        given, size = request.given, (request.height // vae.factor, request.width // vae.factor)
        fits = self.memory is None or piece_bytes(vae, *size, shot.slots) <= self.memory
        return plain and fits and given.lead is None and given.follow is None

    def _whole(
        self, request: Request, which: list[int], noise: Any, callback: Any, progress: Progress, decodes: bool
    ) -> tuple[np.ndarray, Any]:
        """Latents and frames of clips that are one pass each."""
        (shot,) = request.shots(self.model.vae.stride)
        sampler = self._sampler(request, which, noise, callback, progress)
        shape = self.model.vae.latent_shape(request.num_frames, request.height, request.width)
        latents = jax.ShapeDtypeStruct((len(which), *shape), np.float32)
        also = {"decode": ((), self.programs.decode, (self.params["vae"], latents))} if decodes else {}
        made = sampler.run(shot, also)
        return made, self._decode(made, request, progress) if decodes else None

    def film(
        self, request: Request, clip: int = 0, noise: Any = None, callback: Any = None, progress: Progress | None = None
    ) -> Film:
        """One clip of any length, made of one stream of latents or of several, its frames yet to be decoded.

        How they will be is planned before anything is sampled: BadInput says when memory cannot do it."""
        progress = progress or Progress(self.show)
        vae, given = self.model.vae, request.given
        tiles, slots = tiles_for(vae, request.height // vae.factor, request.width // vae.factor, self.memory)
        sampler, strips = self._sampler(request, [clip], noise, callback, progress), []
        try:
            for shot in request.shots(vae.stride):
                (made,) = sampler.run(shot)
                if shot.ring:
                    made = np.concatenate([made[-WARM_UP:], made])
                if shot.prefix:
                    made = np.concatenate([sampler.encoded.history[: -shot.prefix], made])
                strips.append(Strip(made, shot.skip))
        except (Exception, KeyboardInterrupt) as error:
            if not strips:
                raise
            done = [strip.latents for strip in strips]
            if not isinstance(error, Unfinished):
                raise unfinished(error, "sampling", np.concatenate(done)[None], request) from error
            error.latents = np.concatenate([*done, error.latents[0]])[None]
            raise
        strips[-1] = strips[-1]._replace(drop=given.drop)
        return Film(self, request, strips, self.about(request, clip), tiles, slots, progress)

    def _sampler(self, request: Request, which: list[int], noise: Any, callback: Any, progress: Progress) -> Sampler:
        """A sampler with its conditions encoded and its cache planned."""
        sampler = Sampler(self, request, which, progress, callback, noise)
        how = caching_named(request.cache)
        if how is not None:
            sampler.reuse = reuses(self.curve(request), sampler.schedule.instants().flow[:-1], how)
        if request.given.latent:
            with progress.phase("compile"), self.programs.on_mesh():
                sampler.encoded = encode(self.programs, self.params["vae"], self.model, request.given)
        return sampler

    def _decode(self, latents: np.ndarray, request: Request, progress: Progress) -> np.ndarray:
        """Pixels uint8 (B, T, H, W, 3). Raises Unfinished, which carries the latents."""
        vae = self.params["vae"]
        try:
            with progress.phase("decode"), self.programs.on_mesh():
                ready = self.programs.prepare({"decode": ((), self.programs.decode, (vae, latents))})
                pixels, finite = ready["decode"](vae, self.spread(latents))
                if not bool(finite):
                    raise NonFinite(f"Non-finite pixels in decoding ({self.dtype}). Try --dtype float32.{self.blame()}")
                return np.asarray(pixels)
        except (Exception, KeyboardInterrupt) as error:
            raise unfinished(error, "decoding", latents, request) from error

    def about(self, request: Request, index: int) -> dict[str, Any]:
        """How a clip is made, for its metadata."""
        model = self.model
        used = model.tokenizer.encode([request.prompts[index]], max_length=model.dit.text_len)
        about = {
            "prompt": request.prompts[index],
            "prompt_used": model.tokenizer.decode(used.ids[0]),
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "clip": index,
            "num_frames": request.num_frames,
            "height": request.height,
            "width": request.width,
            "fps": request.fps,
            "num_inference_steps": request.num_inference_steps,
            "solver": request.solver,
            "shift": request.shift,
            "guidance_scale": request.guidance_scale,
            "image": request.image_from,
            "notes": list(request.notes),
            "model": {"name": model.name, "hash": self.hash},
            "dtype": self.dtype,
            "devices": [d.device_kind for d in ([jax.devices()[0]] if self.mesh is None else self.mesh.devices.flat)],
            "versions": {"dit_video": __version__, "jax": jax.__version__, "python": platform.python_version()},
        }
        return about | request.how()

    def seconds(self, progress: Progress) -> dict[str, float]:
        """Of each phase."""
        names = ("compile", "denoise", "decode")
        return {"load": round(self.load_seconds, 3)} | {n: round(progress.seconds.get(n, 0.0), 3) for n in names}

    def _place(self, weights: Any, keep: str, offload: bool) -> Any:
        """Weights on the device, or spread over the mesh as their logical axes say."""
        if self.mesh is None:
            return place(weights, None, keep, offload)
        spread = {name: shardings(self.programs.abstract[name][1], self.mesh, self.rules) for name in weights}
        return place(weights, spread, keep, offload)

    def spread(self, batch: np.ndarray) -> Any:
        """A batch over the mesh where it divides, and whole where it does not."""
        if self.mesh is None:
            return batch
        spec = self.rules("batch")
        axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
        ways = int(np.prod([self.mesh.shape[axis] for axis in axes if axis]))
        return jax.device_put(batch, NamedSharding(self.mesh, spec if len(batch) % ways == 0 else P()))

    def blame(self) -> str:
        """Which weights are not finite, if any: a sentence for a message."""
        broken = [name for name, tree in self.params.items() if not weights_finite(tree)]
        return f" The weights of {' and '.join(broken)} hold NaN or infinity." if broken else ""


def check_variant(model: "Model") -> None:
    """Raises `BadInput` for models that are read, written and adapted here, but that clips are not made with."""
    dit, why = model.dit, None
    if model.dit_2 is not None:
        why = "it has two denoisers, one for each end of the noise"
    elif dit.vace_layers:
        why = "it has a control branch (VACE)"
    elif dit.in_channels != dit.out_channels:
        why = f"it takes {dit.in_channels} channels for {dit.out_channels}: a picture beside the noise"
    if why is not None:
        raise BadInput(
            f"{model.name}: {why}. Clips are not made with such a model yet; import, export and LoRA work. "
            "Text-to-video models and Wan 2.2 TI2V 5B are run."
        )


def weights_finite(weights: Any) -> bool:
    return all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(weights))


def weights_hash(weights: Any) -> str:
    """Twelve hex digits of all arrays with their names, in the order of names."""
    total = hashlib.sha256()
    for path, leaf in sorted(jax.tree.leaves_with_path(weights), key=lambda item: jax.tree_util.keystr(item[0])):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(leaf))
    return total.hexdigest()[:12]


def choose_dtype(dtype: str | None, platform: str) -> str:
    """float32 on a CPU, where bfloat16 is not faster; bfloat16 on accelerators."""
    if dtype in (None, "auto"):
        return "float32" if platform == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise BadInput(f"dtype={dtype!r} is unknown. Use float32, bfloat16 or auto.")
    return dtype
