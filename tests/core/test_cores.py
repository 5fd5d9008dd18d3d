"""Each core a device: what JAX is told, and when nothing is. In processes of their own: this one has its devices."""

import os
import subprocess
import sys

import pytest

from dit_video.core.cores import only_a_cpu

CODE = """
import os
from dit_video.core.cores import one_device_a_core
os.sched_getaffinity = lambda pid: {0, 1, 2}
before = dict(os.environ)
print(one_device_a_core("cpu", lambda n: n > 3), dict(os.environ) == before)
print(one_device_a_core("cpu", lambda n: n == 2), "multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", ""))
print(one_device_a_core("cpu", lambda n: True))
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
print(jax.device_count())
if jax.device_count() == 2:  # told otherwise, JAX may wait for ever: threads of two programs hold one another up
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("data")))
    total = jax.jit(jnp.sum)
    for _ in range(50):  # one after the other, without waiting in between
        y = total(x)
    print(float(y))
"""
NAMES = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "NPROC")


@pytest.mark.parametrize(
    "env, said",
    [
        ({}, ["1 True", "2 True", "1", "2", "28.0"]),
        ({"JAX_NUM_CPU_DEVICES": "4"}, ["1 True", "1 False", "1", "4"]),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, ["1 True", "1 False", "1", "8"]),
    ],
)
def test_devices_are_those_that_fit_or_that_were_told(env, said):
    bare = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", CODE], env=bare | env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == said


@pytest.mark.parametrize(
    "wanted, env, answer",
    [
        ("cpu", {}, True),
        ("gpu", {}, False),
        ("auto", {"JAX_PLATFORMS": "cpu"}, True),
        ("auto", {"JAX_PLATFORMS": "cuda,cpu"}, False),
        ("cpu", {"JAX_PLATFORMS": "cuda"}, True),
    ],
)
def test_whether_it_is_a_cpu_is_known_without_asking_jax(monkeypatch, wanted, env, answer):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert only_a_cpu(wanted) is answer
