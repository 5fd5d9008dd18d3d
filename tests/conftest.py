"""What every test gets: no network, a fixed seed, and eight fake devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Reference implementations read configs and code from their packages only.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

from pathlib import Path

import jax
import numpy as np
import pytest

# Eight devices on the CPU, so that shardings are tried for real; `make_mesh(shape, jax.devices()[:1])` is one device.
# A setting and not an environment variable: processes that tests start see the machine as it is.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout that the tests lie in. The package itself may be installed elsewhere."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
