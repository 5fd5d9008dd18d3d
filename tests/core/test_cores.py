"""Each core a device: what JAX is told, and when nothing is."""

import os
import subprocess
import sys

import jax
import pytest

from dit_video.core.cores import one_device_a_core, only_a_cpu

CODE = """
from dit_video.core.cores import one_device_a_core
count = one_device_a_core("cpu", lambda n: n == 2)
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("data")))
total = jax.jit(jnp.sum)
for _ in range(50):  # in flight one after the other
    y = total(x)
print(count, jax.device_count(), float(y))
"""


@pytest.fixture
def bare(monkeypatch):
    for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_two_devices_add_up(bare):
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2", "28.0"]


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
def test_whether_it_is_a_cpu_is_known_without_asking_jax(bare, monkeypatch, wanted, env, answer):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert only_a_cpu(wanted) is answer


@pytest.mark.parametrize(
    "env", [{"JAX_NUM_CPU_DEVICES": "4"}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}]
)
def test_what_was_told_already_stands(bare, monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    assert one_device_a_core("cpu", lambda n: True) == 1
    assert dict(os.environ) == before


def test_a_process_that_has_devices_keeps_them(bare, monkeypatch):
    before, count = dict(os.environ), jax.device_count()
    assert one_device_a_core("cpu", lambda n: True) == 1
    assert (dict(os.environ), jax.device_count()) == (before, count)


def test_no_more_devices_than_divide_the_work(bare):
    before = dict(os.environ)
    assert one_device_a_core("cpu", lambda n: n > 3) == 1  # of three cores
    assert dict(os.environ) == before
