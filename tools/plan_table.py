"""The README's tables of plans: every ready experiment on its target, and predictions beside what others published.

    python tools/plan_table.py            # all of it, a program at a time: half an hour on two quiet cores
    python tools/plan_table.py wan_1_3b_v5e_16 ...     # these alone; the other rows stay
    python tools/plan_table.py published               # what others measured, predicted

Needs the TPU compiler (libtpu), no TPU. Rows are stored as they are done, in tools/results/plan.json and
tools/results/published.json. The published figures: README of AI-Hypercomputer/maxdiffusion, with its layout and tiles.
Where one of them is of the same kind of chip and of work, the ready experiments are compared with its layout: the
model's operations a chip and second, both predicted.
"""

import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
GIB = 2**30
READY = {  # experiment -> flags
    "toyworld": ["--topology", "local", "--device", "cpu"],
    "wan_1_3b_v5e_16": [],
    "wan_1_3b_v6e_64": [],
    "wan_5b_v6e_64": [],
    "wan_14b_v5p_32": [],
    "wan_14b_tpu7x_8": [],
    "wan_1_3b_lora_v6e_1": [],
    "wan_14b_generate_v6e_8": ["--generate"],
}
COLUMNS = ["experiment", "topology", "chips", "HBM of a device, GiB", "there", "fits", "step or clip, s", "MFU, %",
           "compiled in, s"]  # fmt: skip
TIMES = "times the calibration layout"
PUBLISHED_COLUMNS = ["measured elsewhere", "topology", "published, s", "predicted, s", "error, %",
                     "HBM of a device, GiB", "there", "MFU, %"]  # fmt: skip


@dataclass(frozen=True)
class Published:
    """What was measured elsewhere. `mesh`: data, fsdp, context, tensor. `seconds`: of a training step, or of a clip."""

    name: str
    topology: str
    mesh: tuple[int, int, int, int]
    seconds: float
    generate: bool


PUBLISHED = (
    Published("train Wan 2.1 14B, 1280x720x81, batch 1", "v5p:2x2x1", (1, 1, 4, 1), 36.0, False),
    Published("Wan 2.1 14B, 1280x720x81, 50 steps, 8 devices", "tpu7x:2x2x1", (2, 1, 4, 1), 249.3, True),
    Published("Wan 2.1 14B, 1280x720x81, 50 steps, 16 devices", "tpu7x:2x2x2", (2, 1, 8, 1), 127.1, True),
)


def store(name: str, columns: list[str], rows: list[list[Any]], command: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    data = {"columns": columns, "rows": rows, "made_by": command, "date": time.strftime("%Y-%m-%d"),
            "machine": f"libtpu {version('libtpu')} on a CPU machine, {platform.machine()}",
            "compiler": version("libtpu")}  # fmt: skip
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def stored(name: str) -> dict[str, list[Any]]:
    path = RESULTS / f"{name}.json"
    return {row[0]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}


def store_plans(rows: dict[str, list[Any]]) -> None:
    """With a column for the layouts that others measured, where one of these was predicted. Between layouts of one kind
    of chip the share of its peak (MFU) says how many times the operations a chip and second are."""
    measured = stored("published")
    layouts: dict[tuple[str, bool], float] = {}
    for case in PUBLISHED:
        row = dict(zip(PUBLISHED_COLUMNS, measured.get(case.name, []), strict=False))
        if row.get("MFU, %"):
            layouts.setdefault((case.topology.partition(":")[0], case.generate), row["MFU, %"])
    made = []
    for name in (name for name in READY if name in rows):
        row = rows[name][: len(COLUMNS)]
        other = layouts.get((row[COLUMNS.index("topology")].partition(":")[0], "--generate" in READY[name]))
        mfu = row[COLUMNS.index("MFU, %")]
        made.append([*row, mfu / other if mfu and other else None] if layouts else row)
    store("plan", [*COLUMNS, TIMES] if layouts else COLUMNS, made, "python tools/plan_table.py")


def ready(names: list[str]) -> None:
    """`dit-video plan` for each, in a process of its own."""
    rows = stored("plan")
    for name in names:
        command = [sys.executable, "-m", "dit_video.cli.main", "plan", name, "--json", "--no_search", *READY[name]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, 2):
            sys.exit(f"{name}: exit code {done.returncode}")
        plan = json.loads(done.stdout)
        seconds, mfu, limit = plan["step_seconds"], plan["mfu"], plan["hbm_limit"]
        rows[name] = [name, plan["topology"], plan["chips"], plan["hbm_bytes"]["total"] / GIB, limit and limit / GIB,
                      plan["fits"], seconds, mfu and 100 * mfu, plan["compile_seconds"]]  # fmt: skip
        print(rows[name], file=sys.stderr, flush=True)
        store_plans(rows)


def peers_attention(q: Any, k: Any, v: Any, bias: Any, scale: float) -> Any:
    """Splash attention as the published runs had it: tiles of 512, a head after another within the kernel, the backward
    pass in two kernels; clips are mapped."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    from dit_video.nn.attention import chunked

    if bias is not None:
        return chunked(q, k, v, bias, scale)
    L, n = q.shape[1:3]
    whole = -(-L // 512) * 512
    q, k, v = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, whole - L), (0, 0))) for x in (q * scale, k, v))
    ids = (jnp.arange(whole) >= L).astype(jnp.int32)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((whole, whole))] * n),
        block_sizes=kernels.BlockSizes(*[512] * 8), head_shards=1, q_seq_shards=1,
    )  # fmt: skip
    out = jax.vmap(lambda *x: kernel(*x, segment_ids=kernels.SegmentIds(ids, ids)))(q, k, v)
    return out[:, :, :L].swapaxes(1, 2)


def published() -> None:
    """Each published figure planned in its own layout, but with what training holds here: weights, moments and an
    average in float32."""
    from dit_video.cli.plan import predict
    from dit_video.cli.plan.devices import slice_target
    from dit_video.cli.plan.generation import plan_generation
    from dit_video.core.config import load_experiment
    from dit_video.core.mesh import MeshShape
    from dit_video.core.slices import parse_slice
    from dit_video.nn.attention import BACKENDS

    BACKENDS["peers"] = peers_attention
    base, rows = load_experiment("wan_14b_v5p_32"), []
    dit = replace(base.objective.denoise.dit, attention="peers", remat="block")
    objective = replace(base.objective, denoise=replace(base.objective.denoise, dit=dit, tokens=512))
    for case in PUBLISHED:
        experiment = replace(base, objective=objective, batch=1, mesh=MeshShape(*case.mesh))
        target = slice_target(parse_slice(case.topology))
        make = plan_generation if case.generate else predict.plan_training
        plan = make(experiment, target, search=False)
        seconds = plan.cost.seconds if plan.timed else None  # none of what the compiler refuses
        error = seconds and 100 * (seconds / case.seconds - 1)
        rows.append([case.name, case.topology, case.seconds, seconds, error, plan.hbm["total"] / GIB, target.hbm / GIB,
                     plan.mfu and 100 * plan.mfu])  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
        store("published", PUBLISHED_COLUMNS, rows, "python tools/plan_table.py published")
    store_plans(stored("plan"))


def main() -> None:
    names = sys.argv[1:]
    if unknown := sorted(set(names) - {*READY, "published"}):
        sys.exit(f"unknown: {', '.join(unknown)}. There are: {', '.join(READY)}, published")
    ready([name for name in READY if name in names or not names])
    if not names or "published" in names:
        published()


if __name__ == "__main__":
    main()
