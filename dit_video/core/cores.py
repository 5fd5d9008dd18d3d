"""A CPU as several devices, one a core.

The threads of one CPU device share each operation, and most operations of a small model are too short for that: the
others wait. As devices of one thread each the cores run the same program side by side, each on its part of the batch.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable

from dit_video.core.log import log

MOST = 16  # each device holds all of the weights and of the optimizer


def one_device_a_core(wanted: str, fits: Callable[[int], bool]) -> int:
    """Tells JAX, before it meets its devices, to make each core one. Returns how many there will be.

    wanted: `auto`, `cpu`, `gpu` or `tpu`. As many cores are taken as `fits` says yes to. Nothing changes (1) where
    there may be another device than a CPU, where JAX was told how many there are (JAX_NUM_CPU_DEVICES, its config,
    XLA_FLAGS), and where it has met them already.
    """
    import jax

    told = jax.config.jax_num_cpu_devices > 0 or "device_count" in os.environ.get("XLA_FLAGS", "")
    if told or not only_a_cpu(wanted):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = next((n for n in range(min(cores, MOST), 1, -1) if fits(n)), 1)
    if count > 1:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:  # it has met them: this is not the process's first work
            return 1
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
        # Devices wait for one another in threads of a pool; with one thread a core they could all be waiting.
        os.environ.setdefault("NPROC", str(2 * count))
        # Two programs in flight could each have half of the threads and wait for the other half.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        log.debug("%d CPU devices of one thread each", count)
    return count


def only_a_cpu(wanted: str) -> bool:
    """Whether JAX will run on the CPU, without asking it: that would settle how many devices there are."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if wanted != "auto" or platforms:
        return (wanted if wanted != "auto" else platforms) == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
