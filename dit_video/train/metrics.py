"""What a run tells while it runs: metrics.jsonl, TensorBoard, the progress bar; and FLOPs counted from a trace."""

import io
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dit_video.core.files import replacing
from dit_video.core.log import log


def count_flops(fn: Callable, *args: Any) -> float:
    """Two for each multiply-add of the matrix products and convolutions of `fn(*args)`, the body of a scan as often as
    it runs (XLA's own cost analysis counts it once). Nothing is computed; `args` may be shapes."""
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contract)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
            output = eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * math.prod(out) * math.prod(kernel) / kernel[output]
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        inner = [sub for value in eqn.params.values() for sub in _jaxprs(value)]
        counts = [_count(sub) for sub in inner]
        total += times * (max(counts, default=0.0) if eqn.primitive.name == "cond" else sum(counts))
    return total


def _jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    return [sub for v in value for sub in _jaxprs(v)] if isinstance(value, (tuple, list)) else []


class MetricsLog:
    """One JSON object a line, `{"step": 20, "loss": 0.91, ...}`, and the same to TensorBoard.

    A step is told once. A run that goes on from `step` drops the lines that it will write again: those beyond it, and
    of the loss those beyond `told`, because the metrics since then wait in the checkpoint. On a full disk lines wait
    until there is room.
    """

    def __init__(self, folder: Path, step: int, told: int, write: bool = True):
        self.path, self.board = folder / "metrics.jsonl", Board(folder / "tensorboard")
        self.file: io.FileIO | None = None
        self.unwritten, self.full = b"", False
        if write:
            self._go_on(step, told)

    def rewind(self, step: int, told: int) -> None:
        """Goes on from `step`, which lies behind."""
        if self.file is not None:
            self.close()
            self._go_on(step, told)

    def _go_on(self, step: int, told: int) -> None:
        if self.path.is_file():
            kept = []
            for line in self.path.read_text().splitlines():
                row = _row(line)
                if row is not None and row["step"] <= (told if "loss" in row else step):
                    kept.append(line + "\n")
            with replacing(self.path) as partial:
                partial.write_text("".join(kept))
        self.file = io.FileIO(self.path, "a")
        self.board.hide_from(step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.file is None:
            return
        line = json.dumps({"step": step, **{k: _short(v) for k, v in values.items()}}) + "\n"
        self.unwritten += line.encode()
        try:
            # Without a buffer: how much of it a full disk took is known, and the rest follows.
            self.unwritten = self.unwritten[self.file.write(self.unwritten) :]
            self.board.write(step, values)
            self.full = False
        except OSError as error:
            if not self.full:
                log.warning("metrics cannot be written: %s. The run goes on; they wait.", error.strerror)
            self.full = True

    def close(self) -> None:
        if self.file is not None:
            with suppress(OSError):
                self.file.write(self.unwritten)
            self.unwritten = b""
            self.file.close()
            self.board.close()


class Board:
    """Scalars for TensorBoard. Written at once: the thread of tensorboardX's own writer ends on a full disk, and who
    gives it more then waits for ever."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, None

    def hide_from(self, step: int) -> None:
        """What was written of `step` and later is not shown."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        with suppress(OSError):
            self._write([Event(step=step, session_log=SessionLog(status=SessionLog.START))])

    def write(self, step: int, values: dict[str, float]) -> None:
        """Raises `OSError`; what could not be written is left out."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        self._write([Event(step=step, summary=scalar(name, value)) for name, value in values.items()])

    def _write(self, events: list[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import RecordWriter

        try:
            if self.file is None:
                self.folder.mkdir(exist_ok=True)
                self.file = RecordWriter(str(self.folder / f"events.out.tfevents.{time.time_ns()}"))
                events = [Event(file_version="brain.Event:2"), *events]
            for event in events:
                event.wall_time = time.time()
                self.file.write(event.SerializeToString())
            self.file.flush()
        except OSError:
            self.close()  # half a record ends what a reader sees of a file: the next goes to another
            raise

    def close(self) -> None:
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
            self.file = None


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What the metrics of a run say, in order; none for a new one."""
    path = folder / "metrics.jsonl"
    rows = [_row(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [row for row in rows if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    """None for a line that was cut off by a kill."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


class Rates:
    """Clips and model FLOPs a second since the last report; time spent elsewhere (samples, held-out loss, the first
    step of a new shape, which compiles) can be left out."""

    def __init__(self) -> None:
        self.start, self.away, self.clips, self.flops = time.perf_counter(), 0.0, 0, 0.0

    def add(self, clips: int, flops: float) -> None:
        self.clips, self.flops = self.clips + clips, self.flops + flops

    def leave_out(self, seconds: float) -> None:
        self.away += seconds

    def report(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.start - self.away, 1e-9)
        rates = {"clips_per_second": self.clips / seconds, "gflops": self.flops / seconds / 1e9, "seconds": seconds}
        self.__init__()
        return rates


Rows = list[tuple[int, dict[str, float]]]


class Late:
    """Metrics of steps that no line tells yet. They stay on the device until they are asked for: fetching one waits for
    its step. What is waiting at a checkpoint is stored with it, so that a resumed run writes the same lines."""

    def __init__(self, rows: Rows | None = None) -> None:
        self.rows: Rows = [(int(step), dict(row)) for step, row in rows or []]
        self.waiting: list[tuple[int, dict[str, jax.Array]]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.waiting.append((step, metrics))

    def told(self, step: int) -> int:
        """The last step that a line has told of."""
        return self.rows[0][0] - 1 if self.rows else step

    def settle(self, behind: int = 1) -> None:
        """Waits for the step that is `behind` the newest one: the host never runs away from the device."""
        if len(self.waiting) > behind:
            jax.block_until_ready(self.waiting[-1 - behind][1])

    def state(self) -> Rows:
        """All of them, as numbers."""
        values = jax.device_get([m for _, m in self.waiting])
        new = [(step, {k: float(v) for k, v in m.items()}) for (step, _), m in zip(self.waiting, values, strict=True)]
        self.rows, self.waiting = [*self.rows, *new], []
        return self.rows

    def take(self, upto: int) -> Rows:
        """Those of the steps up to `upto`, which are then told."""
        later = [w for w in self.waiting if w[0] > upto]
        self.waiting = [w for w in self.waiting if w[0] <= upto]
        self.state()
        taken = [row for row in self.rows if row[0] <= upto]
        self.rows, self.waiting = [row for row in self.rows if row[0] > upto], later
        return taken


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means by name over the finite values of rows."""
    names = {name for row in rows for name in row}
    finite = {name: [row[name] for row in rows if name in row and math.isfinite(row[name])] for name in sorted(names)}
    return {name: float(np.mean(values)) if values else math.nan for name, values in finite.items()}


class Bar:
    """A bar on a terminal; elsewhere a line in the log at every report."""

    def __init__(self, start: int, steps: int):
        from tqdm import tqdm

        self.tty = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps, initial=start, file=sys.stderr, disable=not self.tty, unit="step", dynamic_ncols=True
        )
        self.steps, self.began, self.first = steps, time.perf_counter(), start

    def at(self, step: int) -> None:
        self.bar.update(step - self.bar.n)

    def show(self, step: int, values: dict[str, float]) -> None:
        text = " ".join(
            f"{k} {values[k]:.4g}" for k in ("loss", "held_out", "clips_per_second", "gflops") if k in values
        )
        text = text.replace("clips_per_second", "clips/s").replace("gflops", "GFLOP/s")
        if self.tty:
            self.bar.set_postfix_str(text)
        else:
            left = (time.perf_counter() - self.began) / max(step - self.first, 1) * (self.steps - step)
            log.info("step %d/%d  %s  %d:%02d left", step, self.steps, text, left // 60, left % 60)

    def close(self) -> None:
        self.bar.close()
