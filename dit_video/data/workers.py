"""Worker processes that read files: each item becomes a stream of results, and a worker that dies is replaced.

A worker has a pipe of its own: nothing is shared that a killed process could leave locked, what a worker has read waits
in the worker until it is asked for, and the memory of all is bounded. `function` and the results are pickled; processes
are spawned, because JAX does not survive a fork.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from dit_video.core.errors import DitVideoError
from dit_video.core.log import log

LIVES = 2  # workers that an item may kill before it is given up


class Broken(NamedTuple):
    """An item that could not be read, and why."""

    reason: str


class Done(NamedTuple):
    """Nothing more comes of an item."""


Function = Callable[[Any], Iterator[Any]]  # an item to its results, always the same ones


def attempt(function: Function, item: Any) -> Iterator[Any]:
    """The item's results, `Broken` when it cannot be read, and `Done`."""
    try:
        yield from function(item)
    except (DitVideoError, OSError, ValueError, SyntaxError) as error:
        yield Broken(str(error))
    yield Done()


def _serve(pipe: Connection, function: Function) -> None:
    """A worker: takes (item, results to leave out), sends results. It goes when the other end does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    try:
        while True:
            item, skip = pipe.recv()
            for number, result in enumerate(attempt(function, item)):
                if number >= skip:
                    pipe.send(result)
    except (EOFError, OSError):
        return


class _Worker:
    """A process, its pipe, and what it is at."""

    def __init__(self, context: Any, function: Function):
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function), daemon=True)
        self.process.start()
        other.close()

    def give(self, number: int, item: Any, seen: int, deaths: int) -> None:
        self.number, self.item, self.seen, self.deaths = number, item, seen, deaths
        with suppress(OSError):  # it died while it waited: who looks at its pipe next finds that, and replaces it
            self.pipe.send((item, seen))


def run(function: Function, items: Iterable[Any], workers: int) -> Iterator[tuple[int, Any]]:
    """(number of the item, result), in any order of items but in order within each, ended by `Done`.

    workers: processes; 0 works here, one item after the other. A worker that is killed or crashes is replaced, and its
    item begun again where it was; the second death on one item makes that item `Broken`.
    """
    if workers == 0:
        for number, item in enumerate(items):
            yield from ((number, result) for result in attempt(function, item))
        return
    context = multiprocessing.get_context("spawn")
    left = enumerate(items)
    busy: dict[Connection, _Worker] = {}

    def start(number: int, item: Any, seen: int = 0, deaths: int = 0, worker: _Worker | None = None) -> None:
        worker = worker or _Worker(context, function)
        busy[worker.pipe] = worker
        worker.give(number, item, seen, deaths)

    try:
        for number, item in (task for _, task in zip(range(workers), left, strict=False)):
            start(number, item)
        while busy:
            for pipe in wait(list(busy)):
                worker = busy[pipe]
                try:
                    result = pipe.recv()
                except (EOFError, OSError):
                    del busy[pipe]
                    worker.process.join()
                    code, deaths = worker.process.exitcode, worker.deaths + 1
                    log.warning("a worker ended with code %s while it read %s", code, worker.item)
                    if deaths < LIVES:
                        start(worker.number, worker.item, worker.seen, deaths)
                        continue
                    yield worker.number, Broken(f"{deaths} processes died reading it (exit code {code})")
                    yield worker.number, Done()
                    if (task := next(left, None)) is not None:
                        start(*task)
                    continue
                worker.seen += 1
                yield worker.number, result
                if isinstance(result, Done):
                    del busy[pipe]
                    if (task := next(left, None)) is not None:
                        start(*task, worker=worker)
                    else:
                        pipe.close()  # it goes by itself
    finally:
        for worker in busy.values():
            worker.process.terminate()
            worker.pipe.close()
