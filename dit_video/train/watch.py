"""What watches a run from outside of its steps: a watchdog, a clock of where the seconds went, a profiler's trace."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from dit_video.core.errors import BadInput
from dit_video.core.log import log

HUNG = 124  # the exit code


class Watchdog:
    """Ends the process, with the stacks of its threads, when nobody has called `pat` for so many seconds.

    A lost host leaves the others waiting in a collective without end, and a lost disk leaves a save waiting; no
    exception comes of that. The stacks go to stderr and to hung_<process>.txt in `folder`. 0 seconds: no watch.
    """

    def __init__(self, seconds: float, folder: Path):
        self.seconds, self.folder, self.last = seconds, folder, time.monotonic()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.pat()
        if self.seconds > 0:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()

    def pat(self) -> None:
        """Something has come to its end: a step, a save, a measurement."""
        self.last = time.monotonic()

    def _watch(self) -> None:
        while not self.stopped.wait(min(self.seconds / 4, 5.0)):
            if time.monotonic() - self.last > self.seconds:
                self._end()

    def _end(self) -> None:
        # What hangs may be the disk that the stacks are written to.
        last = threading.Timer(30.0, os._exit, (HUNG,))
        last.daemon = True
        last.start()
        path = self.folder / f"hung_{jax.process_index()}.txt"
        log.error(
            "nothing has come to its end for %g s (hang_after). The stacks of all threads are in %s. "
            "The last checkpoint stays; the same command goes on from there.", self.seconds, path,
        )  # fmt: skip
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        try:
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            # Not sys.exit: the other threads wait for what does not come.
            os._exit(HUNG)


class Clock:
    """Seconds of a run by what they went into, over all the processes that it took one after another.

    `step` is what is wanted; `compile`, `data` (waiting for a batch), `checkpoint`, `measure`, `samples` are not;
    `lost` went into steps that a failure threw away.
    """

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds = dict(seconds or {})

    @contextmanager
    def spend(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def resume(self, rows: list[dict[str, Any]], step: int) -> None:
        """Counts as lost what the rows of metrics beyond `step` say was spent since the checkpoint of that step."""
        told = [sum(v for k, v in row.items() if k.startswith("seconds/")) for row in rows if row["step"] > step]
        self.seconds["lost"] = self.seconds.get("lost", 0.0) + max(max(told, default=0.0) - self.total, 0.0)

    def throw_away(self, then: dict[str, float]) -> None:
        """Counts as lost what steps and waiting for their batches have cost since the seconds were `then`."""
        for name in ("step", "data"):
            gone = self.seconds.get(name, 0.0) - then.get(name, 0.0)
            self.seconds |= {name: then.get(name, 0.0), "lost": self.seconds.get("lost", 0.0) + gone}

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def report(self) -> dict[str, float]:
        """`goodput`, the share of the seconds that went into steps, and all of them as `seconds/<name>`."""
        shown = {f"seconds/{name}": round(value, 3) for name, value in sorted(self.seconds.items())}
        return {"goodput": self.seconds.get("step", 0.0) / max(self.total, 1e-9), **shown}


class Profile:
    """An XProf trace of the steps from the first up to the last of a pair, in `folder`. None: no trace."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self.steps, self.folder, self.on = steps, folder, False

    def check(self, step: int, steps: int) -> None:
        """Warns where a run from after `step` to `steps` does not meet the first of the steps."""
        if self.steps is not None and not step < self.steps[0] <= steps:
            log.warning(
                "--profile %d:%d: there will be no trace, because the run goes from step %d to step %d",
                *self.steps, step + 1, steps,
            )  # fmt: skip

    def before(self, step: int) -> None:
        """To be called before the step after `step`."""
        if self.steps is not None and not self.on and step + 1 == self.steps[0]:
            jax.profiler.start_trace(str(self.folder))
            self.on = True

    def after(self, step: int, result: Any) -> None:
        """To be called after `step`, with something that it computes."""
        if self.on and self.steps is not None and step >= self.steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self.on:
            self.on = False
            jax.profiler.stop_trace()
            log.info("a trace is in %s: xprof --logdir %s", self.folder, self.folder)


def profile_steps(text: str) -> tuple[int, int]:
    """`10:15` as the steps 10 to 15. Raises `BadInput`."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise BadInput(f"--profile {text}: give the first step and the last one, as in 10:15")
    return int(first), int(last)
