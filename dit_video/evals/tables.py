"""A report as tables: the same rows for the terminal and for the page."""

from collections.abc import Mapping, Sequence
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


def interval(entry: Mapping[str, Any], show: Any = percent) -> str:
    return f"{show(entry['low'])} .. {show(entry['high'])}"


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All of a report, of any suite."""
    return {"toyworld": _toyworld, "drift": _drift}.get(report["suite"], _numbers)(report)


def _toyworld(report: Mapping[str, Any]) -> list[Table]:
    out = [_scores("scores, %", report)]
    if "quality" in report:
        out.append(_numbers_table("beside renders of the same prompts", report["quality"]))
    for split, sides in report["splits"].items():
        names = [name for name in _SHOWN if any(name in side for side in sides.values())]
        rows = [[side, *(percent(scores.get(name)) for name in names)] for side, scores in sides.items()]
        out.append(Table(f"by {split}, %", ["", *names], rows))
    values = [
        [name, "  ".join(f"{value} {percent(own)} ({own['n']})" for value, own in each.items())]
        for name, each in report["values"].items()
    ]
    out.append(Table("by value, % (n)", ["", ""], values))
    if report.get("faults"):
        rows = [[fault, FAULTS[fault], str(count)] for fault, count in report["faults"].items()]
        out.append(Table(f"why clips cannot be read (of {report['count']})", ["", "", "clips"], rows))
    for name in ("first_frame", "diversity"):
        if name in report:
            out.append(Table(name, list(report[name]), [[number(value) for value in report[name].values()]]))
    if "free" in report:
        out.append(_scores("free prompts, %", report["free"]))
    return out


def _scores(title: str, report: Mapping[str, Any]) -> Table:
    known = [name for name in _REFERENCES if name in report["reference"]]
    against = report.get("against")
    columns = ["", "score", "95 % interval", "n", *known]
    columns += [f"of {against['model']['name']}", "better by", "95 % interval"] if against else []
    rows = []
    for name, entry in report["scores"].items():
        row = [name, percent(entry), interval(entry), str(entry["n"])]
        row += [percent(report["reference"][key].get(name)) for key in known]
        if against:
            gain = against["difference"].get(name)
            row += [percent(against["scores"].get(name)), percent(gain), interval(gain) if gain else "-"]
        rows.append(row)
    return Table(title, columns, rows)


def _numbers_table(title: str, entries: Mapping[str, Any]) -> Table:
    rows = [
        [name, number(one), interval(one, number), str(one["n"]), number(one.get("ours")), number(one.get("renders"))]
        for name, one in entries.items()
    ]
    return Table(title, ["", "value", "95 % interval", "n", "ours", "renders"], rows)


def _numbers(report: Mapping[str, Any]) -> list[Table]:
    """Suites whose scores are no shares."""
    against = report.get("against")
    columns = ["", "value", "95 % interval", "n", *([f"of {against['model']['name']}"] if against else [])]
    rows = []
    for name, one in report["scores"].items():
        more = [number(against["scores"].get(name))] if against else []
        rows.append([name, number(one), interval(one, number), str(one["n"]), *more])
    out = [Table("scores", columns, rows)]
    for split, sides in report["splits"].items():
        names = list(report["scores"])
        rows = [[side, *(number(scores.get(name)) for name in names)] for side, scores in sides.items()]
        out.append(Table(f"by {split}", ["", *names], rows))
    for name, row in report.get("reference", {}).items():
        out.append(Table(f"reference: {name}", list(row), [[number(value) for value in row.values()]]))
    if "bytes" in report:
        row = [number(value) for value in report["bytes"].values()]
        out.append(Table("bytes in over bytes out (latents in float16)", list(report["bytes"]), [row]))
    if "judge" in report:
        row = [percent(value) for value in report["judge"].values()]
        out.append(Table("what the judge reads right in them, %", list(report["judge"]), [row]))
    return out


def _drift(report: Mapping[str, Any]) -> list[Table]:
    out = []
    starts = [f"{second:g}" for second in report["seconds_of_windows"]]
    for who, curves in report["curves"].items():
        rows = [
            [name, *((percent if name in report["shares"] else number)(value) for value in values)]
            for name, values in curves.items()
        ]
        out.append(Table(f"over time, windows from second ... ({who})", ["", *starts], rows))
    return [*out, *_numbers(report)]


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
