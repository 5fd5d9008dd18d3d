"""`VideoPipeline`: a model ready to make clips.

pipe = VideoPipeline.from_pretrained()
pipe("a red circle moves right", seed=7).save("circle.mp4")
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from weakref import ref

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from dit_video import __version__
from dit_video.core.errors import BadInput, NonFinite
from dit_video.core.log import Progress
from dit_video.core.mesh import MeshShape, Rules, as_mesh, shardings
from dit_video.diffusion.cache import Curve, caching_named, reuses
from dit_video.generate.calibrate import curve_for
from dit_video.generate.clip import Clip, frames_sha256
from dit_video.generate.decode import Strip, compile_pieces, piece_bytes, pieces, tiles_for
from dit_video.generate.encoded import Encoded, encode
from dit_video.generate.film import Film
from dit_video.generate.held import Held
from dit_video.generate.memory import free_memory
from dit_video.generate.mode import Plan, abilities
from dit_video.generate.output import Output, OutputType
from dit_video.generate.programs import Programs, programs
from dit_video.generate.request import OPTIONS, Request, resolve
from dit_video.generate.sampler import Sampler
from dit_video.generate.shots import WARM_UP
from dit_video.generate.texts import Texts
from dit_video.generate.unfinished import Unfinished, unfinished
from dit_video.models.dit import DiTConfig
from dit_video.weights.digests import digest_of, kept_hash
from dit_video.weights.place import numbers, place

if TYPE_CHECKING:
    from dit_video.weights.model import Model

MORE = frozenset(OPTIONS)
WIDE = 1024  # of a denoiser of released size; those of toyworld are far below
AT_ONCE = 16  # clips in one batch; more are made in equal parts
STREAM_FROM = 17  # latent slots from which frames are decoded in pieces, in bounded memory


class VideoPipeline:
    """A model, its compiled programs and where they run."""

    def __init__(
        self,
        model: "Model",
        mesh: Mesh | MeshShape | str | None = None,
        dtype: str | None = None,
        rules: Rules = Rules(),
        progress: bool = False,
        keep: str | None = None,
        offload: bool = False,
    ):
        """`dtype` of the computation: float32, bfloat16, or None or "auto" for what suits the device; the solver stays
        float32. `keep`: what matrices are kept as (float32, bfloat16, int8); None: as they are computed with.
        `offload`: those of layers stay in the host's memory. With a mesh (or its axes, such as
        "data=2,context=4"), weights lie as their logical axes say and the batch is split."""
        abilities(model)  # raises for a structure that is not run
        self.mesh = as_mesh(mesh)
        device = jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]
        self.dtype = choose_dtype(dtype, device.platform)
        attention = choose_attention(model.dit, self.dtype, device)
        self.model = replace(
            model,
            dit=replace(model.dit, dtype=self.dtype, remat="none", attention=attention),
            vae=replace(model.vae.on(device.platform), dtype=self.dtype),
            text=replace(model.text, dtype=self.dtype),
            image=model.image and replace(model.image, dtype=self.dtype),
        )
        self.model = replace(self.model, dit_2=model.dit_2 and self.model.dit)
        self.rules, self.show = rules, progress
        self.programs = self._programs(self.model.dit)
        self.keep = keep = keep or self.dtype
        each, free = 1 if keep == "int8" else np.dtype(keep).itemsize, (lambda: None) if offload else self.free
        apart = device.platform != "cpu"  # the fake devices of a CPU share its memory
        sizes = {
            part: each * numbers(weights, self._shardings(part) if apart else None)
            for part, weights in model.params.items()
        }
        self.params = Held(lambda part: self._place(part, keep, offload), sizes, free)
        self.load_seconds = 0.0
        self.lora: tuple[str, ...] = ()  # what was merged into the weights, for the metadata
        self.texts = Texts(self)
        self._encoded: tuple[Any, Encoded] | None = None  # the latest request, weakly, and its conditions

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        mesh: Mesh | MeshShape | str | None = None,
        dtype: str | None = None,
        progress: bool = False,
        keep: str | None = None,
        offload: bool = False,
        lora: Sequence[str] = (),
    ) -> "VideoPipeline":
        """From a diffusers folder, a run folder or a name; None takes the weights on board. `lora`: adapters to merge,
        each PATH or PATH=STRENGTH. Weights go from their files to the devices an array at a time; those of a large
        model when they are first used.

        Raises MissingError for a model that is not there and BadInput for one that does not fit together.
        """
        from dit_video.weights.lora import merge_files
        from dit_video.weights.runs import open_base

        began = time.perf_counter()
        mesh = as_mesh(mesh)
        pipe = cls(merge_files(open_base(model), lora), mesh, dtype, progress=progress, keep=keep, offload=offload)
        pipe.load_seconds, pipe.lora = time.perf_counter() - began, tuple(lora)
        return pipe

    @property
    def memory(self) -> int | None:
        """Bytes that are free where this pipeline computes, when its weights are there."""
        free = self.free()
        return None if free is None else max(0, free - self.params.to_come)

    def free(self) -> int | None:
        """Bytes that are free there now."""
        return free_memory(None if self.mesh is None else self.mesh.devices.flat[0])

    def _programs(self, dit: DiTConfig) -> Programs:
        return programs(dit, self.model.vae, self.model.text, self.mesh, self.rules, self.model.image)

    def programs_for(self, plan: Plan) -> Programs:
        """The programs of a plan: others than the usual where it stretches positions."""
        return self.programs if plan.stretch is None else self._programs(replace(self.model.dit, stretch=plan.stretch))

    def curve(self, request: Request) -> Curve:
        """How the velocity changes along the way: as the model says, or measured at the request's size, once."""
        rows = self.model.defaults.cache
        return Curve(*(tuple(column) for column in zip(*rows, strict=True))) if rows else curve_for(self, request)

    @cached_property
    def hash(self) -> str:
        """Which weights these are: hex digits, the model's own where it has them."""
        return digest_of(self.model)

    @cached_property
    def vae_hash(self) -> str:
        """The same of the VAE alone: which latents it reads."""
        return kept_hash(self.model.params["vae"])

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
        guidance_scale_2: float | None = None,
        seed: int | None = None,
        latents: Float[np.ndarray, "B t h w z"] | None = None,
        prompt_at: Sequence[tuple[float, str]] | None = None,
        callback_on_step_end: Callable[["VideoPipeline", int, float, dict[str, Any]], dict | None] | None = None,
        output_type: OutputType = "uint8",
        **more: Any,
    ) -> Output:
        """Makes one clip a prompt. What is left out takes the model's defaults.

        `image` (a path, a PIL image, or uint8 (H, W, 3)) becomes the first frame. `latents` is starting noise, float32;
        with n pictures in `reference`, n slots more in front. `guidance_scale_2` is the second denoiser's, where there
        are two; left out, it is `guidance_scale`.
        `prompt_at`: [(seconds, prompt), ...], what is to be seen from then on.
        `callback_on_step_end(pipe, step, t, {"latents": x, "data": d, "clips": n})` is called after each step with t in
        0..1000, d what x is on the way to and n the numbers of its clips; it may return {"latents": ...} to go on from
        or {"stop": True}, and may raise.
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
            width=width, fps=fps, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            guidance_scale_2=guidance_scale_2, seed=seed, prompt_at=prompt_at, memory=self.memory,
            ways=self.programs.ways, **more,
        )  # fmt: skip
        return self.run(request, latents=latents, callback=callback_on_step_end, output_type=output_type)

    def run(
        self,
        request: Request,
        latents: np.ndarray | None = None,
        callback: Callable | None = None,
        output_type: OutputType = "uint8",
        sampled: Callable[[list[int], np.ndarray], None] | None = None,
    ) -> Output:
        """Makes the clips of a checked request. `sampled` is called with the numbers and latents of clips that are
        decoded whole, before they are."""
        slots, *size = self.model.vae.latent_shape(request.num_frames, request.height, request.width)
        count, shape = len(request.prompts), (slots + len(request.given.references), *size)
        if latents is not None and (tuple(latents.shape) != (count, *shape) or latents.dtype != np.float32):
            raise BadInput(f"latents must be float32 {(count, *shape)}, got {latents.dtype} {tuple(latents.shape)}.")
        (shot, *more) = request.shots(self.model.vae.stride)
        if latents is not None and (more or shot.mid or request.plan.mode != "single"):
            raise BadInput(
                'latents go with clips of one pass. Give a seed, or long="single" without changes of prompt.'
            )
        progress, whole = Progress(self.show), self.whole(request)
        parts = -(-count // AT_ONCE) if whole else count
        size = -(-count // parts)
        clips: list[Clip] = []
        about = [self.about(request, clip) for clip in range(count)]  # now: hashing weights may take long, and fail
        for first in range(0, count, size):
            # the last part is filled up: one shape, one compile
            which = [min(first + i, count - 1) for i in range(size)]
            noise = None if latents is None else latents[which]
            film = None
            try:
                if whole:
                    how = noise, callback, progress, output_type != "latent"
                    made, frames = self._whole(request, which, *how, sampled)
                else:
                    film = self.film(request, which[0], noise, callback, progress, output_type != "latent")
                    made = film.latents[None]
                    frames = None if output_type == "latent" else [np.stack(list(film.frames()))]
            except Unfinished as error:
                error.clips = clips
                raise
            except (Exception, KeyboardInterrupt) as error:
                if not clips:
                    raise
                stopped = unfinished(error, "sampling", np.zeros((0, *shape), np.float32), request)
                stopped.clips = clips
                raise stopped from error
            for i, clip in enumerate(which[: count - first]):
                shown = np.zeros((0, request.height, request.width, 3), np.uint8) if frames is None else frames[i]
                # Sampled at once: a matrix product rounds by its shape, so the same frames take the same batch.
                told = about[clip] | {"batch": [request.prompts[i] for i in which], "decoded": "whole"}
                told |= film.metadata if film else {}
                told |= {} if latents is None else {"latents": "given"}
                told["frames_sha256"] = frames_sha256(shown) if len(shown) else None
                clips.append(Clip(shown, request.fps, told, made[i]))
        for clip in clips:
            clip.metadata["seconds"] = self.seconds(progress)
        return Output(clips, request.seed, output_type)

    def whole(self, request: Request) -> bool:
        """Whether clips are made and decoded in one piece each, several at once."""
        (shot, *more), vae = request.shots(self.model.vae.stride), self.model.vae
        plain = not more and not shot.mid and request.plan.mode == "single" and shot.slots < STREAM_FROM
        given, size = request.given, (request.height // vae.factor, request.width // vae.factor)
        at_once = min(len(request.prompts), AT_ONCE)
        share = at_once * piece_bytes(vae, *size, shot.slots) / self.programs.parts(at_once, *size)
        fits = request.memory is None or share <= request.memory
        return plain and fits and given.lead is None and given.follow is None

    def _whole(
        self, request: Request, which: list[int], noise: Any, callback: Any, progress: Progress, decodes: bool,
        sampled: Any = None,
    ) -> tuple[np.ndarray, Any]:  # fmt: skip
        """Latents and frames of clips that are one pass each. Raises Unfinished, which carries the latents, when
        decoding fails."""
        (shot,) = request.shots(self.model.vae.stride)
        sampler = self._sampler(request, which, noise, callback, progress)
        shape = self.model.vae.latent_shape(request.num_frames, request.height, request.width)
        latents = jax.ShapeDtypeStruct((len(which), *shape), np.float32)
        also = {"decode": ((), self.programs.decode, (self.params["vae"], latents))} if decodes else {}
        made = sampler.run(shot, also)
        if not decodes:
            return made, None
        try:
            if sampled is not None:
                sampled(which, made)
            return made, self._decode(made, progress)
        except (Exception, KeyboardInterrupt) as error:
            raise unfinished(error, "decoding", made, request) from error

    def film(
        self, request: Request, clip: int = 0, noise: Any = None, callback: Any = None,
        progress: Progress | None = None, decodes: bool = True,
    ) -> Film:  # fmt: skip
        """One clip of any length, made of one stream of latents or of several, its frames yet to be decoded, if it
        `decodes` them at all.

        How they will be is planned before anything is sampled: BadInput says when memory cannot do it."""
        progress = progress or Progress(self.show)
        vae, given = self.model.vae, request.given
        size = request.height // vae.factor, request.width // vae.factor
        tiles, slots = tiles_for(vae, *size, request.memory, partial(self.programs.parts, 1))
        about = self.about(request, clip)
        sampler, strips = self._sampler(request, [clip], noise, callback, progress), []
        try:
            for shot in request.shots(vae.stride):
                front = WARM_UP if shot.ring else len(sampler.encoded.history) - shot.prefix if shot.prefix else 0
                shapes, also = pieces(vae, front + shot.slots, *size, tiles, slots), {}
                if decodes:
                    also = {"decode_piece": ((), self.programs.decode_piece, (self.params["vae"], shapes[0], None))}
                (made,) = sampler.run(shot, also)
                if decodes:
                    with progress.phase("compile"):
                        compile_pieces(self.programs, self.params["vae"], shapes)
                if shot.ring:
                    made = np.concatenate([made[-WARM_UP:], made])
                if shot.prefix:
                    made = np.concatenate([sampler.encoded.history[: -shot.prefix], made])
                strips.append(Strip(made, shot.skip))
        except (Exception, KeyboardInterrupt) as error:
            if not strips:
                raise
            done = [strip.latents for strip in strips]
            stopped = error
            if not isinstance(error, Unfinished):
                stopped = unfinished(error, "sampling", np.zeros((1, 0, *done[0].shape[1:]), np.float32), request)
            under_way = stopped.latents[0]
            stopped.strips = [[len(strip.latents), strip.skip, strip.drop] for strip in strips]
            if len(under_way):
                mid = bool(shot.ring or shot.prefix)  # what the decoder is given before them is not there yet
                stopped.strips.append([len(under_way), 0 if mid else shot.skip, 0])
            stopped.latents = np.concatenate([*done, under_way])[None]
            if stopped is error:
                raise
            raise stopped from error
        strips[-1] = strips[-1]._replace(drop=given.drop)
        return Film(self, request, strips, about, tiles, slots, progress)

    def _sampler(self, request: Request, which: list[int], noise: Any, callback: Any, progress: Progress) -> Sampler:
        """A sampler with its conditions encoded and its cache planned."""
        how = caching_named(request.cache)
        curve = None if how is None else self.curve(request)
        if self._encoded is None or self._encoded[0]() is not request:  # once for all clips of a call
            with progress.phase("compile"), self.programs.on_mesh():
                self._encoded = ref(request), encode(self, request)
        sampler = Sampler(self, request, which, self._encoded[1], progress, callback, noise)
        if how is not None:
            sampler.reuse = reuses(curve, sampler.schedule.instants().flow[:-1], how)
        return sampler

    def _decode(self, latents: np.ndarray, progress: Progress) -> np.ndarray:
        """Pixels uint8 (B, T, H, W, 3). Raises NonFinite."""
        vae = self.params["vae"]
        with progress.phase("decode"), self.programs.on_mesh():
            ready = self.programs.prepare({"decode": ((), self.programs.decode, (vae, latents))})
            pixels, finite = ready["decode"](vae, self.spread(latents))
            if not bool(finite):
                raise NonFinite(f"Non-finite pixels in decoding ({self.dtype}). Try --dtype float32.{self.blame()}")
            return np.asarray(pixels)

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
            "model": {"name": model.name, "hash": self.hash, "vae": self.vae_hash},
            "dtype": self.dtype,
            "devices": [d.device_kind for d in ([jax.devices()[0]] if self.mesh is None else self.mesh.devices.flat)],
            "versions": {"dit_video": __version__, "jax": jax.__version__, "python": platform.python_version()},
        }
        about |= {} if self.mesh is None else {"mesh": dict(self.mesh.shape)}
        about |= request.how() | ({"lora": list(self.lora)} if self.lora else {})
        return about | ({"weights": self.keep} if self.keep != self.dtype else {})

    def seconds(self, progress: Progress) -> dict[str, float]:
        """Of each phase."""
        spent = {"load": self.load_seconds + self.params.seconds}
        spent |= {name: progress.seconds.get(name, 0.0) for name in ("compile", "denoise", "decode")}
        return {name: round(seconds, 3) for name, seconds in spent.items()}

    def _place(self, part: str, keep: str, offload: bool) -> Any:
        """Weights of a part on the device, or spread over the mesh as their logical axes say."""
        return place(self.model.params[part], self._shardings(part), keep, offload)

    def _shardings(self, part: str) -> Any:
        """Shardings of the weights of a part; None without a mesh."""
        if self.mesh is None:
            return None
        return shardings(self.programs.abstract["dit" if part == "dit_2" else part][1], self.mesh, self.rules)

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
        broken = self.params.broken()
        return f" The weights of {' and '.join(broken)} hold NaN or infinity." if broken else ""


def choose_attention(dit: DiTConfig, dtype: str, device: Any) -> str:
    """The back end that a model names; of a wide one that names none, whose logits at once would be gigabytes, what
    needs no such memory: kernels where the device has them (cuDNN's want compute capability 8), else chunks."""
    if dit.attention != "xla" or dit.width < WIDE:
        return dit.attention
    if device.platform == "tpu":
        return "splash"
    kernels = float(getattr(device, "compute_capability", None) or 0) >= 8
    return "cudnn" if kernels and dtype == "bfloat16" else "chunked"


def choose_dtype(dtype: str | None, platform: str) -> str:
    """float32 on a CPU, where bfloat16 is not faster; bfloat16 on accelerators."""
    if dtype in (None, "auto"):
        return "float32" if platform == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise BadInput(f"dtype={dtype!r} is unknown. Use float32, bfloat16 or auto.")
    return dtype
