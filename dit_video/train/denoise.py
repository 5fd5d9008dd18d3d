"""The denoiser's objective: regress the velocity of the unknown positions; the text encoder learns along."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray

from dit_video.core.errors import BadInput
from dit_video.core.log import log
from dit_video.core.mesh import Rules
from dit_video.data.latents import EncodedStream, LatentReader
from dit_video.data.loader import Reader
from dit_video.data.pool import Beat, Pool, PoolStream, unheard
from dit_video.diffusion.flow import RectifiedFlow, flow_loss, training_time
from dit_video.models.dit import DiT, DiTConfig
from dit_video.models.given import takes_frames
from dit_video.models.image_encoder import ImageConfig
from dit_video.models.text import TextConfig, TextEncoder
from dit_video.models.tokenizer import Tokenizer, train
from dit_video.models.vae import VAE, VAEConfig
from dit_video.train.conditions import Batch, Conditions, Samples, assemble
from dit_video.train.encode import encode_clips
from dit_video.train.experiment import Experiment
from dit_video.train.given import encode_frames, look_at
from dit_video.train.sampled import Shown, as_trained, say_rate, shown
from dit_video.weights.encoder import encoder_digest
from dit_video.weights.folder import load_model
from dit_video.weights.model import Defaults, Model, scheduler
from dit_video.weights.runs import Run, load_tokenizer, load_vae, vae_unfinished

LEAST = 0.05  # of `RectifiedFlow.least` where data is put out, or errors at time zero would weigh without bound


@dataclass(frozen=True)
class Crop:
    """Latent frames that a batch is cut to, and the share of batches that are. 5 slots are 17 frames; 1 is a still."""

    slots: int = 5
    share: float = 1.0


class Base(NamedTuple):
    """What the denoiser stands on and does not learn."""

    vae: VAEConfig
    vae_params: Any
    tokenizer: Tokenizer
    start: Model | None  # `--init`
    prompts: tuple[str, ...] = ()
    image: ImageConfig | None = None  # of an encoder of given pictures
    image_params: Any = None


def check_trainable(start: Model, name: str) -> None:
    """Raises BadInput for a model of a structure that is not trained, saying what can be done."""
    if start.dit.vace_layers:
        raise BadInput(
            f"{name} has a control branch (VACE), and training shows it no controls. Fine-tune the text-to-video model "
            "of its size; generate --lora merges the adapters into this one."
        )
    takes_frames(start.dit, start.vae, name)


def check_joint(start: Model, name: str) -> None:
    """Raises BadInput for a model that is fine-tuned (`FineTune`), but not together with its text encoder."""
    parts = {"two denoisers": start.dit_2, "given frames as further channels": start.dit.in_channels > start.vae.z}
    if has := [what for what, there in parts.items() if there]:
        raise BadInput(
            f"{name} has {' and '.join(has)}: it is fine-tuned with its text encoder as it is, by "
            "experiments/wan_lora.py or (image-to-video) experiments/wan_i2v_lora.py."
        )


def check_meaning(dit: DiTConfig, start: DiTConfig, name: str) -> None:
    """Raises BadInput where the weights of the model `start` would mean another thing in `dit`."""
    fields = ("heads", "head_dim", "patch", "predicts", "text_len", "rope_theta", "eps")
    differ = [key for key in fields if getattr(dit, key) != getattr(start, key)]
    if differ:
        theirs = " ".join(f"--objective.dit.{key} {getattr(start, key)}" for key in differ)
        raise BadInput(
            f"objective.dit has another {' and '.join(differ)} than {name}, whose weights would mean another thing in "
            f"it: take its own ({theirs}), or start without --init"
        )


@dataclass(frozen=True)
class Denoise:
    """Joint training of the denoiser and the text encoder on latents of a frozen VAE.

    `dit` and `text` may be left out (None) when the run starts from a model: theirs are taken.
    """

    dit: DiTConfig | None = None
    text: TextConfig | None = None
    path: RectifiedFlow = RectifiedFlow()
    conditions: Conditions = Conditions()
    # A model that is given the last frame too sees clips whole: their buckets say how long they are.
    crops: tuple[Crop, ...] = (Crop(5, 0.75), Crop(9, 0.15), Crop(1, 0.10))
    pool: Pool = Pool()
    tokens: int = 48  # rows of text in training; longer captions are cut, and said
    # "board", a model, or a folder with a tokenizer; None: that of `init`, else a new one. With `init` no other.
    tokenizer: str | None = None
    tokenizer_captions: int = 8000  # captions that a new tokenizer is trained on
    defaults: Defaults | None = None  # size, steps and guidance that the model is sampled with; None: as the clips are

    def resolve(self, experiment: Experiment, run: Run) -> tuple["Denoise", Base]:
        """The objective with its sizes filled in, and the VAE and the tokenizer.

        A run that exists brings its own; a new one takes those of `experiment.vae` and `experiment.init` (else the
        weights on board, and a tokenizer trained on the captions) and keeps a copy. Raises `BadInput` when sizes do not
        fit one another.
        """
        start = load_model(experiment.init) if experiment.init and not run.has_checkpoint() else None
        if start is not None and experiment.init is not None:
            check_trainable(start, experiment.init)
            check_joint(start, experiment.init)
        # What a start without a checkpoint has left may be of another --vae: the first process makes it anew
        if run.has_base() and (run.has_checkpoint() or jax.process_index()):
            config, params, tokenizer = run.load_base()
        else:
            if experiment.vae or start is None:
                config, params = load_vae(experiment.vae)
                if experiment.vae and vae_unfinished(experiment.vae):
                    raise BadInput(
                        f"--vae {experiment.vae}: this run of a VAE has not come to its end, where the mean and std of "
                        "its latents are measured. Run its own line again until it says it has ended."
                    )
            else:
                config, params = start.vae, start.params["vae"]
            tokenizer = start.tokenizer if start else self._tokenizer(experiment)
            run.save_base(config, params, tokenizer)
        dit, text = self.dit or (start and start.dit), self.text or (start and start.text)
        dit, text = dit or run.resolved("dit"), text or run.resolved("text")
        if dit is None or text is None:
            raise BadInput("objective.dit and objective.text are empty and there is no --init MODEL to take them from")
        if start is not None:
            check_meaning(dit, start.dit, str(experiment.init))
            self._check_tokenizer(start, str(experiment.init))
        if dit.text_dim != text.width:
            raise BadInput(
                f"dit.text_dim={dit.text_dim}, but the text encoder's width is {text.width}: they must agree"
            )
        if text.vocab < len(tokenizer):
            raise BadInput(f"text.vocab={text.vocab}, but the tokenizer has {len(tokenizer)} pieces")
        if dit.in_channels != config.z or dit.out_channels != config.z:
            raise BadInput(
                f"dit.in_channels={dit.in_channels}, out_channels={dit.out_channels}, but the VAE has {config.z}"
            )
        for bucket in experiment.buckets:
            bucket.check_latents(config.stride, config.factor, dit.patch)
        if not any(c.share > 0 for c in self.crops):
            raise BadInput("objective.crops: one share must be positive")
        filled = replace(self, dit=dit, text=text, defaults=self._sampled(experiment, run, start, config.stride))
        return filled, Base(config, params, tokenizer, start, experiment.prompts)

    def _sampled(self, experiment: Experiment, run: Run, start: Model | None, stride: int) -> Defaults:
        """As the experiment says, or as the run stored it, or as the clips are; with a warning where these differ."""
        what = self.shown(experiment, stride)
        defaults = self.defaults or (run.resolved("defaults") if run.has_checkpoint() else None)
        if defaults is None:
            # A curve for the cache was measured with other weights than the run's, and what it learns has its own shift
            return as_trained(start and replace(start.defaults, cache=(), shift=None), what)
        say_rate(what, defaults.fps, "this run", "Give --objective.defaults.fps theirs, or other clips.")
        if (size := (defaults.height, defaults.width)) not in what.sizes:
            log.warning(
                "objective.defaults has %dx%d (height x width), and the buckets are %s: clips will be made at a size "
                "that training did not show. Give objective.defaults one of theirs.",
                *size, ", ".join("{}x{}".format(*one) for one in what.sizes),
            )  # fmt: skip
        return defaults

    def shown(self, experiment: Experiment, stride: int) -> Shown:
        """What training shows, to a VAE that compresses time by `stride`."""
        return shown(experiment.data, experiment.buckets, [(crop.slots, crop.share) for crop in self.crops], stride)

    def _check_tokenizer(self, start: Model, name: str) -> None:
        if self.tokenizer is not None and load_tokenizer(self.tokenizer).model != start.tokenizer.model:
            raise BadInput(
                f"objective.tokenizer={self.tokenizer} is another than that of {name}, whose weights know the pieces "
                "of their own. Give --objective.tokenizer none."
            )

    def _tokenizer(self, experiment: Experiment) -> Tokenizer:
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer)
        assert self.text is not None, "without --init the text encoder's sizes are given"
        captions = experiment.data.open(experiment.buckets).captions(self.tokenizer_captions)
        log.info("training a tokenizer of %d pieces on %d captions", self.text.vocab, len(captions))
        return train(captions, self.text.vocab)

    def modules(self, rules: Rules, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"dit": DiT(self.dit, rules, rngs=rngs), "text": TextEncoder(self.text, rules, rngs=rngs)}

    def initial(self, base: Base) -> dict[str, Any] | None:
        """The weights of `--init`."""
        return base.start and {name: base.start.params[name] for name in ("dit", "text")}

    def frozen(self, base: Any, mesh: Any, rules: Rules) -> None:
        """Nothing: all that the loss uses is learnt."""

    def loss(
        self, modules: dict[str, Any], batch: Batch, key: PRNGKeyArray, rules: Rules = Rules()
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Flow matching with a time per position (known ones have time zero and bear no loss)."""
        time_key, noise_key = jax.random.split(key)
        data = batch.latents.astype(jnp.float32)
        noise = jax.random.normal(noise_key, data.shape)
        time = training_time(self.path.sample_time(time_key, len(data)), batch.known)
        x = self.path.add_noise(data, noise, time.field(data.shape))
        text = modules["text"](batch.ids, batch.length)
        seen = x if batch.beside is None else jnp.concatenate([x, batch.beside], -1)
        velocity = modules["dit"](seen, time, text, batch.extra, image=batch.image)
        least = max(self.path.least, LEAST) if self.dit.predicts == "data" else self.path.least
        return flow_loss(velocity, self.path.velocity_target(data, noise), time, least), {}

    def stream(self, experiment: Experiment, base: Base, held_out: bool, beat: Beat = unheard) -> "LatentStream":
        reader = experiment.data.open(experiment.buckets, held_out)
        return LatentStream(self, experiment, base, reader, held_out, beat)

    def model(self, params: dict[str, Any], base: Base) -> Model:
        """What is sampled from and what leaves."""
        return Model(
            dit=self.dit,
            vae=base.vae,
            text=self.text,
            params={"dit": params["dit"], "vae": base.vae_params, "text": params["text"]},
            tokenizer=base.tokenizer,
            scheduler=scheduler(self.path.shift),
            defaults=self.defaults or Defaults(),
        )

    def finish(self, params: dict[str, Any], experiment: Experiment, base: Base, run: Run) -> None:
        """Nothing is missing: VAE and tokenizer were kept from the start."""


