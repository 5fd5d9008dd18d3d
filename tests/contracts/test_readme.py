"""What the README says is so: its commands run elsewhere, its tables are the measurements, its links lead somewhere."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dit_video.export import onnx, stablehlo

ROOT = Path(__file__).resolve().parents[2]


def load(name: str):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


readme, tables = load("readme"), load("tables")
BLOCKS = readme.blocks()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """One folder for all blocks, in their order: what one makes, the next one uses."""
    return tmp_path_factory.mktemp("reader")


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.number}-{block.language}")
def test_commands_run(block, elsewhere):
    if block.skipped:
        pytest.skip(f"tagged in the README: {block.skipped}")
    interpreter = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    assert block.language in interpreter, f"no way to run a block of {block.language}: tag it"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        [*interpreter[block.language], block.script()], cwd=elsewhere, env=env, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{block.script()}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_the_two_commands_come_first():
    assert BLOCKS[0].code.strip() == 'pip install . && dit-video generate "a red circle moves right"'
    assert BLOCKS[1].code.strip() == "pip install '.[test]' && pytest"


def test_continuous_integration_runs_them_from_here():
    text = (ROOT / ".ci" / "run").read_text()
    assert 'tools/readme.py" "$1"' in text
    newer, _, older = text.partition("\n# -- 3.11, whole")
    assert "\n  readme_command 1\n" in newer.partition("interpreter 3.12)")[2]
    assert re.search(r"\n  pytest( tests/\S+){5}\n", newer)
    assert all((ROOT / path).exists() for path in re.findall(r"tests/\S+", newer))
    assert "\nreadme_command 1\n" in older
    assert "\nreadme_command 2\n" in older
    assert older.rstrip().splitlines()[-1] == 'say "done${left_out:+, but $left_out}"'


def test_continuous_integration_runs_exports_with_what_their_cards_ask_for():
    """And nothing else: `run.py` in an environment of its own."""
    text = (ROOT / ".ci" / "run").read_text()
    for name, needs in (("stablehlo", stablehlo.NEEDS), ("onnx", onnx.NEEDS)):
        assert f'"$work/{name}/bin/python" -m pip install --quiet {shlex.join(needs)}' in text
        assert f'--{name} "$work/{name}/bin/python"' in text.partition("\npython tools/exports.py --count 2 ")[2]


def test_tags_are_few_and_give_reasons():
    skipped = [block for block in BLOCKS if block.skipped]
    assert len(skipped) <= 4
    assert all(len(block.skipped) > 10 for block in skipped)
    assert len(BLOCKS) - len(skipped) >= len(skipped)


def test_a_tag_changes_only_its_long_commands():
    text = (
        "```bash\na\n```\n<!-- not run: wants eight chips -->\n```bash\nb\n```\n"
        "<!-- run with: --steps 2 -->\n```bash\ndit-video train x \\\n  --y 1  # long\ndit-video generate p\n```\n"
        "<!-- run with: --count 2 -->\n```bash\ndit-video eval --count 96\ndit-video plan x\n```\n"
    )
    one, two, three, four = readme.blocks(text)
    assert (one.skipped, one.script(), two.skipped) == (None, "a\n", "wants eight chips")
    assert four.script() == "dit-video eval --count 96 --count 2\ndit-video plan x --count 2"
    assert three.script().split() == [*"dit-video train x --y 1 --steps 2".split(), "dit-video", "generate", "p"]  # noqa: SIM905


def test_tables_are_the_measurements():
    text = (ROOT / "README.md").read_text()
    assert tables.filled(text) == text, "run python tools/tables.py"


def test_every_measurement_is_shown_and_says_where_it_is_from():
    shown = {m["name"] for m in tables.SLOT.finditer((ROOT / "README.md").read_text())}
    stored = {path.stem: json.loads(path.read_text()) for path in (ROOT / "tools" / "results").glob("*.json")}
    assert set(stored) <= shown
    for name, data in stored.items():
        assert data["made_by"], name
        assert data["machine"], name
        assert data["date"], name


def test_whatever_a_tool_stores_has_a_place():
    """A name that a script of tools/ gives to what it stores: README.md shows it as soon as it is there."""
    text = "".join(path.read_text() for path in (ROOT / "tools").glob("*.py"))
    names = set(re.findall(r"""(?:\bstore|\bRows|\bTable)\(\s*"(\w+)\"""", text))
    names |= set(re.findall(r"rival, \"(bench_\w+)\"", text))
    assert {"world", "reconstruction", "seam", "scaling", "bench_onnx", "long_content", "published", "input"} <= names
    shown = {m["name"] for m in tables.SLOT.finditer((ROOT / "README.md").read_text())}
    assert not names - shown


def test_a_table_without_a_measurement_is_empty():
    slot = "<!-- table: nobody-measured-this -->\n{}<!-- end -->"
    assert tables.filled(slot.format("| 99 % |\n")) == slot.format("")


def test_a_table_of_scores():
    share = {"value": 0.9375, "low": 0.87, "high": 0.97, "n": 96}
    data = {
        "scores": {"colour": share},
        "splits": {"template": {"seen": {"colour": share}, "unseen": {}}},
        "reference": {"renders": {"colour": 1.0}},
        "values": {"colour": {"red": {"value": 0.5, "n": 12}}},
        "made_by": "dit-video eval",
        "machine": "m",
        "date": "d",
    }
    text = tables.table(data).splitlines()
    assert text[0] == "|  | as asked (95 % interval) | template: seen | template: unseen | renders |"
    assert text[2] == "| colour | 93.8 % (87-97, n 96) | 93.8 % (87-97, n 96) | - | 100.0 % |"
    assert text[6] == "| colour | red 50.0 % |"
    assert text[-1] == "`dit-video eval` (m, d)"


def test_decibels_are_no_percentage():
    score = {"value": 31.234, "low": 30.91, "high": 31.5, "n": 96}
    data = {"suite": "reconstruction", "scores": {"psnr": score}, "splits": {"group": {"plain": {"psnr": score}}},
            "reference": {"renders": {"psnr": 99.0}}, "made_by": "dit-video eval"}  # fmt: skip
    lines = tables.table(data).splitlines()
    assert lines[0] == "|  | 95 % interval | group: plain | renders |"
    assert lines[2] == "| psnr | 31.2 (30.9 to 31.5, n 96) | 31.2 (30.9 to 31.5, n 96) | 99 |"


def test_links_and_pictures_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text):
        target = "".join(target)
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (ROOT / target).exists(), target


def test_the_tree_is_the_tree():
    """Every folder and file that the README's tree names is there."""
    (tree,) = re.findall(r"^```\n(dit_video/.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    parents: list[str] = []
    for line in tree.splitlines():
        name = re.match(r"( *)([\w./-]+)", line)
        if name is None:
            continue
        depth = len(name[1]) // 2
        parents[depth:] = [name[2]]
        assert (ROOT / "/".join(p.rstrip("/") for p in parents)).exists(), line
