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
from dit_video.core.errors import BadInput, DitVideoError, Interrupted, NonFinite, OutOfMemory
from dit_video.core.log import Progress
from dit_video.core.mesh import MeshShape, Rules, make_mesh, shardings
from dit_video.diffusion.noise import clip_noise
from dit_video.diffusion.sample import iterate
from dit_video.diffusion.schedule import Schedule
from dit_video.diffusion.solvers import solver_named
from dit_video.generate.clip import Clip, frames_sha256
from dit_video.generate.programs import Programs, programs
from dit_video.generate.request import Request, resolve

if TYPE_CHECKING:
    from dit_video.weights.model import Model

OutputType = Literal["uint8", "np", "latent"]
MORE = frozenset(["seconds", "aspect", "solver", "shift", "fit", "resize", "strict", "num_videos_per_prompt"])
AT_ONCE = 16  # clips in one batch; more are made in equal parts
STREAM_FROM = 17  # latent slots from which frames are decoded in pieces, in bounded memory


class Unfinished(DitVideoError):
    """Stopped on the way: `latents` (B, t, h, w, z), normalised, are those of the part under way, `clips` are whole.
    The exit code is that of the cause."""

    def __init__(self, message: str, cause: type[DitVideoError], latents: np.ndarray, request: Request):
        super().__init__(message)
        self.exit_code, self.latents, self.request = cause.exit_code, latents, request
        self.clips: list[Clip] = []


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
    ):
        """`dtype` of the computation: float32, bfloat16, or None or "auto" for what suits the device. Weights and the
        solver stay float32. With a mesh, weights lie as their logical axes say and the batch is split."""
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
        self.params = self._place(model.params)
        self.load_seconds = 0.0
        self._hash = model.digest

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        mesh: Mesh | MeshShape | None = None,
        dtype: str | None = None,
        progress: bool = False,
    ) -> "VideoPipeline":
        """From a diffusers folder, a run folder or a name; None takes the weights on board.

        Raises MissingError for a model that is not there and BadInput for one that does not fit together.
        """
        from dit_video.weights.folder import load_model

        began = time.perf_counter()
        pipe = cls(load_model(model), mesh, dtype, progress=progress)
        pipe.load_seconds = time.perf_counter() - began
        return pipe

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
        callback_on_step_end: Callable[["VideoPipeline", int, float, dict[str, Any]], dict | None] | None = None,
        output_type: OutputType = "uint8",
        **more: Any,
    ) -> Output:
        """Makes one clip a prompt. What is left out takes the model's defaults.

        `image` (a path, a PIL image, or uint8 (H, W, 3)) becomes the first frame. `latents` is starting noise, float32.
        `callback_on_step_end(pipe, step, t, {"latents": x})` is called after each step with t in 0..1000; it may return
        {"latents": ...} to go on from, and may raise to stop. `more`: seconds, aspect, solver, shift, fit, resize,
        strict, num_videos_per_prompt, as on the command line.

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
            **more,
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
        progress = Progress(self.show)
        parts = -(-count // AT_ONCE)
        size = -(-count // parts)
        clips: list[Clip] = []
        for first in range(0, count, size):
            # the last part is filled up: one shape, one compile
            which = [min(first + i, count - 1) for i in range(size)]
            noise = clip_noise(request.seed, which, shape[0], shape[1:]) if latents is None else latents[which]
            try:
                made = self._sample(request, which, noise, callback, progress, output_type != "latent")
                frames = None if output_type == "latent" else self._decode(made, request, progress)
            except Unfinished as error:
                error.clips = clips
                raise
            for i, clip in enumerate(which[: count - first]):
                clips.append(self._clip(request, clip, None if frames is None else frames[i], made[i]))
        seconds = {"load": round(self.load_seconds, 3)}
        seconds |= {name: round(progress.seconds.get(name, 0.0), 3) for name in ("compile", "denoise", "decode")}
        for clip in clips:
            # A matrix product rounds by its shape: the same frames again take a batch of the same size.
            clip.metadata.update(batch=size, seconds=dict(seconds))
        return Output(clips, request.seed, output_type)

    def _sample(
        self,
        request: Request,
        which: list[int],
        noise: np.ndarray,
        callback: Callable | None,
        progress: Progress,
        decodes: bool,
    ) -> np.ndarray:
        """Normalised latents of some of the request's clips."""
        solver, params = solver_named(request.solver), self.params
        schedule = Schedule(request.num_inference_steps, request.shift, solver.schedule)
        texts = [request.prompts[i] for i in which]
        texts += [request.negative_prompt] * len(texts) if request.guided else []
        tokens = self.model.tokenizer.encode(texts, max_length=self.model.dit.text_len)
        clean = mask = pixels = None
        if request.image is not None:
            clean, mask, pixels = np.zeros_like(noise), np.zeros(noise.shape[:4], bool), request.image[None, None]
            mask[:, 0] = True
        with progress.phase("compile"):
            prompt = (params["dit"], params["text"], self._spread(tokens.ids), self._spread(tokens.length))
            ready = self._prepare(request, prompt, noise, pixels, clean, mask, schedule, decodes)
        with progress.phase("denoise", steps=schedule.steps) as tick, self.programs.on_mesh():
            if pixels is not None:
                clean[:, 0] = np.asarray(ready["encode"](params["vae"], pixels))[:, 0]
                noise = np.where(mask[..., None], clean, noise)
            context, carry = ready["begin"](*prompt, self._spread(noise))
            scale, done = np.float32(request.guidance_scale), 0

            def step(carry, now, then):
                nonlocal done
                carry, finite = ready["advance"](params["dit"], carry, now, then, context, scale, clean, mask)
                if callback is not None:
                    given = callback(self, done, float(now.model) * 1000, {"latents": np.asarray(carry.x)})
                    if given and "latents" in given:
                        carry = carry._replace(x=np.asarray(given["latents"], np.float32))
                done += 1
                return carry, finite

            try:
                for _, last in iterate(step, carry, schedule):
                    carry = last
                    tick()
            except NonFinite as error:
                raise NonFinite(f"{error}{self._blame()}") from None
            except KeyboardInterrupt:
                message = f"interrupted at step {done}/{schedule.steps}"
                raise Unfinished(message, Interrupted, np.asarray(carry.x), request) from None
            latents = np.asarray(carry.x)
        return latents if mask is None else np.where(mask[..., None], clean, latents)

    def _prepare(
        self, request: Request, prompt: tuple, noise, pixels, clean, mask, schedule: Schedule, decodes: bool
    ) -> dict[str, Callable]:
        """Everything that this request needs, compiled."""
        programs, solver = self.programs, solver_named(request.solver)
        begin, kind = programs.begin(solver), (solver, request.guided, mask is not None)
        now, then = schedule.pairs()[0]
        context, carry = jax.eval_shape(begin, *prompt, noise)
        arguments = (self.params["dit"], carry, now, then, context, np.float32(1), clean, mask)
        wanted = {
            "begin": ((solver,), begin, (*prompt, noise)),
            "advance": (kind, programs.advance(*kind), arguments),
        }
        if pixels is not None:
            wanted["encode"] = ((), programs.encode, (self.params["vae"], pixels))
        if decodes and noise.shape[1] < STREAM_FROM:
            wanted["decode"] = ((), programs.decode, (self.params["vae"], noise))
        return programs.prepare(wanted)

    def _decode(self, latents: np.ndarray, request: Request, progress: Progress) -> np.ndarray:
        """Pixels uint8 (B, T, H, W, 3). Raises Unfinished, which carries the latents."""
        vae = self.params["vae"]
        try:
            with progress.phase("decode"), self.programs.on_mesh():
                if latents.shape[1] >= STREAM_FROM:
                    pixels, finite = self.programs.decode_stream(vae, latents)
                else:
                    ready = self.programs.prepare({"decode": ((), self.programs.decode, (vae, latents))})
                    pixels, finite = ready["decode"](vae, self._spread(latents))
                if not bool(finite):
                    raise NonFinite(
                        f"Non-finite pixels in decoding ({self.dtype}). Try --dtype float32.{self._blame()}"
                    )
                return np.asarray(pixels)
        except KeyboardInterrupt:
            raise Unfinished("interrupted while decoding", Interrupted, latents, request) from None
        except NonFinite as error:
            raise Unfinished(str(error), NonFinite, latents, request) from error
        except Exception as error:
            full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
            message = f"decoding failed ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            raise Unfinished(message, OutOfMemory if full else DitVideoError, latents, request) from error

    def _clip(self, request: Request, index: int, frames: np.ndarray | None, latents: np.ndarray) -> Clip:
        model = self.model
        frames = np.zeros((0, request.height, request.width, 3), np.uint8) if frames is None else frames
        used = model.tokenizer.encode([request.prompts[index]], max_length=model.dit.text_len)
        metadata = {
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
            "frames_sha256": frames_sha256(frames) if len(frames) else None,
        }
        return Clip(frames, request.fps, metadata, latents)

    def _place(self, weights: Any) -> Any:
        """Weights on the device, or spread over the mesh as their logical axes say."""
        if self.mesh is None:
            return jax.device_put(weights)
        spread = {name: shardings(self.programs.abstract[name][1], self.mesh, self.rules) for name in weights}
        return jax.device_put(weights, spread)

    def _spread(self, batch: np.ndarray) -> Any:
        """A batch over the mesh where it divides, and whole where it does not."""
        if self.mesh is None:
            return batch
        spec = self.rules("batch")
        axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
        ways = int(np.prod([self.mesh.shape[axis] for axis in axes if axis]))
        return jax.device_put(batch, NamedSharding(self.mesh, spec if len(batch) % ways == 0 else P()))

    def _blame(self) -> str:
        """Which weights are not finite, if any: a sentence for a message."""
        broken = [name for name, tree in self.params.items() if not weights_finite(tree)]
        return f" The weights of {' and '.join(broken)} hold NaN or infinity." if broken else ""


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
