"""Batches read and placed on the devices while a step runs."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from dit_video.train.experiment import Stream


class Left(Exception):
    """Nobody waits for the batch any more."""


class Ahead:
    """Takes batches from a stream in a thread, places them on the mesh, and remembers the stream's state after each."""

    def __init__(self, stream: Stream, put: Callable[[Any], Any], depth: int = 2):
        self.stream, self.put = stream, put
        self.queue: queue.Queue[tuple[Any, Any, BaseException | None]] = queue.Queue(depth)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            while not self.stopped.is_set():
                batch = self.put(next(self.stream))
                self._give((batch, self.stream.state(), None))
        except BaseException as error:
            self._give((None, None, error))

    def _give(self, item: tuple[Any, Any, BaseException | None]) -> None:
        while not self.stopped.is_set():
            try:
                return self.queue.put(item, timeout=0.2)
            except queue.Full:
                continue

    def next(self, stop: Callable[[], bool] = lambda: False) -> tuple[Any, Any] | None:
        """A batch, and the state to store when it has been used. None: `stop` came true first."""
        while True:
            try:
                batch, state, error = self.queue.get(timeout=0.2)
                break
            except queue.Empty:
                if stop():
                    return None
        if error is not None:
            raise error
        return batch, state

    def close(self) -> None:
        self.stopped.set()
        self.thread.join(timeout=60)
