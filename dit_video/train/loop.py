"""The loop around the step: resume, read ahead, report, measure, save, stop in good order."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dit_video.core.cluster import anywhere
from dit_video.core.config import diff, from_dict, to_dict
from dit_video.core.errors import BadInput, DitVideoError, MissingError, NonFinite, Partial
from dit_video.core.log import log
from dit_video.core.mesh import make_mesh
from dit_video.data.loader import NoHeldOut
from dit_video.train.ahead import Ahead, Left
from dit_video.train.experiment import Experiment
from dit_video.train.guards import Guard
from dit_video.train.metrics import Bar, Late, MetricsLog, Rates, mean, rows_of
from dit_video.train.processes import Stop, in_turn, whole
from dit_video.train.step import (
    Trained,
    TrainState,
    compiled_halves,
    initial_state,
    layout,
    loss_of,
    model_flops,
    on,
    place,
    trained,
)
from dit_video.train.watch import Clock, Profile, Watchdog
from dit_video.weights.checkpoints import Checkpoints, flatten
from dit_video.weights.runs import Run
from dit_video.weights.sums import fingerprint

Sample = Callable[[Any, Experiment, Path, int], None]  # (model, experiment, folder, step) writes samples


def train(
    experiment: Experiment,
    workdir: str | Path,
    *,
    resume: str = "auto",
    sample: Sample | None = None,
    profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Trains to `experiment.steps`, from the newest whole checkpoint of `workdir` if there is one.

    resume: "auto", "never" (an earlier run in the folder is put aside) or the number of a step. profile: the first and
    the last step of a profiler's trace. Returns
    `{"steps", "loss", "held_out", "seconds", "clips_per_second", "gflops", "parameters", "fingerprint"}`; the last is
    the same for bit-identical parameters, `held_out` None where there are no such clips, or none
    that can be read.

    Raises `Preempted` after SIGTERM and `Interrupted` after Ctrl-C, both with a checkpoint saved; `NonFinite` when the
    loss stays NaN though the run went back to checkpoints; `BadInput` when the checkpoint has other shapes; `Partial`
    when the last checkpoint could not be saved, or the data cannot be reached.
    """
    run = Run(workdir)
    if resume not in ("auto", "never") and not resume.isdecimal():
        raise BadInput(f"--resume {resume}: give auto, never, or the number of a step")
    experiment.check()
    with in_turn() as first:
        run.create()
        if resume == "never" and first:
            run.put_aside()
            run.create()
        objective, base = experiment.objective.resolve(experiment, run)
    experiment = replace(experiment, objective=objective)
    measured = True
    try:
        experiment.data.open(experiment.buckets, held_out=True)  # what is wrong is said now, not when it is wanted
    except NoHeldOut as error:
        log.warning("there will be no held-out loss: %s", error)
        measured = False
    trainer = Trainer(experiment, run, base, sample, profile)
    trainer.held_out = None if measured else []
    trainer.prepare(int(resume) if resume.isdecimal() else None)
    if first:
        run.save_experiment(experiment)
    try:
        return trainer.run_to_the_end()
    finally:
        trainer.close()


