"""The README's table of faults: every test that it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def lacking(text: str) -> list[str]:
    """The tests that a text names, as pytest does, and that nobody wrote."""
    named = re.findall(r"\b(tests/[\w/]+\.py)::(\w+)", text)
    files = {file: ROOT / file for file, _ in named}
    written = {file: path.read_text() if path.is_file() else "" for file, path in files.items()}
    return [f"{file}::{test}" for file, test in named if not re.search(rf"^def {test}\(", written[file], re.MULTILINE)]


def test_tests_that_the_readme_names_are_there():
    assert not lacking((ROOT / "README.md").read_text())


def test_what_is_not_there_is_found():
    here = "tests/contracts/test_faults.py"
    text = f"| x | `{here}::test_nobody_wrote`, `{here}::test_what_is_not_there_is_found` | tests/a.py::b |"
    assert lacking(text) == [f"{here}::test_nobody_wrote", "tests/a.py::b"]
