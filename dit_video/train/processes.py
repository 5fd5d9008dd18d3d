"""Several processes that are one run: who writes first, when all stop, and whole arrays out of parts."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from dit_video.core.errors import DitVideoError, Interrupted, Preempted
from dit_video.core.log import log


@contextmanager
def in_turn() -> Iterator[bool]:
    """The first process does it alone, then all others: what it wrote they find. Gives whether this is the first."""
    from jax.experimental import multihost_utils

    first, several = jax.process_index() == 0, jax.process_count() > 1
    if several and not first:
        multihost_utils.sync_global_devices("the first has done it")
    yield first
    if several and first:
        multihost_utils.sync_global_devices("the first has done it")


def stop_agreed(call: int) -> bool:
    """Whether one of several processes was told to stop and this is the step after which all do. Each calls this at
    every step, with a number that grows."""
    from jax.experimental import multihost_utils

    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call)


def whole(tree: Any) -> Any:
    """Arrays that lie in parts on several processes, in one piece on each. All must call this."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree


class Stop:
    """Turns SIGTERM and the first Ctrl-C into a wish that the loop reads between steps; a second one is immediate.

    Of several processes all must stop after the same step: JAX watches for SIGTERM there, and they agree through it;
    Ctrl-C is handed on as that.
    """

    def __init__(self) -> None:
        self.wish: type[DitVideoError] | None = None
        self.asked = False  # by Ctrl-C, and the others do not know yet
        self.calls = 0  # a run that goes back counts its steps anew, and agreement wants numbers that grow

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        signals = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
        old = {s: signal.signal(s, self._heard) for s in signals}
        try:
            yield self
        finally:
            for which, handler in old.items():
                signal.signal(which, handler)

    def after(self, step: int) -> bool:
        """Whether to stop now that `step` is done."""
        self.calls += 1
        if self.wish is None and stop_agreed(self.calls):
            self.wish = Interrupted if self.asked else Preempted
            log.info("stopping after step %d, as all processes do; a checkpoint is saved", step)
        return self.wish is not None

    def _heard(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and (self.wish is not None or self.asked):
            raise KeyboardInterrupt
        if jax.process_count() > 1:
            self.asked = True
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.wish = Preempted if number == signal.SIGTERM else Interrupted
        log.info("stopping after this step; a checkpoint is saved")
