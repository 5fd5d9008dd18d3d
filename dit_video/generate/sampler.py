"""Noise becomes latents: one pass, windows that are blended at each step, or chunk after chunk.

All three take the same velocity (`programs.field`) and the same solver. What differs is what is on the device at once:
a pass holds a whole stream there; windows and chunks hold a piece of one fixed size, and the stream stays on the host.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dit_video.core.errors import Interrupted, NonFinite
from dit_video.core.log import Progress, log
from dit_video.core.types import Extra, Text
from dit_video.diffusion.cache import Reuse, empty
from dit_video.diffusion.experts import is_second
from dit_video.diffusion.noise import clip_noise
from dit_video.diffusion.sample import check_finite, iterate, start
from dit_video.diffusion.schedule import Instant, Schedule
from dit_video.diffusion.solvers import Carry, solver_named
from dit_video.diffusion.windows import Windows, blended
from dit_video.generate.encoded import Encoded
from dit_video.generate.mode import abilities
from dit_video.generate.programs import Given
from dit_video.generate.request import Request
from dit_video.generate.shots import OPENING, Shot, prompts_of, windows_of
from dit_video.generate.unfinished import Unfinished, unfinished
from dit_video.models.dit import Context, Control

if TYPE_CHECKING:
    from dit_video.generate.pipeline import VideoPipeline

Latents = Float[np.ndarray, "B T h w z"]


@dataclass
class Stream:
    """A shot on its way, and what is known of it beyond its conditions."""

    shot: Shot
    first: np.ndarray | None = None  # (B or 1, h, w, z): slot 0, known
    sink: np.ndarray | None = None  # the same: the latent that later pieces carry along
    sink_at: float = 0.0  # its rotary time


class Sampler:
    """Makes the latents of some clips of a request."""

    def __init__(
        self,
        pipe: "VideoPipeline",
        request: Request,
        which: list[int],
        encoded: Encoded,
        progress: Progress,
        callback: Callable | None = None,
        noise: Latents | None = None,
        reuse: list[Reuse] | None = None,
    ):
        """`which` clips, and what they are given; `noise` in place of what the seed gives; `reuse` as
        `diffusion.cache.reuses` plans it."""
        self.pipe, self.request, self.which, self.progress, self.callback = pipe, request, which, progress, callback
        self.programs, self.params, self.plan = pipe.programs_for(request.plan), pipe.params, request.plan
        self.solver, self.given_noise, self.reuse = solver_named(request.solver), noise, reuse
        self.schedule = Schedule(request.num_inference_steps, request.shift, self.solver.schedule)
        # With --strength only the last part of the steps is made.
        self.first = min(round((1 - request.given.strength) * self.schedule.steps), self.schedule.steps - 1)
        self.stride, self.can = pipe.model.vae.stride, abilities(pipe.model)
        self.shape = pipe.model.vae.latent_shape(1, request.height, request.width)[1:]
        self.encoded = encoded
        self.contexts: dict[tuple[str, int], Context] = {}  # by (denoiser, prompt); one denoiser's at a time
        passes = sum(self.passes(self.stream(shot)) for shot in request.shots(self.stride))
        self.done, self.total = 0, passes * (self.schedule.steps - self.first)
        parts = [range(first, first + len(which)) for first in range(which[-1] + 1, len(request.prompts), len(which))]
        self.text = pipe.texts.read(request.texts_of(which), progress, map(request.texts_of, parts))

    def run(self, shot: Shot, also: Any = None) -> Latents:
        """The latents of a shot. `also`: programs to compile beside those of its passes."""
        stream = self.stream(shot)
        if shot.ring or self.plan.mode == "window":
            return self.windows(stream, also)
        if self.plan.mode == "extend":
            return self.chunks(stream, also)
        return self.own(self.stretch(stream, 0, stream.shot.slots, prompts_of(stream.shot, self.plan)[0], also=also))

    def stream(self, shot: Shot) -> Stream:
        """A shot with what is known of it from the start."""
        if lead := self.encoded.references:  # slots of their own, in front, that are dropped
            noise = np.concatenate([OPENING + np.arange(lead), shot.noise])
            shot = replace(shot, slots=lead + shot.slots, noise=noise)
        stream = Stream(shot, first=None if shot.mid or shot.cut else self.encoded.first)
        if shot.prefix:
            stream.sink, stream.sink_at = self.encoded.opening, shot.zero - self.request.given.since / self.stride
        return stream

    def passes(self, stream: Stream) -> int:
        """How often all steps are made for a shot."""
        if stream.shot.ring or self.plan.mode == "window":
            return 1 + (len(windows_of(stream.shot, self.plan).starts) > 1 and self.opens(stream))
        return len(prompts_of(stream.shot, self.plan))

    def opens(self, stream: Stream) -> bool:
        """Whether a first window is made alone, for the sink of the others."""
        return "sink" in self.can and stream.sink is None and stream.first is None

    def own(self, x: Latents) -> Latents:
        """The clip's slots, without those of references."""
        return x[:, self.encoded.references :]

    # -- what a piece is given ----------------------------------------------------------------------------------------

    def prompt(self, number: int) -> tuple[Text, Any]:
        """A prompt of the time line: every clip's, then the negative ones; and what is looked at beside it."""
        clips, texts = len(self.which), len(self.request.texts)
        rows = [*range(number * clips, (number + 1) * clips), *range(texts * clips, len(self.text.rows))]
        image, spread = self.encoded.image, self.pipe.spread
        text = Text(spread(self.text.rows[rows]), spread(self.text.length[rows]))
        return text, None if image is None else spread(np.repeat(image, len(rows), 0))

    def turn(self, now: Instant) -> tuple[str, Any]:
        """Which denoiser makes the step that begins now, and its scale of guidance."""
        if is_second(now, self.pipe.model.boundary):
            return "dit_2", np.float32(self.request.guidance_scale_2)
        return "dit", np.float32(self.request.guidance_scale)

    def weights(self, part: str) -> Any:
        """Those of a denoiser; the first makes room for the second."""
        return self.params.with_room(part)

    def context(self, part: str, number: int) -> Context:
        """A prompt's keys and values in one of the denoisers."""
        if (part, number) not in self.contexts:
            self.contexts = {key: seen for key, seen in self.contexts.items() if key[0] == part}
            arguments = (self.weights(part), *self.prompt(number))
            ready = self.programs.prepare({"context": ((), self.programs.context, arguments)})
            self.contexts[part, number] = ready["context"](*arguments)
        return self.contexts[part, number]

    def around(self, begin: int, end: int) -> dict[str, Any]:
        """What is given beside the noise and for the control branch, of slots."""
        e, b = self.encoded, len(self.which)
        cut = {name: None if a is None else np.repeat(a[:, begin:end], b, 0) for name, a in
               (("beside", e.beside), ("control", e.control))}  # fmt: skip
        if e.control is not None:
            scale = np.full(len(self.pipe.model.dit.vace_layers), self.request.conditioning_scale, np.float32)
            cut["control"] = Control(cut["control"], scale)
        return cut

    def noise(self, stream: Stream, start: int, stop: int) -> Latents:
        """Of slots; beyond the end, of slots that will be dropped."""
        if self.given_noise is not None:
            return self.given_noise[:, start:stop]
        slots = [*stream.shot.noise[start:stop], *(OPENING + np.arange(max(0, stop - stream.shot.slots)))]
        each = (clip_noise(self.request.seed, self.which, 1, self.shape, int(slot)) for slot in slots)
        return np.concatenate(list(each), axis=1)

    def video(self, stream: Stream, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latents of the given footage at slots of a stream or nearest to them, and which of these it covers."""
        slots = places - stream.shot.zero
        inside = (slots >= 0) & (slots < len(self.encoded.video)) & ((places > 0) | (not stream.shot.cut))
        return self.encoded.video[slots.clip(0, len(self.encoded.video) - 1)], inside

    def start(self, stream: Stream, places: np.ndarray, noise: Latents) -> Latents:
        """Where slots start: noise, or with --strength the footage with noise on it."""
        if not self.first:
            return noise
        t = float(self.schedule.instants().flow[self.first])
        video, _ = self.video(stream, places)  # slots that will be dropped stand at t as well
        return ((1 - t) * video + t * noise).astype(np.float32)

    def known(self, stream: Stream, places: np.ndarray, tail: Latents | None = None) -> tuple[Any, Any]:
        """(latents, mask) of what is known of slots; (None, None) where nothing is. `tail`: of those in front."""
        e, b = self.encoded, len(self.which)
        clean = np.zeros((b, len(places), *self.shape), np.float32)
        mask = np.zeros(clean.shape[:4], bool)
        if e.known is not None:
            video, inside = self.video(stream, places)
            clean[:], mask[:] = video, e.known[(places - stream.shot.zero).clip(0, len(e.known) - 1)]
            mask[:, ~inside] = False
        if stream.first is not None:
            clean[:, places == 0], mask[:, places == 0] = stream.first[:, None], True
        prefix = stream.shot.prefix
        for i in np.flatnonzero(places < prefix):
            clean[:, i], mask[:, i] = e.history[len(e.history) - prefix + places[i]], True
        if tail is not None:
            clean[:, : tail.shape[1]], mask[:, : tail.shape[1]] = tail, True
        return (clean, mask) if mask.any() else (None, None)

    def extra(self, stream: Stream, places: np.ndarray, made: int = 0) -> Extra | None:
        """Pictures that belong to slots (but for the first ones, which are `made`), and the sink of a piece that begins
        mid-stream, never further away than training showed."""
        latents, at, shot, begin = [], [], stream.shot, int(places[0])
        for frame, latent in self.encoded.pictures:
            place = shot.zero + frame / self.stride - begin
            # a cut's own first slot is not of the clip
            if made - 1 < place <= len(places) - 1 and (not shot.cut or place + begin > 0):
                latents.append(np.broadcast_to(latent, (len(self.which), *self.shape)))
                at.append(place)
        if stream.sink is not None and (begin or shot.mid) and "sink" in self.can:
            latents.append(np.broadcast_to(stream.sink, (len(self.which), *self.shape)))
            at.append(max(stream.sink_at - begin, -self.plan.reach))
        if not latents:
            return None
        return Extra(np.stack(latents, 1), np.tile(np.float32(at), (len(self.which), 1)))

    # -- one pass -----------------------------------------------------------------------------------------------------

    def stretch(
        self, stream: Stream, begin: int, end: int, number: int, tail: Latents | None = None, also: Any = None
    ) -> Latents:
        """All steps of slots in one pass, with a prompt. `tail`: the first of them, known. `also`: programs to compile
        meanwhile."""
        places = np.arange(begin, end)
        fixed = tail.shape[1] if tail is not None else stream.shot.prefix if begin == 0 else 0
        x = self.start(stream, places, self.noise(stream, begin, end))
        clean, mask = self.known(stream, places, tail)
        if mask is not None:
            x = np.where(mask[..., None], clean, x)
        given = Given(None, None, clean, mask, self.extra(stream, places, fixed), **self.around(begin, end))
        part, _ = self.turn(self.schedule.pairs()[self.first][0])
        with self.progress.phase("compile"):  # nothing here keeps the first denoiser's weights when the second's come
            advance = self._prepare(self.weights(part), self.prompt(number), x, given, also or {})
        with self.progress.phase("denoise", self.schedule.steps - self.first) as tick, self.programs.on_mesh():
            carry = start(self.pipe.spread(jnp.asarray(x)), self.solver)
            if self.reuse:
                carry = carry._replace(velocity=empty(carry.x))
            x = self._drive(advance, carry, given, number, tick)
        return x if mask is None else np.where(mask[..., None], clean, x)

    def _prepare(self, dit: Any, prompt: tuple, x: Latents, given: Given, also: dict) -> Callable:
        """Everything that a pass needs, compiled at once; the step of it."""
        kind, (now, then) = (self.solver, self.request.guidance), self.schedule.pairs()[0]
        context = jax.eval_shape(self.programs.context, dit, *prompt)
        carry = jax.eval_shape(lambda x: start(x, self.solver), x)
        if self.reuse:
            carry = carry._replace(velocity=jax.eval_shape(empty, carry.x))
        given = given._replace(context=context, scale=np.float32(1))
        return self.programs.prepare({
            "context": ((), self.programs.context, (dit, *prompt)),
            "advance": (kind, self.programs.advance(*kind), (dit, carry, now, then, given, self._reuse(0))),
            **also,
        })["advance"]  # fmt: skip

    def _drive(self, advance: Callable, carry: Carry, given: Given, number: int, tick: Callable) -> Latents:
        """The steps, each by the denoiser whose turn it is. Raises NonFinite with the step, Unfinished when the user
        stops."""
        index = self.first

        def step(carry: Carry, now: Instant, then: Instant) -> tuple[Carry, Any]:
            nonlocal index
            old, (part, scale) = carry.x, self.turn(now)
            told = given._replace(context=self.context(part, number), scale=scale)
            carry, finite = advance(self.params[part], carry, now, then, told, self._reuse(index))
            if self.callback is not None:
                carry = carry._replace(x=self._tell(np.asarray(old), carry.x, now, then))
            index += 1
            self.done += 1
            return carry, finite

        try:
            for _, latest in iterate(step, carry, self.schedule, self.first):
                carry = latest
                tick()
        except NonFinite as error:
            raise NonFinite(f"{error}{self.pipe.blame()}") from None
        except KeyboardInterrupt:
            raise self._stopped(self.own(np.asarray(carry.x))) from None
        return np.asarray(carry.x)

    def _reuse(self, index: int) -> Reuse | None:
        """What a step is told. The first that is made (with --strength not that of the schedule) has no velocity to
        take again."""
        told = self.reuse[index] if self.reuse else None
        return told._replace(again=np.bool_(False)) if told and index == self.first else told

    def _stopped(self, latents: Latents) -> Unfinished:
        steps = f"step {self.done}/{self.total}"
        error = Unfinished(f"interrupted at {steps}", Interrupted, latents, self.request)
        error.steps = steps
        return error

    def _tell(self, old: np.ndarray, x: Any, now: Instant, then: Instant) -> Any:
        """Calls back; what it returns may replace the latents, or stop the run. `data`: what they are on the way to,
        by the slope of the last step."""
        latents, old = self.own(np.asarray(x)), self.own(old)
        data = latents - then.flow / (then.flow - now.flow) * (latents - old)
        tell = cast(Callable, self.callback)
        seen = {"latents": latents, "data": data, "clips": self.which}
        answer = tell(self.pipe, self.done, float(now.model) * 1000, seen) or {}
        if answer.get("stop"):
            raise KeyboardInterrupt
        if "latents" not in answer:
            return x
        lead = np.asarray(x)[:, : self.encoded.references]
        return np.concatenate([lead, np.asarray(answer["latents"], np.float32)], 1)

    # -- chunk after chunk --------------------------------------------------------------------------------------------

    def chunks(self, stream: Stream, also: Any = None) -> Latents:
        """Each chunk goes on from the last slots of the one before. The last is made whole and cut."""
        slots, length, shared = stream.shot.slots, self.plan.window, self.plan.overlap
        numbers = prompts_of(stream.shot, self.plan)
        if slots <= length:
            return self.stretch(stream, 0, slots, *numbers, also=also)
        out = np.zeros((len(self.which), slots, *self.shape), np.float32)
        end = 0
        try:
            for n, number in enumerate(numbers, 1):
                begin = max(0, end - shared)
                log.debug("chunk %d of %d", n, len(numbers))
                part = self.stretch(stream, begin, begin + length, number, out[:, begin:end] if end else None, also)
                part = part[:, end - begin : slots - begin]
                out[:, end : end + part.shape[1]] = part
                if not end and stream.sink is None and not stream.shot.mid:
                    stream.sink = out[:, 0]
                end += part.shape[1]
        except Unfinished as error:
            error.latents = np.concatenate([out[:, :end], error.latents[:, end - begin :]], 1)[:, :slots]
            raise
        except (Exception, KeyboardInterrupt) as error:
            if not end:
                raise
            raise unfinished(error, "sampling", out[:, :end], self.request) from error
        return out

    # -- windows ------------------------------------------------------------------------------------------------------

    def windows(self, stream: Stream, also: Any = None) -> Latents:
        """All windows at each step; each piece of the stream goes on as soon as no other window looks at it."""
        windows, numbers = windows_of(stream.shot, self.plan), prompts_of(stream.shot, self.plan)
        if len(windows.starts) == 1:  # the same numbers with fewer copies
            return self.stretch(stream, 0, stream.shot.slots, *numbers, also=also)
        self._open(stream, numbers[0])
        return self.together(stream, windows, numbers, also)

    def together(self, stream: Stream, windows: Windows, numbers: list[int], also: Any = None) -> Latents:
        """The steps of windows, each with its prompt, when it is known what they carry along."""
        x = np.zeros((len(self.which), stream.shot.slots, *self.shape), np.float32)
        for slot in range(stream.shot.slots):
            x[:, slot : slot + 1] = self.start(stream, np.array([slot]), self.noise(stream, slot, slot + 1))
        given = [self._window(stream, windows, i, x) for i in range(len(windows.starts))]
        states: list[Any] = [None] * len(windows.starts)
        kept: list[Any] = []
        steps = range(self.first, self.schedule.steps)

        def told(index: int) -> tuple[str, list[Given]]:
            part, scale = self.turn(self.schedule.pairs()[index][0])
            contexts = [self.context(part, number) for number in numbers]
            return part, [one._replace(context=c, scale=scale) for one, c in zip(given, contexts, strict=True)]

        with self.progress.phase("compile"), self.programs.on_mesh():
            part, first = told(self.first)
            self._ready(windows, x, self.params[part], first, also or {})
        try:
            with self.progress.phase("denoise", len(steps)) as tick, self.programs.on_mesh():
                for index in steps:
                    old = x.copy() if self.callback else None
                    part, now = told(index)
                    self._step(windows, x, self.params[part], now, states, kept, index)
                    if old is not None:
                        x[:] = self._tell(old, x, *self.schedule.pairs()[index])
                    self.done += 1
                    tick()
        except NonFinite as error:
            raise NonFinite(f"{error}{self.pipe.blame()}") from None
        except KeyboardInterrupt:
            raise self._stopped(x) from None
        for i in range(len(windows.starts)):
            places = windows.places(i)
            if given[i].mask is not None:
                x[:, places] = np.where(given[i].mask[..., None], given[i].clean, x[:, places])
        return x

    def _open(self, stream: Stream, number: int) -> None:
        """The first window alone, with its prompt, for its first latent: known from then on, and carried along by the
        others."""
        shot = stream.shot
        if stream.sink is not None or "sink" not in self.can:
            return
        if self.opens(stream):
            alone = (
                Shot(self.plan.window, OPENING + np.arange(self.plan.window), 0, shot.prompts) if shot.ring else shot
            )
            made = self.stretch(Stream(alone), 0, min(self.plan.window, alone.slots), number)
            stream.sink = made[:, 0]
        else:
            stream.sink = stream.first
        if shot.ring:
            stream.sink_at = -float(self.plan.reach)
        elif "first" in self.can:
            stream.first = stream.sink

    def _window(self, stream: Stream, windows: Windows, i: int, x: Latents) -> Given:
        """What window i is given; known positions are put into `x`."""
        places = windows.places(i)
        clean, mask = self.known(stream, places)
        if mask is not None:
            x[:, places] = np.where(mask[..., None], clean, x[:, places])
        return Given(None, None, clean, mask, self.extra(stream, places))

    def _ready(self, windows: Windows, x: Latents, dit: Any, given: list[Given], also: dict) -> None:
        """Compiles what a step calls: of each kind of window (what is known, what is shown) and each size of piece."""
        (now, then), guidance = self.schedule.pairs()[0], self.request.guidance
        velocity, finish = self.programs.velocity(guidance), self.programs.finish(self.solver)
        ends = (*windows.starts[1:], windows.slots)
        for i, one in enumerate(given):
            size = windows.slots if windows.ring else ends[i] - windows.starts[i]  # of a ring all comes at once
            v = jax.ShapeDtypeStruct((len(x), size, *self.shape), np.float32)
            carry = jax.eval_shape(lambda x: start(x, self.solver), v)
            self.programs.prepare({
                "velocity": ((guidance,), velocity, (dit, x[:, windows.places(i)], now, one)),
                "finish": ((self.solver,), finish, (carry, now, then, v)),
                **also,
            })  # fmt: skip

    def _step(
        self, windows: Windows, x: Latents, dit: Any, given: list[Given], states: list[Any], kept: list[Any], index: int
    ) -> None:
        """One step of the whole stream, in place. `states`: what the solver remembers of each piece; `kept`: the last
        velocities, when steps are cached."""
        now, then = self.schedule.pairs()[index]
        reuse, guidance = self._reuse(index), self.request.guidance
        program, finish = self.programs.velocity(guidance), self.programs.finish(self.solver)

        def velocities():
            for i, one in enumerate(given):
                arguments = (dit, x[:, windows.places(i)], now, one)
                ready = self.programs.prepare({"velocity": ((guidance,), program, arguments)})
                yield np.asarray(ready["velocity"](*arguments))

        again = reuse is not None and bool(reuse.again)
        pieces = [(begin, reuse.scale * v) for begin, v in kept] if again else blended(velocities(), windows)
        for n, (begin, v) in enumerate(pieces):
            part = x[:, begin : begin + v.shape[1]]
            state = start(jnp.asarray(part), self.solver).solver if index == self.first else states[n]
            arguments = (Carry(part, state, ()), now, then, v)
            ready = self.programs.prepare({"finish": ((self.solver,), finish, arguments)})
            carry, finite = ready["finish"](*arguments)
            check_finite(finite, index + 1, self.schedule.steps)
            part[:] = np.asarray(carry.x)
            states[n] = None if index + 1 == self.schedule.steps else jax.tree.map(np.asarray, carry.solver)
            if self.reuse:
                kept[n : n + 1] = [(begin, v)]
