"""Measures the peak memory of a model that is loaded, and of one that makes a clip, for each way to keep its weights.

    python tools/memory.py             # loading a random denoiser of 0.15 B parameters
    python tools/memory.py generate    # a clip from random weights, a text encoder of 0.1 B parameters among them
    python tools/memory.py MODEL       # a clip from a model folder

Stored as tools/results/memory_load.json and memory_generate.json. Every row is a process of its own; counted is what it
alone holds (RssAnon of Linux: without the pages of files that it reads), sampled every few milliseconds, over what it
held before. On a GPU or TPU the device's own peak stands beside.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
KEPT = ("float32", "bfloat16", "int8")
# (weights are kept as, layers stay on the host, the text encoder is let go after encoding)
WAYS = [(keep, False, True) for keep in KEPT] + [("float32", False, False), ("float32", True, True)]


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


def load(folder: str, keep: str) -> list[Any]:
    """[kept as, bytes of the model, of its largest array, peak, the device's peak]"""
    import jax

    from dit_video.weights.folder import open_part
    from dit_video.weights.place import place

    jax.devices()
    stored = open_part(Path(folder), sizes())
    with Peak() as peak:
        placed = place(stored, None, keep)
    leaves = [leaf.nbytes for leaf in jax.tree.leaves(placed)]
    return [keep, sum(leaves), max(leaves), peak.bytes, device_peak()]


def whole(folder: str) -> None:
    """A model folder of random weights, its text encoder the largest part, as in the released models."""
    import numpy as np

    from dit_video.models.dit import DiTConfig
    from dit_video.models.text import TextConfig
    from dit_video.models.tokenizer import train
    from dit_video.models.vae import VAEConfig
    from dit_video.weights.folder import save_model
    from dit_video.weights.model import Defaults, Model, shapes
    from dit_video.weights.names import unflatten

    dit = DiTConfig(in_channels=8, out_channels=8, heads=4, head_dim=64, depth=6, ffn_dim=1024, text_dim=768)
    text = TextConfig(vocab=8192, width=768, heads=12, head_dim=64, ffn_dim=2048, depth=12)
    vae = VAEConfig(base=8, z=8, mult=(1, 2, 2), temporal=(True, True), res_blocks=1, patch=2)
    rng, parts = np.random.default_rng(0), {"dit": dit, "text": text, "vae": vae}
    params = {
        name: unflatten({path: rng.standard_normal(shape, np.float32) / 50 for path, shape in shapes(cfg).items()})
        for name, cfg in parts.items()
    }
    words = train([f"a {a} {b}" for a in ("red", "blue") for b in ("star", "ring", "circle")] * 3, 100)
    scheduler = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0}
    defaults = Defaults(steps=2, num_frames=9)
    save_model(Model(**parts, params=params, tokenizer=words, scheduler=scheduler, defaults=defaults), folder)


def generate(folder: str, keep: str, offload: str, lets_go: str) -> list[Any]:
    """[kept as, layers on the host, text encoder let go, bytes of the model, peak, the device's peak]"""
    import jax

    from dit_video.generate import held
    from dit_video.generate.pipeline import VideoPipeline

    held.LARGE = 1 if lets_go == "True" else 2**60  # by itself it is for large models alone
    jax.devices()
    with Peak() as peak:
        pipe = VideoPipeline.from_pretrained(folder, keep=keep, offload=offload == "True")
        pipe("a red star", seed=0, num_inference_steps=2)
    size = sum(leaf.nbytes for part in pipe.params for leaf in jax.tree.leaves(pipe.params[part]))
    return [keep, offload == "True", lets_go == "True", size, peak.bytes, device_peak()]


def row(*arguments: Any) -> list[Any]:
    done = subprocess.run([sys.executable, __file__, "one", *map(str, arguments)], check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else []
    return [round(value / 1e6) if isinstance(value, int) and not isinstance(value, bool) else value for value in found]


def main(argv: list[str]) -> None:
    if argv[:1] == ["one"]:
        what, *rest = argv[1:]
        result = {"write": write, "load": load, "whole": whole, "generate": generate}[what](*rest)
        print(json.dumps(result) if result else "")
        return
    from measure import store

    made_by = " ".join(["python tools/memory.py", *argv])
    with tempfile.TemporaryDirectory() as folder:
        if not argv:
            row("write", folder)
            columns = [
                "weights kept as",
                "MB of the model",
                "MB of its largest array",
                "MB at the peak",
                "MB on a device",
            ]
            store("memory_load", made_by=made_by, columns=columns, rows=[row("load", folder, keep) for keep in KEPT])
            return
        if argv == ["generate"]:
            row("whole", model := f"{folder}/model")
        else:
            (model,) = argv
        columns = ["weights kept as", "layers on the host", "text encoder let go", "MB of the model", "MB at the peak"]
        rows = [row("generate", model, *way) for way in WAYS]
        store("memory_generate", made_by=made_by, columns=[*columns, "MB on a device"], rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
