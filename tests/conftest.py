"""What every test gets: no network, a fixed seed, eight fake devices, and the shapes in signatures checked."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test has compiled, others and the processes that they start find.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dit_video-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Reference implementations read configs and code from their packages only.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import logging
import runpy
import sys
import types
import typing
from contextlib import contextmanager
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from beartype import BeartypeConf, beartype

# Eight devices on the CPU, so that shardings are tried for real; `make_mesh(shape, jax.devices()[:1])` is one device.
# A setting and not an environment variable: processes that tests start see the machine as it is.
jax.config.update("jax_num_cpu_devices", 8)
# Tests compile much and run little: LLVM's expensive passes cost three times what the tests themselves do. Processes
# that tests start have them.
jax.config.update("jax_disable_most_optimizations", True)


def holds_shape(hint: typing.Any) -> bool:
    """Whether an annotation has an array's shape in it."""
    if isinstance(hint, type) and not typing.get_origin(hint):
        return issubclass(hint, jaxtyping.AbstractArray)
    return any(holds_shape(part) for part in typing.get_args(hint))


def check_shapes(function: typing.Any) -> typing.Any:
    """Checks a function's array annotations, and only those, whenever it is called or traced.

    Constructors are left out: what is registered with JAX as a tree holds NumPy arrays, tracers and shapes in turn.
    """
    if not isinstance(function, types.FunctionType) or function.__name__ == "__init__":
        return function
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if holds_shape(hint)}
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function) if function.__annotations__ else function


# The floors of mathematics; the borders (files, requests, the command line) take what users give and raise `BadInput`.
sys.modules["shape_checks"] = types.ModuleType("shape_checks")
sys.modules["shape_checks"].check = check_shapes
floors = ("core", "nn", "models", "diffusion", "train")
jaxtyping.install_import_hook([f"dit_video.{floor}" for floor in floors], "shape_checks.check")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout that the tests lie in. The package itself may be installed elsewhere."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny() -> typing.Any:
    """A whole `Model` of a few thousand random weights (see miniature.py)."""
    return runpy.run_path(str(Path(__file__).with_name("miniature.py")))["miniature"]()


@contextmanager
def _optimized() -> typing.Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def with_optimizations() -> typing.Any:
    """A context for what runs longer than it compiles: renders by the hundred take a hundredth of the time."""
    return _optimized


@pytest.fixture(scope="module")
def optimized(with_optimizations) -> typing.Iterator[None]:
    """The same for all tests of a file."""
    with with_optimizations():
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _plain_log():
    """The package's logger as a library has it, whatever a run in another test or fixture has set up: pytest listens
    at the root, and once more at every logger that does not propagate when a test begins."""
    log = logging.getLogger("dit_video")
    log.handlers[:], log.propagate = [], True
    log.setLevel(logging.NOTSET)
    yield
    log.handlers[:], log.propagate = [], True
    log.setLevel(logging.NOTSET)
