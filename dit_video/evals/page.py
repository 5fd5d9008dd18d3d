"""The report as one HTML file that needs nothing beside it: tables, plots, contact sheets, and every clip's prompt."""

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit_video.core.files import json_text
from dit_video.data.video import contact_sheet
from dit_video.evals import WRITES, plots, tables
from dit_video.evals.tables import Table

_SHEET = 16  # clips on a contact sheet
_LINE, _WORDS, _LETTERS, _GAP = 13, 420, 70, 8  # pixels of a line of words and of its length; letters; between strips
_SAID = ("size", "colour", "shape", "motion", "direction", "speed")  # of what is seen
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff; }
table { border-collapse: collapse; margin: .6em 0; font-variant-numeric: tabular-nums; }
td, th { padding: .15em .7em; border-bottom: 1px solid #ddd; text-align: right; font-weight: normal; }
td:first-child, th:first-child { text-align: left; } th { color: #666; }
.words td { text-align: left; } .scroll { overflow-x: auto; } img { max-width: 100%; image-rendering: pixelated; }
svg { display: block; margin: .4em 0; } h2 { margin-top: 1.8em; } code { color: #555; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616; } td, th { border-color: #333; } }
"""


def order(report: Mapping[str, Any]) -> list[int]:
    """Clips of the suite of prompts from the best to the worst: by what is wrong, then by how clear all is."""

    def badness(clip: Mapping[str, Any]) -> tuple[float, ...]:
        errors = [one["outline_error"] + 0.1 * min(one["path_error"], 9) for one in clip["seen"]["objects"]]
        return (not clip["readable"], len(clip["wrong"]), max(errors, default=9.0))

    return sorted(range(len(report["clips"])), key=lambda i: badness(report["clips"][i]))


def sheets(report: Mapping[str, Any], clips: Sequence[UInt8[np.ndarray, "T H W 3"]]) -> dict[str, list[int]]:
    """Which clips are shown: the first ones, which nobody chose, the best and the worst."""
    if report["suite"] == "toyworld":
        ranks = order(report)
        return {"first": list(range(min(_SHEET, len(clips)))), "best": ranks[:_SHEET], "worst": ranks[::-1][:_SHEET]}
    worst = report.get("worst", [])[:_SHEET]
    return {"first": list(range(min(_SHEET, len(clips))))} | ({"worst": worst} if worst else {})


def write(
    out: Path,
    report: Mapping[str, Any],
    clips: Sequence[UInt8[np.ndarray, "T H W 3"]],
    theirs: Sequence[UInt8[np.ndarray, "T H W 3"]] = (),
) -> None:
    """OUT/report.json, OUT/index.html, and the contact sheets as pictures: OUT/first.png, best.png, worst.png, and
    against.png, the first clips of another model (`theirs`). On that of the worst clips of prompts stands beside each
    what failed. Pictures of an older report are removed."""
    from PIL import Image

    pictures = {}
    for name, which in sheets(report, clips).items() if len(clips) else ():
        words = name == "worst" and _has_prompts(report)
        data = io.BytesIO()
        Image.fromarray(worst(report, clips) if words else contact_sheet([clips[i] for i in which])).save(data, "PNG")
        pictures[name] = (data.getvalue(), which)
    if len(theirs):
        data = io.BytesIO()
        Image.fromarray(contact_sheet(list(theirs[:_SHEET]))).save(data, "PNG")
        pictures["against"] = (data.getvalue(), [])
    for name in WRITES:
        if name.endswith(".png") and name.removesuffix(".png") not in pictures:
            (out / name).unlink(missing_ok=True)
    for name, (png, _) in pictures.items():
        (out / f"{name}.png").write_bytes(png)
    (out / "report.json").write_text(json_text(report, 1) + "\n", encoding="utf-8")
    (out / "index.html").write_text(page(report, pictures), encoding="utf-8")


def worst(report: Mapping[str, Any], clips: Sequence[UInt8[np.ndarray, "T H W 3"]]) -> UInt8[np.ndarray, "H W 3"]:
    """The worst clips of prompts, the very worst on top, and what failed in each."""
    which = sheets(report, clips)["worst"]
    return beside([clips[i] for i in which], [_said(report["clips"][i]) for i in which])


def beside(
    clips: Sequence[UInt8[np.ndarray, "T H W 3"]], said: Sequence[tuple[str, str, str]]
) -> UInt8[np.ndarray, "H W 3"]:
    """A strip of frames a clip, one below the other, and to the right of each what `_said` says of it."""
    from PIL import Image, ImageDraw, ImageFont

    room = max(0, 5 * _LINE - max(clip.shape[1] for clip in clips))
    strips = contact_sheet([np.pad(c, ((0, 0), (0, room), (0, 0), (0, 0)), constant_values=255) for c in clips], 1)
    sheet = Image.fromarray(np.pad(strips, ((0, _LINE), (0, _WORDS), (0, 0)), constant_values=255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LINE - 2)
    for i, (prompt, seen, wrong) in enumerate(said):
        top = round(i * (len(strips) + _GAP) / len(clips))
        failed = (f"wrong: {wrong}", "#b00020", 2) if wrong else ("as asked", "#666", 1)
        said_of = ((prompt, "#222", 2), (f"seen: {seen or 'nothing'}", "#666", 1), failed)
        for text, colour, most in said_of:
            for line in textwrap.wrap(text, _LETTERS)[:most]:
                draw.text((strips.shape[1] + _GAP, top), line, colour, font)
                top += _LINE
    return np.asarray(sheet)


def page(report: Mapping[str, Any], pictures: Mapping[str, tuple[bytes, list[int]]]) -> str:
    """The HTML. pictures: name -> PNG and the clips on it, of the model's own."""
    model = report.get("model", {})
    title = f"{report['suite']}: {model.get('name') or 'model'} {model.get('hash', '')}"
    settings = ", ".join(f"{key} {value}" for key, value in report.get("settings", {}).items() if value is not None)
    parts = [f"<h1>{escape(title)}</h1><p>{report['count']} clips. <code>{escape(settings)}</code></p>"]
    if "against" in report:
        other = report["against"]["model"]
        parts.append(f"<p>Against {escape(other['name'] or 'model')} <code>{escape(other['hash'])}</code>.</p>")
    for name, (png, which) in pictures.items():
        data = base64.b64encode(png).decode()
        said = f"{name} clips" if name != "against" else f"first clips {tables.of_other(report)}"
        parts.append(f'<h2>{escape(said)}</h2><img alt="{escape(said)}" src="data:image/png;base64,{data}">')
        if which and _has_prompts(report):
            parts.append(_captions([report["clips"][i] for i in which]))
    parts += _plots(report)
    parts += [_table(table) for table in tables.tables(report)]
    for name, asked in report.get("confusions", {}).items():
        parts.append(_table(_confusion(name, asked)))
    if _has_prompts(report):
        parts.append(f"<h2>every clip</h2>{_captions(report['clips'])}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _table(table: Table) -> str:
    rows = [table.columns, *table.rows]
    cells = ["".join(f"<{'th' if i == 0 else 'td'}>{escape(cell)}</{'th' if i == 0 else 'td'}>" for cell in row)
             for i, row in enumerate(rows)]  # fmt: skip
    kind = "words" if len(table.columns) == 2 else ""
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<h2>{escape(table.title)}</h2><div class="scroll"><table class="{kind}">{body}</table></div>'


def _confusion(name: str, asked: Mapping[str, Mapping[str, int]]) -> Table:
    seen = list(dict.fromkeys([*asked, *(value for own in asked.values() for value in own)]))
    rows = [[value, *(str(own.get(other, "")) for other in seen)] for value, own in asked.items()]
    return Table(f"{name}: asked (rows) and seen (columns)", ["", *seen], rows)


def _has_prompts(report: Mapping[str, Any]) -> bool:
    return bool(report.get("clips")) and "prompt" in report["clips"][0]


def _said(clip: Mapping[str, Any]) -> tuple[str, str, str]:
    """The prompt of a clip, what is seen in it, and what is wrong."""
    objects = [" ".join(filter(None, (one[name] for name in _SAID))) for one in clip["seen"]["objects"]]
    return clip["prompt"], "; ".join(objects), ", ".join(clip["wrong"]) if clip["readable"] else clip["reason"]


def _captions(clips: Sequence[Mapping[str, Any]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _said(clip))}</tr>" for clip in clips)
    head = "<tr><th>prompt</th><th>seen</th><th>wrong</th></tr>"
    return f'<div class="scroll"><table class="words">{head}{body}</table></div>'


def _plots(report: Mapping[str, Any]) -> list[str]:
    """Of the suite of prompts, bars of all scores and of each attribute's values, and lines over steps and the like; of
    drift, lines over time. Another model's shares are marks across the bars, its lines a plot of their own."""
    out, other, whose = [], report.get("against", {}), tables.of_other(report)
    if report["suite"] == "toyworld":
        known = {name: row for name, row in report["reference"].items() if name in ("renders", "shuffled", "frozen")}
        beside = {whose: _values(other["scores"])} if other else {}
        out.append(f"<h2>scores</h2>{plots.bars(report['scores'], known | beside)}")
        for name, values in report["values"].items():
            beside = {whose: _values(other["values"].get(name, {}))} if other else {}
            out.append(f"<h2>{escape(name)}</h2>{plots.bars(values, beside)}")
        for axis in ("steps", "guidance", "frames"):
            for splits, of in ((report["splits"], ""), (other.get("splits", {}), f" {whose}")):
                sides = splits.get(axis, {})
                names = ("all", "colour", "shape", "motion", "direction")
                curves = {name: [scores.get(name, {}).get("value") for scores in sides.values()] for name in names}
                if len(sides) > 1:
                    out.append(f"<h2>by {axis}{escape(of)}</h2>{plots.lines(list(sides), curves)}")
    if report["suite"] == "drift":
        labels = [f"{second:g} s" for second in report["seconds_of_windows"]]
        for who, curves in tables.over_time(report).items():
            shares = {name: curve for name, curve in curves.items() if name in report["shares"]}
            out.append(f"<h2>over time ({escape(who)})</h2>{plots.lines(labels, shares)}")
    return out


def _values(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: one["value"] for name, one in entries.items()}