class Trainer:
    """A run in progress: the only thing here that has state of its own."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        base: Any,
        sample: Sample | None,
        profile: tuple[int, int] | None = None,
    ):
        self.experiment, self.run, self.base, self.sample = experiment, run, base, sample
        self.watchdog = Watchdog(experiment.hang_after, run.path)
        self.profile = Profile(profile, run.path / "profile")
        self.objective, self.rules = experiment.objective, experiment.rules
        self.mesh = make_mesh(experiment.mesh)
        self.parts: Trained = trained(self.objective, self.rules)
        self.optimizer = experiment.optimizer.build(experiment.steps)
        self.frozen = self.objective.frozen(base, self.mesh, self.rules)
        self.checkpoints: Checkpoints = run.checkpoints(experiment.keep, experiment.keep_every)
        self.ahead: Ahead | None = None
        self.stream = self.objective.stream(experiment, self.base, held_out=False, beat=self._beat)
        self.key = jax.random.key(experiment.seed)
        self.held_out: list[Any] | None = None  # not read yet
        self.flops: dict[Any, float] = {}
        self.first = jax.process_index() == 0

    # ---- before the first step

    def prepare(self, step: int | None) -> None:
        """The state: restored, or new."""
        e = self.experiment
        shapes, self.where = layout(self.objective, self.parts, self.optimizer, self.mesh, self.rules, e.ema)
        self.wanted = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, self.where)
        found = self.checkpoints.latest(self._restored, step)
        if found is None:
            start = self.objective.initial(self.base)
            self.state = initial_state(
                self.objective, self.optimizer, self.mesh, self.rules, self.where, shapes,
                seed=e.seed, decays=e.ema, start=start,
            )  # fmt: skip
            self.step, self.data, self.late, self.clock = 0, self.stream.state(), Late(), Clock()
            self.guard = Guard(e.patience, e.rollbacks)
        else:
            self.step, (self.state, about) = found
            self.data, self.late = about["data"], Late(about["metrics"])
            self.clock, self.guard = Clock(about.get("clock")), Guard(e.patience, e.rollbacks, about.get("guard"))
            self.stream.restore(self.data)
            self.checkpoints.forget_after(self.step)
            self._say_changes(about)
            log.info("resuming from step %d of %s", self.step, self.run.path)
        count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes.params))
        self.parameters = count

        def measured(frozen: Any, *args: Any) -> Any:
            return loss_of(self.objective, self.parts, frozen)(*args)[0]

        how = (e.ema, e.accumulate, e.matmul_precision)
        halves = compiled_halves(self.objective, self.parts, self.optimizer, self.where, *how)
        self.gradients_fn, self.update_fn = partial(halves[0], self.frozen), halves[1]
        self.measure_fn = partial(jax.jit(measured), self.frozen)
        # An average lies spread over the devices; what is measured lies as the parameters do.
        self.gathered = jax.jit(lambda params: params, out_shardings=self.where.params)
        log.info(
            "%s parameters, batch %d, steps %d, %d device(s), %s",
            f"{count:,}",
            e.batch,
            e.steps,
            self.mesh.size,
            self.run.path,
        )

    def _restored(self, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state of a step, and what is stored about it."""
        about, flat = self.checkpoints.about(step), flatten(self.wanted)
        self._check_shapes(step, about, flat)
        arrays = self.checkpoints.restore(step, flat)
        return jax.tree.unflatten(jax.tree.structure(self.wanted), [arrays[name] for name in flat]), about

    def _check_shapes(self, step: int, about: dict[str, Any], wanted: dict[str, Any]) -> None:
        have, want = about["shapes"], {name: list(s.shape) for name, s in wanted.items()}
        wrong = sorted(n for n in have.keys() | want.keys() if have.get(n) != want.get(n))
        if not wrong:
            return
        changed = {}
        for line in self._changes(about):
            name, _, values = line.partition(": ")
            old, _, new = values.partition(" -> ")
            changed[name] = old, new
        # Averages and moments are wrong wherever parameters are; alone, they have causes of their own.
        of = {name.partition("/")[0] for name in wrong}
        averages = [{name.split("/")[1] for name in names if name.startswith("ema/")} for names in (have, want)]
        causes = {"objective.": "params" in of, "ema": averages[0] != averages[1], "optimizer.kind": "opt" in of}
        causes = tuple(name for name, is_one in causes.items() if is_one)
        blamed = {name: values for name, values in changed.items() if name.startswith(causes)}
        there = f"{wrong[0]} is {have.get(wrong[0], 'missing')} there and {want.get(wrong[0], 'missing')} here"
        if not blamed:
            raise BadInput(
                f"Step {step} was saved with other shapes: {there}. Use another --workdir, or --resume never to start "
                "over."
            )
        if len(blamed) == 1:
            ((name, (old, new)),) = blamed.items()
            told = f"{name.rpartition('.')[2]}={old}; the experiment says {new}. Give {name}={old}"
        else:
            told = f"other shapes: {there}. One of what was changed since, or several, did it. Give " + " and ".join(
                f"{name}={old} (now {new})" for name, (old, new) in blamed.items()
            )
        raise BadInput(f"Step {step} was saved with {told}, or another --workdir (or --resume never to start over).")

    def _changes(self, about: dict[str, Any]) -> list[str]:
        try:
            return diff(from_dict(about["experiment"]), self.experiment)
        except (DitVideoError, AttributeError, TypeError, KeyError):
            return []  # written by another version: what matters are the shapes

    def _say_changes(self, about: dict[str, Any]) -> None:
        if changes := self._changes(about):
            log.info("changed since step %d: %s", self.step, "; ".join(changes))
        if kept := [name for name in ("vae", "init") if any(change.startswith(f"{name}:") for change in changes)]:
            log.warning("%s: what the run began with stays; give another --workdir for another", " and ".join(kept))

    # ---- the loop

    def run_to_the_end(self) -> dict[str, Any]:
        e, rates, began = self.experiment, Rates(), time.perf_counter()
        self.clock.resume(rows_of(self.run.path), self.step)
        metrics_log = MetricsLog(self.run.path, self.step, self.late.told(self.step), self.first)
        bar = Bar(self.step, e.steps)
        last: dict[str, float] = {}
        seen: set[Any] = set()
        totals = {"clips": 0.0, "flops": 0.0, "seconds": 0.0}
        try:
            with self.saved(), Stop().listening() as stop, self.watchdog:
                self.profile.check(self.step, e.steps)
                self.ahead = Ahead(self.stream, lambda batch: place(batch, self.mesh, self.rules))
                while self.step < e.steps and not stop.after(self.step):
                    with self.clock.spend("data"):
                        # Of several processes the wish is known after a step, when all agree.
                        found = self.ahead.next(lambda: stop.wish is not None)
                    if found is None:
                        break
                    batch, data = found
                    self.watchdog.pat()
                    shape = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(batch))
                    shape = (jax.tree.structure(batch), shape)
                    start = time.perf_counter()
                    self.profile.before(self.step)
                    with self.clock.spend("step" if shape in seen else "compile"):
                        flops = self._flops(shape, batch)
                        # In force for these alone: streams and samples compute on a device of their own.
                        with on(self.mesh):
                            halves = self.gradients_fn(self.state.params, self.state.step, batch, self.key)
                            self.state, metrics = self.update_fn(self.state, *halves)
                        self.step, self.data = self.step + 1, data
                        self.late.add(self.step, metrics)
                        self.late.settle(1 if shape in seen else 0)
                    if self.guard.see(self.step, metrics["skipped"]):
                        self.roll_back()
                        metrics_log.rewind(self.step, self.late.told(self.step))
                        rates.leave_out(time.perf_counter() - start)
                        self.watchdog.pat()
                        continue
                    if shape in seen:
                        rates.add(e.batch, flops)
                    else:  # it was compiled just now
                        seen.add(shape)
                        rates.leave_out(time.perf_counter() - start)
                    self.profile.after(self.step, metrics)
                    self.watchdog.pat()
                    bar.at(self.step)
                    # One step late, so that the device has work while its numbers are fetched.
                    before = self.step - 1
                    tell = [before] if before and before % e.log_every == 0 else []
                    tell += [self.step] * (self.step == e.steps)
                    if taken := [(told, self.late.take(told)) for told in tell]:
                        rate = rates.report()
                        for name, key in (("clips", "clips_per_second"), ("flops", "gflops")):
                            totals[name] += rate[key] * rate["seconds"]
                        totals["seconds"] += rate.pop("seconds")
                    for told, rows in taken:
                        row = mean([row for _, row in rows]) | rate | self.clock.report()
                        row["rollbacks"] = self.guard.rollbacks
                        metrics_log.write(told, row | {"seconds": time.perf_counter() - began})
                        last |= row
                        bar.show(told, last)
                    start = time.perf_counter()
                    due = self.step % e.eval_every == 0 or self.step == e.steps
                    if due and (measured := self.measure()):
                        last |= measured
                        metrics_log.write(self.step, measured)
                    if self.step % e.checkpoint_every == 0:
                        self.save()
                    if e.sample_every and self.step % e.sample_every == 0:
                        self.make_samples()
                    rates.leave_out(time.perf_counter() - start)
                    self.watchdog.pat()
                self.save(wait=True)
                if stop.wish is not None and self.step < e.steps:
                    raise stop.wish(f"stopped at step {self.step} of {e.steps}; the same command goes on from there")
            params = whole(self.state.ema[self._longest()])
            if self.first:
                self.objective.finish({**params}, e, self.base, self.run)
        finally:
            self.profile.close()
            bar.close()
            metrics_log.close()
        seconds = max(totals["seconds"], 1e-9)
        return {
            "steps": self.step,
            "loss": last.get("loss"),
            "held_out": last.get("held_out"),
            "seconds": round(time.perf_counter() - began, 1),
            "clips_per_second": round(totals["clips"] / seconds, 2),
            "gflops": round(totals["flops"] / seconds, 2),
            "parameters": self.parameters,
            "fingerprint": fingerprint(self.state.params),
        }

    def _beat(self) -> None:
        """Of a stream in the midst of a batch."""
        self.watchdog.pat()
        if self.ahead is not None and self.ahead.stopped.is_set():
            raise Left

    def _longest(self) -> int:
        return int(np.argmax(self.experiment.ema))

    def _flops(self, shape: Any, batch: Any) -> float:
        """Model FLOPs of a step on this shape of batch."""
        if shape not in self.flops:
            self.flops[shape] = model_flops(self.objective, self.rules, self.state.params, batch, self.key, self.frozen)
        return self.flops[shape]

    def roll_back(self) -> None:
        """To the newest whole checkpoint before the steps that were skipped; the data go on after them, so that the
        same steps see other clips. Raises `NonFinite` when that did not help, or when there is no such checkpoint."""
        first = self.guard.first_bad(self.step)
        del self.state  # its memory is wanted
        found = self.checkpoints.latest(self._restored, before=first)
        if found is None:
            raise NonFinite(
                f"loss or gradient is NaN or infinite from step {first} on, and there is no checkpoint before it. "
                "Lower optimizer.lr, or look at the weights given to --init."
            )
        left, (self.step, (self.state, about)) = self.step, found
        log.warning("going back from step %d to step %d, with other data", left, self.step)
        self.late = Late(about["metrics"])
        self.clock.throw_away(about.get("clock", {}))
        self.checkpoints.forget_after(self.step)

    def measure(self) -> dict[str, float]:
        """Held-out loss of each average, always on the same clips with the same noise; {} where they cannot be read."""
        if self.held_out is None:
            self.held_out = [place(batch, self.mesh, self.rules) for batch in self._held_out()]
        if not self.held_out:
            return {}
        values = {}
        keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(len(self.held_out))]
        for decay, params in zip(self.experiment.ema, self.state.ema, strict=True):
            with on(self.mesh), self.clock.spend("measure"):
                params = self.gathered(params)
                losses = [self.measure_fn(params, b, k) for b, k in zip(self.held_out, keys, strict=True)]
                values[f"held_out/{decay:g}"] = float(np.mean(jax.device_get(losses)))
        return {"held_out": values[f"held_out/{max(self.experiment.ema):g}"], **values}

    def _held_out(self) -> list[Any]:
        """Batches of the part that training never sees; none, with a warning, where they cannot be read: what a run
        learns does not depend on them."""
        batches, why = [], ""
        try:
            stream = self.objective.stream(self.experiment, self.base, held_out=True, beat=self._beat)
            batches = [next(stream) for _ in range(self.experiment.eval_batches)]
        except (BadInput, MissingError, OSError) as error:
            why = str(error)
        if not anywhere(bool(why)):
            return batches
        log.warning(
            "there will be no held-out loss, because its clips cannot be read: %s. The run goes on; mend them, and it "
            "is measured again from the next start on", why or "those of another process",
        )  # fmt: skip
        return []

    def save(self, wait: bool = False) -> None:
        """A checkpoint of this step: state, place in the data, and the experiment."""
        about = {"data": self.data, "metrics": self.late.state(), "guard": self.guard.state()}
        about |= {"experiment": to_dict(self.experiment), "clock": dict(self.clock.seconds)}
        with self.clock.spend("checkpoint"):
            self.checkpoints.save(self.step, self.state, about, wait)

    @contextmanager
    def saved(self) -> Iterator[None]:
        """What a run is given can turn out bad after hours, or be gone or out of reach: what it has learnt is kept.
        Raises `Partial` for what may be better at the next start."""
        try:
            yield
        except (BadInput, MissingError, OSError) as cause:
            if self.step and jax.process_count() == 1:  # others do not come to a save that one of them begins
                try:
                    self.save(wait=True)
                except Partial as error:
                    log.error("%s", error)
            if isinstance(cause, OSError):
                raise Partial(
                    f"stopped at step {self.step} of {self.experiment.steps}: {cause}. When that is mended, the same "
                    f"command goes on from {self.checkpoints}."
                ) from cause
            raise

    def make_samples(self) -> None:
        """Clips from the longest average. A failure here does not end a run of hours."""
        if self.sample is None:
            return
        params = whole(self.state.ema[self._longest()])
        if not self.first:
            return
        model = self.objective.model(params, self.base)
        try:
            with self.clock.spend("samples"):
                self.sample(model, self.experiment, self.run.path / "samples", self.step)
        except Exception as error:
            log.warning("no samples at step %d: %s: %s", self.step, type(error).__name__, error)

    def close(self) -> None:
        if self.ahead is not None:
            self.ahead.close()
        self.checkpoints.close()
