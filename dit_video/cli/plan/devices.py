"""Devices to compile for: those of a TPU slice that is not here, or those of this machine."""

import os
from importlib.util import find_spec

from dit_video.cli.plan.chips import chip_of
from dit_video.cli.plan.predict import Target
from dit_video.core.errors import MissingError
from dit_video.core.slices import Slice

# What libtpu asks the machine that it is not on.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once: no TPU is opened
}


def slice_target(where: Slice) -> Target:
    """The devices of a slice, known to the compiler alone. Raises `MissingError` without the compiler."""
    if find_spec("libtpu") is None:
        raise MissingError(
            "--topology: the TPU compiler is not installed. It runs without a TPU: pip install 'jax[tpu]' (or the "
            "libtpu that your jax asks for)."
        )
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        host = {"chips_per_host_bounds": (1, 1, 1)} if where.chips == 1 else {}  # of a chip alone
        devices = topologies.get_topology_desc(platform="tpu", topology_name=str(where), **host).devices
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise MissingError(f"--topology {where}: the TPU compiler here does not know it ({first}).") from error
    chip = chip_of(where)
    return Target(str(where), where.chips, list(devices), chip, chip.hbm / chip.devices)


def local_target() -> Target:
    """The devices that JAX sees. Those without a data sheet (a CPU) are planned for by memory alone."""
    import jax

    from dit_video.generate.memory import free_memory

    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    chips = len(devices) // (chip.devices if chip else 1)
    free = free_memory(devices[0])
    share = len(devices) if devices[0].platform == "cpu" else 1
    hbm = free / share if free is not None else chip.hbm / chip.devices if chip else float("inf")
    return Target(devices[0].device_kind, chips, devices, chip, hbm)
