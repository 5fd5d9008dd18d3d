"""The tool that makes the README's tables of plans: nothing is compiled here."""

import json
from types import SimpleNamespace

import pytest

from dit_video.cli.plan.chips import CHIPS
from dit_video.cli.plan.costs import Cost
from dit_video.cli.plan.predict import Plan, Target


@pytest.fixture
def tool(load, tmp_path, monkeypatch):
    """The tool, storing in a folder of its own, whatever compilers are here."""
    tool = load("plan_table.py")
    monkeypatch.setitem(tool["store"].__globals__, "RESULTS", tmp_path)
    monkeypatch.setitem(tool["store"].__globals__, "version", lambda name: "0.1")
    return tool


def stored(folder, name):
    data = json.loads((folder / f"{name}.json").read_text())
    return {row[0]: dict(zip(data["columns"], row, strict=True)) for row in data["rows"]}


def test_a_refused_case_has_no_time_and_no_case_is_searched(tool, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "dit_video.cli.plan.devices.slice_target", lambda where: Target(str(where), 4, [None] * 4, CHIPS["v5p"], 1e11)
    )

    def training(experiment, target, search):
        asked.append(search)
        return Plan(target, "", {"total": 2**30}, True, Cost(seconds=40.0), model_flops=40 * 4 * 459e12 / 2)

    def generation(experiment, target, steps=None, search=True):
        asked.append(search)
        return Plan(target, "", {"total": 2**40}, False, Cost())

    monkeypatch.setattr("dit_video.cli.plan.predict.plan_training", training)
    monkeypatch.setattr("dit_video.cli.plan.generation.plan_generation", generation)
    tool["published"]()
    assert asked == [False] * len(tool["PUBLISHED"])
    trained, *clips = stored(tmp_path, "published").values()
    assert trained["predicted, s"] == 40.0 and trained["MFU, %"] == pytest.approx(50)
    assert trained["error, %"] == pytest.approx(100 * (40 / 36 - 1))
    assert all(clip["predicted, s"] is clip["error, %"] is clip["MFU, %"] is None for clip in clips)


def test_ready_experiments_are_compared_with_layouts_of_their_chip_and_work(tool, tmp_path):
    def row(name, topology, mfu):
        cells = dict.fromkeys(tool["COLUMNS"]) | {"experiment": name, "topology": topology, "MFU, %": mfu}
        return [*cells.values()]

    rows = {name: row(name, topology, 60.0) for name, topology in
            (("wan_14b_v5p_32", "v5p:2x4x4"), ("wan_14b_tpu7x_8", "tpu7x:2x2x2"), ("toyworld", "cpu"))}  # fmt: skip
    tool["store_plans"](rows)
    assert "times" not in (tmp_path / "plan.json").read_text()  # nothing to compare with yet
    case = tool["PUBLISHED"][0]
    cells = dict.fromkeys(tool["PUBLISHED_COLUMNS"]) | {"measured elsewhere": case.name, "MFU, %": 40.0}
    (tmp_path / "published.json").write_text(json.dumps({"rows": [[*cells.values()]]}))
    for _ in range(2):  # the second time the rows have the column
        tool["store_plans"](tool["stored"]("plan"))
        times = {name: row[tool["TIMES"]] for name, row in stored(tmp_path, "plan").items()}
        assert times == {"toyworld": None, "wan_14b_v5p_32": 1.5, "wan_14b_tpu7x_8": None}


def test_a_device_without_a_data_sheet_or_a_limit_has_a_row(tool, tmp_path, monkeypatch):
    plan = {"topology": "cpu", "chips": 2, "hbm_bytes": {"total": 2**30}, "hbm_limit": None, "fits": True,
            "step_seconds": None, "mfu": None, "compile_seconds": 3.0}  # fmt: skip
    seen = []

    def run(command, **_):
        seen.append(command)
        return SimpleNamespace(returncode=0, stdout=json.dumps(plan))

    monkeypatch.setattr(tool["subprocess"], "run", run)
    tool["ready"](["toyworld"])
    assert seen[0][-4:] == ["--topology", "local", "--device", "cpu"]
    assert stored(tmp_path, "plan")["toyworld"]["fits"] is True
