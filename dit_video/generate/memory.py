"""How much memory there is for a computation."""

from pathlib import Path

import jax

SPARE = 0.9  # part of what is free that is counted on


def free_memory(device: jax.Device | None = None) -> int | None:  # pyright: ignore[reportInvalidTypeForm]
    """Bytes that are free on a device, or for the CPU in this machine (or container); None where nothing says."""
    device = device or jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(SPARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    limits = [limit for limit in (_available(), _container()) if limit is not None]
    return int(SPARE * min(limits)) if device.platform == "cpu" and limits else None


def _available() -> int | None:
    """MemAvailable of Linux."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def _container(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left of the limit of a control group. Files that lie in its cache and were not touched lately count as
    free: they go when something wants the room."""
    try:
        limit, used, about = (
            group.joinpath(f"memory.{name}").read_text().strip() for name in ("max", "current", "stat")
        )
    except OSError:
        return None
    cached = dict(line.split() for line in about.splitlines()).get("inactive_file", 0)
    return None if limit == "max" else max(0, int(limit) - int(used) + int(cached))
