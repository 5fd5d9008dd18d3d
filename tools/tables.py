"""The README's tables are made from the measurements in tools/results/, one JSON file a table, never typed.

    python tools/tables.py            # writes them into README.md
    python tools/tables.py --check    # exit 1 when README.md says anything else than the measurements

In the README a table stands between `<!-- table: NAME -->` and `<!-- end -->`; its numbers are tools/results/NAME.json:
either {"columns": [...], "rows": [[...], ...], "made_by": command, "machine": words, "date": day}, with a "note" and a
"picture" (a path in the checkout) if there are such, or the object that `dit-video eval --json` printed, with
"made_by", "machine" and "date" added.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "tools" / "results"
SLOT = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def cell(value: Any) -> str:
    """A number as it is read: 3 digits, no noise."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def percent(score: Any) -> str:
    """A share, with its interval and its count where it has them: `93.8 % (87-97, n 96)`."""
    if score is None:
        return "-"
    if not isinstance(score, dict):
        return f"{100 * score:.1f} %"
    text = f"{100 * score['value']:.1f} %"
    if "low" in score and "high" in score:
        text += f" ({100 * score['low']:.0f}-{100 * score['high']:.0f}"
        text += f", n {score['n']})" if "n" in score else ")"
    return text


def measured(score: Any) -> str:
    """A number that is no share, with its interval and its count where it has them: `31.2 (30.9 to 31.5, n 96)`."""
    if not isinstance(score, dict):
        return cell(score)
    count = f", n {score['n']}" if "n" in score else ""
    about = f" ({cell(score['low'])} to {cell(score['high'])}{count})" if "low" in score and "high" in score else ""
    return cell(score["value"]) + about


def grid(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell(v) for v in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def scored(data: dict[str, Any]) -> str:
    """The tables of an evaluation: a row a score, beside it each side of each split, exact renders and shuffled
    prompts; then each attribute value by value, numbers beside those of renders, and the free prompts. Scores are
    shares in the suite of prompts alone."""
    prompts = data.get("suite", "toyworld") == "toyworld"
    show = percent if prompts else measured
    sides = {
        f"{name}: {side}": scores for name, split in data.get("splits", {}).items() for side, scores in split.items()
    }
    sides |= data.get("reference", {})
    rows = [
        [name, show(score), *(show(scores.get(name)) for scores in sides.values())]
        for name, score in data["scores"].items()
    ]
    parts = [grid(["", "as asked (95 % interval)" if prompts else "95 % interval", *sides], rows)]
    values = [
        [name, ", ".join(f"{value} {percent(score)}" for value, score in each.items())]
        for name, each in data.get("values", {}).items()
    ]
    parts += [grid(["", "value by value"], values)] if values else []
    numbers = [[name, measured(one), one.get("ours"), one.get("renders")]
               for name, one in data.get("quality", {}).items()]  # fmt: skip
    parts += [grid(["", "over renders, or a mean (95 % interval)", "ours", "renders"], numbers)] if numbers else []
    if free := data.get("free"):
        known = free.get("reference", {})
        rows = [[name, percent(score), *(percent(own.get(name)) for own in known.values())]
                for name, score in free["scores"].items()]  # fmt: skip
        parts.append(grid([f"{free['count']} free prompts", "as asked (95 % interval)", *known], rows))
    return "\n".join(parts)


def table(data: dict[str, Any]) -> str:
    """One measurement as a Markdown table with the line that says where it comes from."""
    body = scored(data) if "scores" in data else grid(data["columns"], data["rows"])
    body += f"\n{data['note']}\n" if "note" in data else ""
    body += f"\n![{data['note']}]({data['picture']})\n" if "picture" in data else ""
    source = ", ".join(str(data[k]) for k in ("machine", "date") if data.get(k))
    return f"{body}\n`{data['made_by']}`{f' ({source})' if source else ''}\n"


def filled(text: str) -> str:
    """The README with every table made anew; one that was not measured is empty."""

    def fill(match: re.Match[str]) -> str:
        path = RESULTS / f"{match['name']}.json"
        if not path.is_file():
            return match[1] + match[4]
        return match[1] + table(json.loads(path.read_text())) + match[4]

    return SLOT.sub(fill, text)


def main() -> int:
    old = README.read_text()
    new = filled(old)
    if "--check" in sys.argv:
        if new != old:
            print("README.md does not say what tools/results/ says: run python tools/tables.py", file=sys.stderr)
        return int(new != old)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
