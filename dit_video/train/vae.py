"""The VAE's objective (reconstruction, its differences in time and space, a little KL) and the latents' statistics."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from dit_video.core.errors import BadInput
from dit_video.core.mesh import Rules
from dit_video.core.types import Latent, Video
from dit_video.data.loader import Loader, Reader, generator
from dit_video.data.pool import Beat, unheard
from dit_video.models.vae import VAE, VAEConfig
from dit_video.train.experiment import Experiment
from dit_video.weights.runs import Run, load_vae, save_vae


def kl(mean: Latent, logvar: Latent) -> Float[Array, ""]:
    """KL(N(mean, exp logvar) || N(0, 1)), in nats a latent number (Kingma & Welling 2013, appendix B)."""
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def temporal_difference(a: Video, b: Video) -> Float[Array, ""]:
    """L1 between the changes from frame to frame; zero for stills."""
    if a.shape[1] == 1:
        return jnp.zeros(())
    return jnp.mean(jnp.abs(jnp.diff(a - b, axis=1)))


def gradient_difference(a: Video, b: Video, scales: int) -> Float[Array, ""]:
    """L1 between horizontal and vertical slopes, at full, half, quarter, ... size."""
    error, total = a - b, jnp.zeros(())
    for scale in range(scales):
        if scale:
            error = halve(error)
        total += jnp.mean(jnp.abs(jnp.diff(error, axis=2))) + jnp.mean(jnp.abs(jnp.diff(error, axis=3)))
    return total / scales


@dataclass(frozen=True)
class VAEObjective:
    """Weights of the terms. Every term is a mean over its own numbers, so they do not depend on sizes: a weight of 1e-5
    for KL is what 4e-4 is where sums over pixels (41 times as many as latents) and sums over latents are added.

    Two terms are for the denoiser that learns the latents, not for the reconstruction. `equivariance` (Kouzelis et al.
    2025, EQ-VAE, arXiv 2502.09509) decodes the halved latents and wants the halved video: without it neighbouring
    latents share so little that their mean means nothing. `jitter` adds noise to what is decoded, of a size that is
    drawn for each clip, normal with this deviation in units of the latents' own: a sampler's latents are never exact.
    """

    l1: float = 0.4
    l2: float = 8.0
    temporal: float = 0.3
    gradient: float = 0.3
    scales: int = 3
    kl: float = 1e-5
    equivariance: float = 0.0
    jitter: float = 0.0

    def loss(
        self, graph: nnx.GraphDef[VAE], params: Any, video: Video, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """`terms` of the VAE that graph and parameters make."""
        return self.terms(nnx.merge(graph, params), video, key)

    def terms(self, vae: VAE, video: Video, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Encodes, samples, decodes. Returns the weighted sum and its terms (and PSNR in dB of the unclipped video)."""
        mean, logvar = vae.encode(video)
        noise_key, size_key = jax.random.split(key)
        std = jnp.exp(0.5 * logvar)
        if self.jitter:
            size = self.jitter * jax.random.normal(size_key, (len(mean), 1, 1, 1, 1))
            std = jnp.hypot(std, size * jax.lax.stop_gradient(jnp.std(mean, axis=(0, 1, 2, 3))))
        z = mean + std * jax.random.normal(noise_key, mean.shape, mean.dtype)
        out = vae.decode(z, clip=False)
        terms = self._errors(out, video) | {"kl": kl(mean, logvar)}
        if self.equivariance:
            # Of latents with an odd side the last row has no half.
            height, width = (2 * (video.shape[i] // z.shape[i]) * (z.shape[i] // 2) for i in (2, 3))
            small = self._errors(vae.decode(halve(z), clip=False), halve(video[:, :, :height, :width]))
            terms["equivariance"] = sum(getattr(self, name) * value for name, value in small.items())
        total = sum(getattr(self, name) * value for name, value in terms.items())
        psnr = -10 * jnp.log10(terms["l2"] / 4 + 1e-12)  # pixels span 2
        return total, terms | {"psnr": psnr}

    def _errors(self, out: Video, video: Video) -> dict[str, Float[Array, ""]]:
        error = out - video
        return {
            "l1": jnp.mean(jnp.abs(error)),
            "l2": jnp.mean(jnp.square(error)),
            "temporal": temporal_difference(out, video),
            "gradient": gradient_difference(out, video, self.scales),
        }


def halve(x: Float[Array, "n T H W c"]) -> Float[Array, "n T h w c"]:
    """Means of 2x2 neighbours in every frame; an odd last row or column is left out."""
    n, t, h, w, c = x.shape
    return x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, t, h // 2, 2, w // 2, 2, c).mean((3, 5))


def latent_statistics(
    encode: Callable[[Any], Any], clips: Iterable[Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every latent channel over all positions of all clips, for `VAEConfig`.
    `encode` gives the raw means of a batch of clips; the sums are kept in float64."""
    count, total, squares = 0, 0.0, 0.0
    for video in clips:
        z = np.asarray(encode(video), np.float64)
        z = z.reshape(-1, z.shape[-1])
        count, total, squares = count + len(z), total + z.sum(0), squares + np.square(z).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    return tuple(float(x) for x in mean), tuple(float(x) for x in std)


@dataclass(frozen=True)
class Cut:
    """What a batch is cut to: the first `frames` frames and `size` x `size` pixels (0: whole frames). Of `tries` places
    that with most contrast is taken, because most of a plain scene is plain. `clips`: part of the batch that is used,
    so that steps on large clips cost what steps on small ones do; at least what devices and `accumulate` want."""

    frames: int = 9
    size: int = 32
    tries: int = 3
    clips: float = 1.0
    share: float = 1.0

    def used(self, count: int, together: int) -> int:
        """Clips of a batch of `count`: a multiple of `together`, or all."""
        return min(count, -(-max(1, round(count * self.clips)) // together) * together)


@dataclass(frozen=True)
class Reconstruct:
    """Training of a VAE. Frame 0 of every clip is encoded as an image is, so no still images are needed beside."""

    vae: VAEConfig | None = None  # None: that of `init`
    weights: VAEObjective = VAEObjective()
    cuts: tuple[Cut, ...] = (Cut(9, 32, share=0.8), Cut(17, 0, clips=0.25, share=0.2))
    statistics: int = 512  # clips that the latents' mean and std are measured on at the end

    def resolve(self, experiment: Experiment, run: Run) -> tuple["Reconstruct", Any]:
        """The config filled in, and the parameters to start from (None: random, or a checkpoint's, which needs no
        `init` any more). Raises `BadInput` without a config, for `vae`, and for cuts that the buckets do not hold."""
        if experiment.vae is not None:
            raise BadInput(f"--vae {experiment.vae}: a VAE starts from --init. Give --init {experiment.vae} instead.")
        config, params = self.vae, None
        if run.has_checkpoint():
            config = self.vae or run.resolved("vae")
        elif experiment.init is not None:
            config, params = load_vae(experiment.init)
        if config is None:
            raise BadInput("objective.vae is empty and there is no --init MODEL to take it from")
        config = replace(config, latents_mean=(), latents_std=())
        if self.vae is not None:
            if replace(config, conv=self.vae.conv, dtype=self.vae.dtype) != self.vae:
                raise BadInput("objective.vae differs from the VAE of --init; leave it empty to take that one")
            config = self.vae
        for cut in self.cuts:
            config.latent_shape(cut.frames, cut.size or config.factor, cut.size or config.factor)
            for b in experiment.buckets:
                if cut.frames > b.frames or cut.size > min(b.height, b.width):
                    raise BadInput(f"objective.cuts: {cut} is larger than the bucket {b}")
                if self.weights.equivariance and (cut.size or min(b.height, b.width)) < 2 * config.factor:
                    raise BadInput(f"objective.weights.equivariance halves the latents, and of {cut} there are too few")
        return replace(self, vae=config.on(jax.devices()[0].platform)), params

    def modules(self, rules: Rules, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"vae": VAE(self._config(), rules, rngs=rngs)}

    def initial(self, base: Any) -> dict[str, Any] | None:
        return None if base is None else {"vae": base}

    def frozen(self, base: Any, mesh: Any, rules: Rules) -> None:
        """Nothing: all that the loss uses is learnt."""

    def loss(
        self, modules: dict[str, Any], batch: Video, key: PRNGKeyArray, rules: Rules = Rules()
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        return self.weights.terms(modules["vae"], batch, key)

    def stream(self, experiment: Experiment, base: Any, held_out: bool, beat: Beat = unheard) -> "ClipStream":
        return ClipStream(self, experiment, experiment.data.open(experiment.buckets, held_out), held_out)

    def model(self, params: dict[str, Any], base: Any) -> VAE:
        graph, state = nnx.split(nnx.eval_shape(lambda: VAE(self._config(), rngs=nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, params["vae"])
        return nnx.merge(graph, state)

    def finish(self, params: dict[str, Any], experiment: Experiment, base: Any, run: Run) -> None:
        """Measures the latents and writes `vae/`, which a denoiser's run takes with `--vae`."""
        vae = self.model(params, base)
        graph, state = nnx.split(vae)
        encode = jax.jit(lambda state, video: nnx.merge(graph, state).encode(video)[0])
        whole = replace(self, cuts=(Cut(min(b.frames for b in experiment.buckets), 0),))
        clips = ClipStream(whole, experiment, experiment.data.open(experiment.buckets), held_out=False)
        count = max(1, self.statistics // experiment.batch)
        mean, std = latent_statistics(lambda v: encode(state, v), (next(clips) for _ in range(count)))
        save_vae(run.path / "vae", replace(self._config(), latents_mean=mean, latents_std=std), params["vae"])

    def _config(self) -> VAEConfig:
        assert self.vae is not None, "resolve() fills it in"
        return self.vae


class ClipStream:
    """Batches of pixels, cut. State: that of the loader and the number of batches."""

    def __init__(self, objective: Reconstruct, experiment: Experiment, reader: Reader, held_out: bool):
        process, processes = experiment.part()
        self.reader, self.cuts = reader, objective.cuts[:1] if held_out else objective.cuts
        self.loader = Loader(reader, experiment.batch // processes, process=process, processes=processes)
        self.key, self.count, self.together = (experiment.seed, process, int(held_out)), 0, experiment.clips_together()

    def state(self) -> dict[str, Any]:
        return {"loader": self.loader.state(), "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        self.loader.restore(state["loader"])
        self.count = int(state["count"])

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        # The kind of cut depends on the count alone: every process takes the same shapes.
        shares = np.array([c.share for c in self.cuts])
        cut = self.cuts[int(generator(self.key[0], self.count).choice(len(self.cuts), p=shares / shares.sum()))]
        rng = generator(*self.key, self.count)
        self.count += 1
        clips = next(self.loader)
        count = len(clips.draws)
        use = cut.used(count, self.together)
        arrays = jax.tree.map(lambda x: x[:use], clips.arrays)
        bucket = self.reader.buckets[clips.bucket]
        size = (bucket.height, bucket.width)
        free = (use, cut.tries)
        places = [rng.integers(0, s - cut.size + 1 if cut.size else 1, free) for s in size]
        video = _cut(self.reader, clips.bucket, cut, arrays, np.stack(places, -1).astype(np.int32))
        return np.asarray(video)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _cut(reader: Reader, bucket: int, cut: Cut, arrays: Any, places: Any) -> Video:
    video = reader.frames(arrays, bucket)[:, : cut.frames]
    if not cut.size:
        return video

    def one(clip, tries):
        shape = (cut.frames, cut.size, cut.size, 3)
        crops = jnp.stack([jax.lax.dynamic_slice(clip, (0, *tries[n], 0), shape) for n in range(cut.tries)])
        return crops[jnp.argmax(jnp.std(crops, axis=(1, 2, 3, 4)))]

    return jax.vmap(one)(video, places)
