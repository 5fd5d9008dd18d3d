"""Measures the peak memory of a model that is loaded, and of one that makes a clip, for each way to keep its weights.

    python tools/memory.py             # loading a random denoiser of 0.15 B parameters
    python tools/memory.py generate    # a clip from the weights on board, from the start of the process to the file

Every row is a process of its own; counted is what it alone holds (RssAnon of Linux: without the pages of files that it
reads), sampled every few milliseconds, over what it held before. On a GPU or TPU the device's own peak stands beside.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

KEPT = ("float32", "bfloat16", "int8")


def held() -> int:
    """Bytes that this process alone holds."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Peak:
    """The most that is held while it is entered, over what was held before."""

    def __enter__(self) -> "Peak":
        self.before = self.most = held()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.is_set():
            self.most = max(self.most, held())
            time.sleep(0.003)

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.thread.join()
        self.most = max(self.most, held())

    @property
    def bytes(self) -> int:
        return self.most - self.before


def device_peak() -> int | None:
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def sizes() -> Any:
    from dit_video.models.dit import DiTConfig

    return DiTConfig(heads=8, head_dim=128, depth=8, ffn_dim=4096, text_dim=1024)


def write(folder: str) -> None:
    """A denoiser of random weights in bfloat16, as public ones are, without ever holding it whole."""
    import numpy as np

    from dit_video.weights.folder import table
    from dit_video.weights.model import shapes
    from dit_video.weights.names import Stored, foreign
    from dit_video.weights.shards import write as write_shards

    cfg, rng = sizes(), np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> Any:
        return lambda: rng.standard_normal(shape, np.float32) * 0.02

    arrays = {}
    for path, shape in shapes(cfg).items():
        axes = shape[:1] if path.startswith("blocks/") else ()
        pieces = {at: draw(shape[len(axes) :]) for at in np.ndindex(*axes)}
        arrays[path] = Stored(path, shape, np.dtype(np.float32), pieces, "random")
    write_shards(Path(folder), "diffusion_pytorch_model.safetensors", foreign(table(cfg), arrays), "bfloat16")


def load(folder: str, keep: str) -> dict[str, Any]:
    import jax

    from dit_video.weights.folder import open_part
    from dit_video.weights.place import place

    jax.devices()
    stored = open_part(Path(folder), sizes())
    with Peak() as peak:
        placed = place(stored, None, keep)
    model = sum(leaf.nbytes for leaf in jax.tree.leaves(placed))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(placed))
    return {"kept as": keep, "model": model, "largest array": largest, "peak": peak.bytes, "device": device_peak()}


def generate(keep: str) -> dict[str, Any]:
    import jax

    from dit_video.generate.pipeline import VideoPipeline

    jax.devices()
    with Peak() as peak:
        pipe = VideoPipeline.from_pretrained(keep=keep)
        pipe("a red circle moves right", seed=0)
    model = sum(leaf.nbytes for leaf in jax.tree.leaves(pipe.params))
    return {"kept as": keep, "model": model, "peak": peak.bytes, "device": device_peak()}


def row(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


def main(argv: list[str]) -> None:
    if argv[:1] == ["one"]:
        what, *rest = argv[1:]
        result = {"write": write, "load": load, "generate": generate}[what](*rest)
        print(json.dumps(result) if result else "")
        return
    if argv == ["generate"]:
        rows = [row("one", "generate", keep) for keep in KEPT]
    else:
        with tempfile.TemporaryDirectory() as folder:
            row("one", "write", folder)
            rows = [row("one", "load", folder, keep) for keep in KEPT]
    for result in rows:
        megabytes = {name: f"{value / 1e6:.0f} MB" for name, value in result.items() if isinstance(value, int)}
        print(f"{result['kept as']:9}", *(f"{name} {text:>8}" for name, text in megabytes.items()), sep="  ")


if __name__ == "__main__":
    main(sys.argv[1:])
