"""Notebooks are written as text: experiments/NAME.py in jupytext's percent format, from which NAME.ipynb is made.

    python tools/notebook.py            # writes the notebooks that the texts describe
    python tools/notebook.py --check    # exit 1 when one says anything else than its text

jupytext pairs the two as well; this needs nothing beside Python and gives the same bytes every time.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?$", re.MULTILINE)


def cells(text: str) -> list[dict[str, Any]]:
    """The cells of a text in percent format; markdown stands in triple quotes."""
    marks = list(CELL.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [cell(number, mark["kind"] is not None, text[mark.end() : end].strip("\n"))
            for number, (mark, end) in enumerate(zip(marks, ends, strict=True))]  # fmt: skip


def cell(number: int, markdown: bool, source: str) -> dict[str, Any]:
    body = source.removeprefix('"""\n').removesuffix('\n"""') if markdown else source
    about = {"cell_type": "markdown" if markdown else "code", "id": f"cell-{number}", "metadata": {}}
    code = {} if markdown else {"execution_count": None, "outputs": []}
    return about | code | {"source": body.splitlines(keepends=True)}


def notebook(text: str) -> str:
    """The notebook of a text, without outputs."""
    about = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return json.dumps({"cells": cells(text), "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def main(argv: list[str]) -> int:
    stale = []
    for text in sorted(EXPERIMENTS.glob("*.py")):
        if not CELL.search(source := text.read_text(encoding="utf-8")):
            continue
        file, wanted = text.with_suffix(".ipynb"), notebook(source)
        if not file.is_file() or file.read_text(encoding="utf-8") != wanted:
            stale.append(file)
            if "--check" not in argv:
                file.write_text(wanted, encoding="utf-8")
                print(file)
    if "--check" in argv and stale:
        print(f"{', '.join(str(file) for file in stale)}: not what the text says. python tools/notebook.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