class LatentStream:
    """Batches for the denoiser: clips of a pool, or encoded before, cut and conditioned. State: that of these."""

    def __init__(
        self,
        objective: Denoise,
        experiment: Experiment,
        base: Base,
        reader: Reader,
        held_out: bool,
        beat: Beat = unheard,
    ):
        self.objective, self.base, self.reader = objective, base, reader
        process, processes = experiment.part()
        self.eos = int(base.tokenizer.encode([""]).ids[0, 0])
        self.said: set[str] = set()
        pool, mix = objective.pool, objective.conditions
        if held_out:  # just enough, each clip once, every caption shown
            pool = replace(pool, clips=experiment.batch * experiment.eval_batches, reuse=1.0)
            mix = replace(mix, drop_caption=0.0)
        self.mix, self.held_out = mix, held_out
        self.given = takes_frames(objective.dit, base.vae, "objective.dit")
        self.last = self.given and bool(objective.dit.image_len)
        self.process, self.processes = process, processes
        batch = experiment.batch // processes
        self.pool: PoolStream | EncodedStream
        if isinstance(reader, LatentReader):
            reader.check_vae(encoder_digest(base.vae, base.vae_params), experiment.vae or experiment.init or "board")
            self.pool = EncodedStream(
                reader, self._normalise, self._tokenize, batch, experiment.seed, process, processes, pool.threads
            )
        else:
            # Encoding runs on this process's devices: a pool belongs to its process.
            local = jax.local_devices()
            vae = base.vae.on(local[0].platform)
            self.graph = nnx.split(nnx.eval_shape(lambda: VAE(vae, rngs=nnx.Rngs(0))), nnx.Param)[0]
            local = local if pool.chunk % len(local) == 0 else local[:1]
            mesh = jax.make_mesh((len(local),), ("clips",), axis_types=(AxisType.Auto,), devices=local)
            self.split = NamedSharding(mesh, P("clips"))
            self.params = jax.device_put(base.vae_params, NamedSharding(mesh, P()))
            self.pool = PoolStream(
                reader, self._encode, self._tokenize, pool, batch, experiment.seed, process, processes, len(local), beat
            )

    def state(self) -> dict[str, Any]:
        return self.pool.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.pool.restore(state)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        bucket, clips, rng = next(self.pool)
        frames = self.reader.buckets[bucket].frames
        crops = self.objective.crops[:1] if self.held_out else self.objective.crops
        shares = np.array([c.share for c in crops]) if len(crops) > 1 else np.ones(1)
        slots = crops[int(rng.choice(len(crops), p=shares / shares.sum()))].slots
        whole = 1 + (frames - 1) // self.base.vae.stride
        slots = whole if self.last else min(slots, whole)
        samples = Samples(*clips)
        # Shapes come from `rng`, which all processes share; rows from one of their own.
        rows = rng if self.processes == 1 else rng.spawn(self.processes)[self.process]
        return assemble(samples, rng, self.mix, slots, self.eos, rows, self.base.vae.stride)

    def _encode(self, arrays: Any, bucket: int, numbers: np.ndarray) -> tuple[Any, ...]:
        arrays, numbers = jax.device_put((arrays, numbers), self.split)
        encoded = encode_clips(self.graph, self.params, arrays, bucket, self.reader, numbers)
        clips, pictures = (self._normalise(np.asarray(mean)) for mean, _ in encoded)
        if not self.given:
            return clips, pictures
        beside, frames = encode_frames(self.graph, self.params, arrays, bucket, self.reader, self.last)
        image = None if self.base.image is None else look_at(self.base.image, self.base.image_params, frames)
        return clips, pictures, np.asarray(beside), image

    def _normalise(self, z: np.ndarray) -> np.ndarray:
        """As `VAE.normalize`, on the host."""
        vae = self.base.vae
        mean, std = vae.latents_mean or (0.0,) * vae.z, vae.latents_std or (1.0,) * vae.z
        return (z - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)

    def _tokenize(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens = self.base.tokenizer.encode(captions, max_length=self.objective.tokens)
        cut = [d for d in tokens.dropped if d]
        if cut and "cut" not in self.said:
            self.said.add("cut")
            log.warning("captions longer than %d pieces are cut; the first loses %r", self.objective.tokens, cut[0])
        ids = np.zeros((len(captions), self.objective.tokens), np.int32)
        width = min(tokens.ids.shape[1], self.objective.tokens)
        ids[:, :width] = tokens.ids[:, :width]
        return ids, tokens.length.astype(np.int32)
