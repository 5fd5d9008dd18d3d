"""What a run tells while it runs: metrics.jsonl, TensorBoard, the progress bar; and FLOPs counted from a trace."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
    """One JSON object a line, `{"step": 20, "loss": 0.91, ...}`, and the same to TensorBoard. A run that resumes drops
    the lines beyond the step that it goes on from: it makes them again."""

    def __init__(self, folder: Path, step: int, write: bool = True):
        self.file, self.writer = None, None
        if not write:
            return
        path = folder / "metrics.jsonl"
        if path.is_file():
            kept = [
                line for line in path.read_text().splitlines() if _step_of(line) is not None and _step_of(line) <= step
            ]
            path.write_text("".join(line + "\n" for line in kept))
        self.file = path.open("a", buffering=1)
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, write_to_disk=True)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.file is None or self.writer is None:
            return
        self.file.write(json.dumps({"step": step, **{k: _short(v) for k, v in values.items()}}) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.file is not None and self.writer is not None:
            self.file.close()
            self.writer.close()


def _step_of(line: str) -> int | None:
    """None for a line that was cut off by a kill."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


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


class Late:
    """Metrics that stay on the device until they are asked for: fetching one waits for its step."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, dict[str, jax.Array]]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.waiting.append((step, metrics))

    def fetch(self, keep: int = 0) -> list[tuple[int, dict[str, float]]]:
        """All but the newest `keep`, as numbers."""
        cut = max(len(self.waiting) - keep, 0)
        ready, self.waiting = self.waiting[:cut], self.waiting[cut:]
        values = jax.device_get([m for _, m in ready])
        return [(step, {k: float(v) for k, v in m.items()}) for (step, _), m in zip(ready, values, strict=True)]


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

    def step(self) -> None:
        self.bar.update()

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
