"""The README's table of plans, of which two rows are planned again: the compiler and the code still say the same."""

import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from dit_video.cli.main import main

STORED = Path(__file__).resolve().parents[3] / "tools" / "results" / "plan.json"
AGAIN = ("wan_1_3b_lora_v6e_1", "wan_1_3b_v5e_16")
GIB = 2**30

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"),
]


@pytest.mark.parametrize("name", AGAIN)
def test_a_ready_experiment_is_planned_as_the_table_says(name, capsys):
    data = json.loads(STORED.read_text())
    rows = {row[0]: dict(zip(data["columns"], row, strict=True)) for row in data["rows"]}
    row = rows[name]
    code = main(["plan", name, "--json", "--no_search", "--quiet"])
    plan = json.loads(capsys.readouterr().out)
    assert code == (0 if row["fits"] else 2)
    assert (plan["topology"], plan["chips"], plan["fits"]) == (row["topology"], row["chips"], row["fits"])
    same = version("libtpu") == data["compiler"]  # another compiler may do a little better or worse
    assert plan["hbm_bytes"]["total"] / GIB == pytest.approx(row["HBM of a device, GiB"], rel=0.005 if same else 0.1)
    assert plan["step_seconds"] == pytest.approx(row["step or clip, s"], rel=0.005 if same else 0.15)
    assert 100 * plan["mfu"] == pytest.approx(row["MFU, %"], rel=0.01 if same else 0.15)
