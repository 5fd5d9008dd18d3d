"""Logging and progress, all on stderr: stdout belongs to results."""

import logging
import sys
import time
from contextlib import contextmanager

log = logging.getLogger("dit_video")


def setup(verbosity: int = 0) -> None:
    """-1 only warnings, 0 what a user wants to know, 1 everything."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s" if verbosity < 1 else "%(levelname).1s %(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))


class Progress:
    """Named phases with their seconds, and a bar for the steps of one.

    progress = Progress(show=True)
    with progress.phase("denoise", steps=16) as tick:
        ...; tick()
    progress.seconds   # {"denoise": 1.9}
    """

    def __init__(self, show: bool = True):
        self.show, self.seconds = show, {}

    @contextmanager
    def phase(self, name: str, steps: int | None = None):
        start = time.perf_counter()
        bar = None
        if self.show and steps and sys.stderr.isatty():
            from tqdm import tqdm

            bar = tqdm(total=steps, desc=name, file=sys.stderr, leave=False)
        elif self.show:  # once: a long video comes to its phases again and again
            log.log(logging.DEBUG if name in self.seconds else logging.INFO, "%s ...", name)
        try:
            yield (lambda n=1: bar.update(n)) if bar is not None else (lambda n=1: None)
        finally:
            if bar is not None:
                bar.close()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
