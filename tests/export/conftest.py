"""What the tests of exports share."""

import os
import subprocess
import sys

import pytest

HIDE = "import runpy, sys; sys.modules['dit_video'] = None; del sys.argv[0]; "
HIDE += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """An interpreter that runs a file, and in which this package cannot be imported."""
    python, probe = (tmp_path_factory.mktemp("alone") / name for name in ("python", "probe.py"))
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{HIDE}" "$@"\n')
    python.chmod(0o755)
    probe.write_text("from dit_video.core.errors import BadInput")
    said = subprocess.run([python, probe], capture_output=True, text=True, env=os.environ)
    assert "ModuleNotFoundError: No module named 'dit_video.core'" in said.stderr
    return str(python)
