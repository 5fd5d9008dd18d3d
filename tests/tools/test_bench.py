"""The benchmarks: what they time is the same on every side, in turn, and what they store makes a table."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
ROWS = {"block": 3, "text": 2, "encode": 2, "decode": 2}  # and in how many ways each is computed


@pytest.fixture(scope="module")
def tools():
    """The scripts as modules, under the names that they have for each other."""
    sys.path.insert(0, str(TOOLS))
    import bench
    import race
    import sides
    import tables

    yield {"bench": bench, "race": race, "sides": sides, "tables": tables}
    sys.path.remove(str(TOOLS))


@pytest.fixture
def here(tools, monkeypatch):
    """Sides in this process: they take their turns all the same. What they were asked, in order."""
    asked = []

    class Here(tools["race"].Worker):
        def __init__(self, job, **env):
            self.name, self.began, self.failed = job["side"], time.perf_counter(), {}
            self.side = tools["sides"].SIDES[job["side"]](job)
            self.about = tools["sides"].about(self.side)
            self.way = self.about["ways"][0]

        def ask(self, what, way, file=None):
            asked.append((self.name, what, way))
            return tools["sides"].answered(self.side, what, way, file and str(file))

        def end(self):
            pass

    for module in ("race", "bench"):
        monkeypatch.setattr(tools[module], "Worker", Here)
    return asked


def stored(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def check(tools, data, rows):
    """Fields that a reader and the README's tables rely on."""
    assert {"made_by", "machine", "date", "columns", "rows", "runs"} <= set(data)
    assert "cores of" in data["machine"] and "JAX" in data["machine"]
    assert len(data["rows"]) == rows
    for row in data["rows"]:
        assert len(row) == len(data["columns"])
        assert all(seconds > 0 for each in data["runs"][row[0]]["seconds"] for seconds in each)
    text = tools["tables"].table(data).splitlines()
    picture = 4 if "picture" in data else 0  # its note, itself, and the space around
    assert len(text) == rows + 4 + picture and text[-1].startswith(f"`{data['made_by']}`")


def test_calls_take_turns_and_stop_in_time(tools):
    order = []

    def call(name, seconds):
        return lambda: order.append(name) or seconds

    interleaved = tools["race"].interleaved
    assert interleaved([call("a", 1.0), call("b", 2.0)], rounds=5, limit=100) == [[1.0] * 5, [2.0] * 5]
    assert order == ["a", "b"] * 5
    assert interleaved([call("a", 30.0), call("b", 30.0)], rounds=5, limit=60) == [[30.0] * 3] * 2
    assert interleaved([call("a", 9.0), call("b", 9.0)], rounds=5, limit=60) == [[9.0] * 4] * 2


def test_sides_that_differ_are_no_benchmark(tools):
    agree, ours = tools["race"].agree, np.ones((2, 3))
    assert agree("same", [ours, ours, ours + 1e-6], 1e-4) == pytest.approx(1e-6, rel=1e-3)
    for theirs in (ours + 1e-3, ours * np.nan, np.ones((3, 2))):
        with pytest.raises(RuntimeError, match="differ"):
            agree("other", [ours, ours, theirs], 1e-4)


def test_rows_of_the_same_machine_stay(tools, tmp_path):
    def add(version, *rows, columns=("", "s")):
        table = tools["race"].Table("bench_x", "a command", [*columns], ["first", "second"], tmp_path)
        for row in rows:
            table.add([row, 1.0], {"device": "cpu", "versions": {"jax": "1", "torch": version}}, seconds=[[1.0]])
        return [row[0] for row in stored(tmp_path, "bench_x")["rows"]]

    assert add("2", "second", "more") == ["second", "more"]
    assert add("2", "first") == ["first", "second", "more"]
    assert "torch 2" in stored(tmp_path, "bench_x")["machine"]
    assert add("3", "first") == ["first"]
    assert add("3", "second", columns=("", "minutes")) == ["second"]


def test_scaling_with_tokens_frames_and_clips(tools, here, tmp_path):
    tools["bench"].main(["tokens", "--quick", "--out", str(tmp_path)])
    data = stored(tmp_path, "bench_tokens")
    check(tools, data, 3)
    assert data["made_by"] == "python tools/bench.py tokens --quick"
    of = {column: [row[i] for row in data["rows"]] for i, column in enumerate(data["columns"])}
    times = np.array([4, 4, 2])
    assert np.allclose(np.divide(of["s"], of["of x 1, s"]), of["times x 1"])
    assert np.allclose(of["times x 1"] / times, of["over linear"])
    assert of["FLOPs over linear"][2] == 1.0  # clips do not look at each other
    assert "tokens x 4: 1 x 64 tokens" in of[data["columns"][0]]
    curves = (tmp_path / "bench_tokens.svg").read_text()
    assert data["picture"] == "tools/results/bench_tokens.svg" and curves.count("<polyline") == 6
    assert curves.count("<circle") == 3 * 2 + 3  # seconds of both ends of each line, memory of the far one


