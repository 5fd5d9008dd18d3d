"""Several processes that are one run: who writes first, when all stop, and whole arrays out of parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


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


def stop_agreed(step: int) -> bool:
    """Whether one of several processes was told to stop and this is the step after which all do. Each calls this at
    every step."""
    from jax.experimental import multihost_utils

    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def whole(tree: Any) -> Any:
    """Arrays that lie in parts on several processes, in one piece on each. All must call this."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree
