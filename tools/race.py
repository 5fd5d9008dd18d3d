"""Sides of a benchmark, each in a process of its own (sides.py), timed in turn, and the table that it becomes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import machine, write

LEAST = 3  # calls of each that are timed, however long they take
Row = list[Any]


class Worker:
    """One side, in a process of its own: of the interpreter that the job names, if it does."""

    def __init__(self, job: dict[str, Any], **env: str):
        self.name, self.began = job["side"], time.perf_counter()
        line = [job.get("python", sys.executable), str(Path(__file__).with_name("sides.py")), json.dumps(job)]
        offline = {"HF_HUB_OFFLINE": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **offline, **env}
        )
        self.about = self._answer()
        self.way, self.bytes, self.failed = self.about["ways"][0], None, {}

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}: see what it said above")
        return json.loads(line)

    def ask(self, what: str, way: str, file: Path | None = None) -> dict[str, Any]:
        self.process.stdin.write(json.dumps([what, way, file and str(file)]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def result(self, way: str, folder: Path) -> np.ndarray:
        """What a way computes; it is compiled then."""
        file = folder / f"{self.name}.npy"
        if failed := self.ask("first", way, file).get("failed"):
            raise RuntimeError(f"{self.name}, {way}: {failed}")
        array = np.load(file)
        file.unlink()
        return array

    def results(self, folder: Path) -> Iterator[np.ndarray]:
        """What each way computes. One that cannot is left out, but not the first."""
        for way in self.about["ways"]:
            try:
                yield self.result(way, folder)
            except RuntimeError as error:
                if way == self.about["ways"][0]:
                    raise
                print(error, file=sys.stderr)
                self.failed[way] = str(error)

    def choose(self) -> None:
        """Takes the way that is the fastest in a call whose memory is watched."""
        seen = {way: self.ask("peak", way) for way in self.about["ways"] if way not in self.failed}
        self.way = min(seen, key=lambda way: seen[way]["seconds"])
        self.bytes = seen[self.way]["bytes"]

    def time(self, way: str | None = None) -> float:
        """Seconds of a call."""
        return self.ask("time", way or self.way)["seconds"]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def at_work(*jobs: dict[str, Any]) -> Iterator[list[Worker]]:
    """A worker a job; all are ended."""
    workers: list[Worker] = []
    try:
        for job in jobs:
            workers.append(Worker(job))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def interleaved(calls: Sequence[Callable[[], float]], rounds: int, limit: float) -> list[list[float]]:
    """Seconds of each call, made in turn: `rounds` times, or until `limit` seconds are spent, but `LEAST` times."""
    spent: list[list[float]] = [[] for _ in calls]
    while len(spent[0]) < rounds and (len(spent[0]) < LEAST or sum(map(sum, spent)) < limit):
        for call, seconds in zip(calls, spent, strict=True):
            seconds.append(call())
    return spent


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """||ours - theirs|| / ||theirs||; infinite for other shapes and where something is not finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    off = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    return off if np.isfinite(off) else float("inf")


def agree(what: str, results: Sequence[np.ndarray], within: float) -> float:
    """The largest difference from the first result. Ends the run when it is too large."""
    off = max(difference(results[0], other) for other in results[1:])
    if off > within:
        raise RuntimeError(f"{what}: the sides differ by {off:.1e}, more than {within:.0e}: no benchmark")
    return off


def megabytes(number: int | None) -> int | None:
    return None if number is None else round(number / 1e6)


@dataclass
class Table:
    """Rows that are stored as they are done. A row is told by its first cell. `draw`: an SVG of the rows and of what
    else is known of each, that stands beside them; `note` says what it shows."""

    name: str
    made_by: str
    columns: list[str]
    order: list[str]  # of the rows that there may be
    folder: Path | None  # None: nothing is stored
    draw: Callable[[list[Row], dict[str, Any]], str] | None = None
    note: str = ""

    def add(self, row: Row, about: dict[str, Any], **details: Any) -> None:
        """`about`: the device and the versions of the rival (of ours where there is none), which with the machine are
        those of all rows in a file. `details`: what else is to be known, every single time among it."""
        print(*row, sep=" | ", flush=True)
        if self.folder is None:
            return
        where = [machine(), *(f"{name} {v}" for name, v in about["versions"].items() if name != "jax")]
        where += [] if about["device"] == "cpu" else [about["device"]]
        name = self.name if about["device"] == "cpu" else f"{self.name}_gpu"
        file, same = self.folder / f"{name}.json", {"machine": ", ".join(where), "columns": self.columns}
        old = json.loads(file.read_text()) if file.is_file() else {}
        if any(old.get(key) != value for key, value in same.items()):
            old = {}
        rows = {**{one[0]: one for one in old.get("rows", [])}, row[0]: row}
        runs = {**old.get("runs", {}), row[0]: details}
        known = [one for one in self.order if one in rows]
        known += [one for one in rows if one not in known]
        all_rows, all_runs, seen = [rows[one] for one in known], {one: runs[one] for one in known}, {}
        if self.draw is not None:
            (self.folder / f"{name}.svg").write_text(self.draw(all_rows, all_runs))
            seen = {"note": self.note, "picture": f"tools/results/{name}.svg"}
        write(name, self.folder, made_by=self.made_by, **same, **seen, rows=all_rows, runs=all_runs)