def test_onnx_runtime_gets_an_export_and_the_table_its_command(tools, tmp_path, monkeypatch):
    """With an export that is none, and nothing timed."""
    import exports

    seen = []
    monkeypatch.setattr(
        exports, "made", lambda name, model, converter, out: seen.append((name, model, converter)) or out
    )
    monkeypatch.setattr(tools["bench"], "against", lambda *asked: seen.append(asked[1:]))
    tools["bench"].main(["--onnx", "ort/bin/python", "--converter", "c/bin/python", "--model", "my model", "--quick"])
    made, (rival, name, made_by, only) = seen
    assert made == ("onnx", "my model", "c/bin/python") and (name, only) == ("bench_onnx", ("clip", "start"))
    assert rival.side == "onnx" and rival.changes["python"] == "ort/bin/python" and "onnx" in rival.changes["model"]
    assert made_by == "python tools/bench.py --onnx PYTHON --converter PYTHON --model 'my model' --quick"
    for given in ("--against diffusers", "--against diffusers --dtype bfloat16 --rounds 7 --eager"):
        tools["bench"].main([*given.split(), "--only", "block_2k", "--out", str(tmp_path)])
        assert seen[-1][2] == f"python tools/bench.py {given}"


@pytest.mark.slow
def test_a_training_step_beside_a_matrix_product(tools, here, tmp_path):
    tools["bench"].main(["train", "--quick", "--out", str(tmp_path)])
    data = stored(tmp_path, "bench_train")
    check(tools, data, 1)
    run, row = data["runs"][data["rows"][0][0]], data["rows"][0]
    (step,), (product,) = run["seconds"]
    assert run["part"] == pytest.approx(run["flops"] / step / (2 * run["product"] ** 3 / product))
    assert 0 < run["loss"] < 100 and row[6] > 0
    assert [what for _, what, _ in here[-2:]] == ["time", "time"]


def test_a_side_in_a_process_of_its_own(tools, tmp_path):
    from dit_video.weights.folder import to_foreign_config

    case = tools["bench"].cases(True, ())["text"]
    job = {"side": "ours", "case": "text", "config": to_foreign_config(case.config), "size": case.size,
           "dtype": "float32"}  # fmt: skip
    with tools["race"].at_work(job) as (worker,):
        rows = worker.result(worker.way, tmp_path)
        worker.choose()
        assert worker.bytes > 10e6 and worker.time() > 0
        assert "failed" in worker.ask("time", "a way that there is not")
        assert worker.time() > 0  # it is still there
    again = tools["sides"].ours(job)
    assert tools["race"].difference(rows, again.array(again.calls["whole"]())) < 1e-5
    assert worker.process.poll() is not None


@pytest.mark.parity
def test_against_diffusers(tools, here, tmp_path):
    for package in ("torch", "diffusers", "transformers"):
        pytest.importorskip(package)
    tools["bench"].main(
        ["--against", "diffusers", "--quick", "--eager", "--only", ",".join([*ROWS, "clip"]), "--out", str(tmp_path)]
    )
    data = stored(tmp_path, "bench_diffusers")
    check(tools, data, 5)
    assert "torch" in data["machine"] and "diffusers" in data["machine"]
    for _words, ours, theirs, ratio, *memory, _, _, calls, off in data["rows"]:
        assert ratio == pytest.approx(theirs / ours)
        assert all(number > 0 for number in memory) and calls == 1
        assert float(off) < 1e-2
    assert all(float(row[-1]) < 1e-4 for row in data["rows"][:4])
    assert [what for _, what, _ in here].count("first") == sum(ROWS.values()) + 2


@pytest.mark.parity
def test_a_benchmark_of_other_weights_is_refused(tools, here, tmp_path, monkeypatch):
    for package in ("torch", "diffusers", "transformers"):
        pytest.importorskip(package)
    monkeypatch.setattr(tools["sides"], "our_weights", lambda cfg, made=tools["sides"].our_weights: _other(made(cfg)))
    with pytest.raises(RuntimeError, match="UMT5.* differ"):
        tools["bench"].main(["--against", "diffusers", "--quick", "--eager", "--only", "text", "--out", str(tmp_path)])
    assert not any(tmp_path.iterdir())


def _other(weights):
    return {**weights, "norm": {"scale": weights["norm"]["scale"] * 1.01}}


def test_long_steps_of_many_tokens_are_waited_for(tools, monkeypatch):
    """A step of 32 k tokens takes minutes: what it may take is no row's usual limit."""
    seen = {}
    monkeypatch.setattr(tools["bench"], "tokens", lambda args: seen.update(tokens=args.limit))
    monkeypatch.setattr(tools["bench"], "train", lambda args: seen.update(train=args.limit))
    for subject in ("tokens", "train"):
        tools["bench"].main([subject])
    assert seen["tokens"] >= 600 > seen["train"] == 60
    tools["bench"].main(["tokens", "--limit", "5"])
    assert seen["tokens"] == 5
