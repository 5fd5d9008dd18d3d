"""What the tests of tools share."""

import runpy
import sys

import pytest


@pytest.fixture(scope="module")
def load(checkout):
    """Runs a tool by its name, with its neighbours to import; gives its globals."""
    sys.path.insert(0, str(checkout / "tools"))
    yield lambda name: runpy.run_path(str(checkout / "tools" / name))
    sys.path.remove(str(checkout / "tools"))


@pytest.fixture(scope="module")
def rows_of(load):
    """Rows that are stored as they are done."""
    return load("measure.py")["Rows"]
