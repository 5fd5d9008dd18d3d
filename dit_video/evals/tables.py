"""A report as tables: the same rows for the terminal and for the page. Where another model was measured too, its
numbers stand beside each, or in the row below."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dit_video.evals.measure import FAULTS

_REFERENCES = ("renders", "shuffled", "frozen", "nearest")
_SHOWN = ("all", "all_one", "all_two", "main", "colour", "shape", "motion", "direction", "readable")  # of a split


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def percent(value: Any) -> str:
    """A share, or that of an entry; "-" for none."""
    value = value["value"] if isinstance(value, Mapping) else value
    return "-" if value is None else f"{100 * value:.1f}"


def number(value: Any) -> str:
    """Four digits; "-" for none."""
    value = value["value"] if isinstance(value, Mapping) else value
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def interval(entry: Any, show: Callable[[Any], str] = percent) -> str:
    """Of an entry; "-" for what has none."""
    return f"{show(entry['low'])} .. {show(entry['high'])}" if isinstance(entry, Mapping) else "-"


def of_other(report: Mapping[str, Any]) -> str:
    """Whose the other numbers are; "" where no other model was measured."""
    return f"of {report['against']['model']['name']}" if "against" in report else ""


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All of a report, of any suite."""
    return {"toyworld": _toyworld, "drift": _drift}.get(report["suite"], _numbers)(report)


def _toyworld(report: Mapping[str, Any]) -> list[Table]:
    other, whose = report.get("against", {}), of_other(report)
    out = [_scores("scores, %", report, other, whose)]
    if "quality" in report:
        out.append(_entries("beside renders of the same prompts", "quality", report))
    out += _splits(report, _SHOWN, percent, ", %")
    rows = []
    for name, values in report["values"].items():
        rows.append([name, _by_value(values)])
        rows += [[f"{name}, {whose}", _by_value(other["values"].get(name, {}))]] if other else []
    out.append(Table("by value, % (95 % interval, n)", ["", ""], rows))
    faults = report.get("faults", {})
    if faults or other.get("faults"):
        missing = other.get("faults", {})
        rows = [[fault, FAULTS[fault], str(faults.get(fault, 0)), *([str(missing.get(fault, 0))] if other else [])]
                for fault in FAULTS if fault in faults or fault in missing]  # fmt: skip
        columns = ["", "", "clips", *([f"clips {whose}"] if other else [])]
        out.append(Table(f"why clips cannot be read (of {report['count']})", columns, rows))
    out += [_entries(name, name, report) for name in ("first_frame", "diversity") if name in report]
    if "free" in report:
        out.append(_scores("free prompts, %", report["free"], other.get("free", {}), whose))
    return out


def _by_value(values: Mapping[str, Any]) -> str:
    def about(own: Mapping[str, Any]) -> str:
        return f"{100 * own['low']:.0f}-{100 * own['high']:.0f}, n {own['n']}"

    return "  ".join(f"{value} {percent(own)} ({about(own)})" for value, own in values.items()) or "-"


def _scores(title: str, report: Mapping[str, Any], other: Mapping[str, Any], whose: str) -> Table:
    known = [name for name in _REFERENCES if name in report["reference"]]
    gains = other.get("difference", {})
    columns = ["", "score", "95 % interval", "n", *known, *([whose] if other else [])]
    columns += ["better by", "95 % interval"] if gains else []
    rows = []
    for name, entry in report["scores"].items():
        row = [name, percent(entry), interval(entry), str(entry["n"])]
        row += [percent(report["reference"][key].get(name)) for key in known]
        row += [percent(other["scores"].get(name))] if other else []
        row += [percent(gains.get(name)), interval(gains.get(name))] if gains else []
        rows.append(row)
    return Table(title, columns, rows)


def _entries(title: str, part: str, report: Mapping[str, Any]) -> Table:
    """Numbers of all kinds, a row each; some have no interval, some have what they are a ratio of."""
    entries, theirs = report[part], report.get("against", {}).get(part, {})
    parts = [name for name in ("ours", "renders") if any(name in e for e in entries.values() if isinstance(e, Mapping))]
    rows = []
    for name, one in entries.items():
        about = one if isinstance(one, Mapping) else {}
        row = [name, number(one), interval(one, number), str(about.get("n", "-"))]
        row += [number(about.get(key)) for key in parts]
        rows.append([*row, *([number(theirs.get(name))] if theirs else [])])
    columns = ["", "value", "95 % interval", "n", *parts, *([of_other(report)] if theirs else [])]
    return Table(title, columns, rows)


def _splits(report: Mapping[str, Any], shown: Sequence[str], show: Callable[[Any], str], unit: str = "") -> list[Table]:
    out, others = [], report.get("against", {}).get("splits", {})
    for split, sides in report["splits"].items():
        names, rows = [name for name in shown if any(name in side for side in sides.values())], []
        for side, scores in sides.items():
            rows.append([side, *(show(scores.get(name)) for name in names)])
            if theirs := others.get(split, {}).get(side):
                rows.append([f"{side}, {of_other(report)}", *(show(theirs.get(name)) for name in names)])
        out.append(Table(f"by {split}{unit}", ["", *names], rows))
    return out


def _numbers(report: Mapping[str, Any]) -> list[Table]:
    """Suites whose scores are no shares."""
    other, whose = report.get("against", {}), of_other(report)
    columns = ["", "value", "95 % interval", "n", *([whose, "difference", "95 % interval"] if other else [])]
    rows = []
    for name, one in report["scores"].items():
        row = [name, number(one), interval(one, number), str(one["n"])]
        if other:
            gain = other["difference"].get(name)
            row += [number(other["scores"].get(name)), number(gain), interval(gain, number)]
        rows.append(row)
    out = [Table("scores", columns, rows), *_splits(report, list(report["scores"]), number)]
    for name, row in report.get("reference", {}).items():
        out.append(Table(f"reference: {name}", list(row), [[number(value) for value in row.values()]]))
    for part, title, show in (
        ("bytes", "bytes in over bytes out (latents in float16)", number),
        ("judge", "what the judge reads right in them, %", percent),
    ):
        if part in report:
            both = {"": report[part]} | ({whose: other[part]} if part in other else {})
            rows = [[who, *(show(own.get(name)) for name in report[part])] for who, own in both.items()]
            out.append(Table(title, ["", *report[part]], rows))
    return out


def _drift(report: Mapping[str, Any]) -> list[Table]:
    out = []
    starts = [f"{second:g}" for second in report["seconds_of_windows"]]
    for who, curves in over_time(report).items():
        rows = [
            [name, *((percent if name in report["shares"] else number)(value) for value in values)]
            for name, values in curves.items()
        ]
        out.append(Table(f"over time, windows from second ... ({who})", ["", *starts], rows))
    return [*out, *_numbers(report)]


def over_time(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Curves of long clips by whose they are: of the model, of renders, and of the other model."""
    other = report.get("against", {}).get("curves")
    return dict(report["curves"]) | ({of_other(report): other["model"]} if other else {})


def text(parts: Sequence[Table]) -> str:
    """For a terminal: first column to the left, numbers to the right."""
    blocks = []
    for table in parts:
        rows = [table.columns, *table.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
        lines = [
            "  ".join(cell.ljust(width) if i == 0 or len(row) == 2 else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows
        ]  # fmt: skip
        blocks.append("\n".join([table.title, *(line for line in lines if line)]))
    return "\n\n".join(blocks)
