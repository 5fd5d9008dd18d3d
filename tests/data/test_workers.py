"""Worker processes: everything arrives once, and a worker that dies is replaced or its item is given up."""

import os
import sys
from functools import partial

import pytest

from dit_video.core.errors import BadInput
from dit_video.data.workers import Broken, Done, run

# Worker processes import what they run: a module of its own, which a spawned process finds by its path.
CODE = """
import os, signal
from pathlib import Path
from dit_video.core.errors import BadInput

def count(folder, item):
    if item == "bad":
        raise BadInput("bad is bad")
    for k in range(int(item)):
        if item == "4" and k == 2:
            mark = Path(folder, f"died{len(list(Path(folder).glob('died*')))}")
            mark.touch()
            if mark.name < "died%d" % int(os.environ.get("DEATHS", "0")):
                os.kill(os.getpid(), signal.SIGKILL)
        yield int(item), k
"""


@pytest.fixture
def counting(tmp_path, monkeypatch):
    (tmp_path / "counting_module.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield partial(__import__("counting_module").count, str(tmp_path))
    sys.modules.pop("counting_module")


def results(function, items, workers):
    of_item = {}
    for number, result in run(function, items, workers):
        of_item.setdefault(items[number], []).append(result)
    return of_item


ITEMS = ["3", "bad", "0", "4", "1"]
WHOLE = {item: [(int(item), k) for k in range(int(item))] + [Done()] for item in "3041"}


def test_one_after_the_other_in_this_process(counting):
    assert results(counting, ITEMS, 0) == WHOLE | {"bad": [Broken("bad is bad"), Done()]}


def test_an_error_of_ours_is_not_swallowed():
    def broken(item):
        yield 1 / item

    with pytest.raises(ZeroDivisionError):
        list(run(broken, [0], 0))
    assert issubclass(BadInput, Exception)


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_workers_that_are_killed(counting, monkeypatch, deaths):
    """Killed once, the item goes on in another worker where it was; twice, it is given up."""
    monkeypatch.setenv("DEATHS", str(deaths))
    got = results(counting, ITEMS, 2 if deaths == 0 else 1)
    wanted = WHOLE | {"bad": [Broken("bad is bad"), Done()]}
    if deaths == 2:
        reason = "2 processes died reading it (exit code -9)"
        wanted["4"] = [(4, 0), (4, 1), Broken(reason), Done()]
    assert got == wanted


def test_a_worker_that_dies_while_it_waits(counting):
    """It has sent its last result; what it is given next goes to another."""
    import multiprocessing

    got = []
    for number, result in run(counting, ["1", "2"], 1):
        got.append((number, result))
        if got[-1] == (0, Done()):
            (child,) = multiprocessing.active_children()
            child.kill()
            child.join()
    assert got == [(0, (1, 0)), (0, Done()), (1, (2, 0)), (1, (2, 1)), (1, Done())]


def test_a_run_that_is_left_leaves_no_process(counting):
    import multiprocessing

    stream = run(counting, ["3", "3", "3"], 1)
    next(stream)
    stream.close()
    for child in multiprocessing.active_children():
        child.join(20)
    assert not multiprocessing.active_children()
    assert os.getpid()
