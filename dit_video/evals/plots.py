"""Plots as SVG, written by hand: bars with intervals, lines, points. Text and axes take the page's own colour."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_HUES = ("#2f6fdd", "#d1603d", "#3c9d5d", "#8a5cc7", "#b08a1e", "#3aa0a8", "#c2528b", "#777777")
_LINE, _LEFT, _WIDE = 20, 130, 420  # height of a bar's line, room for labels, length of the scale
_HIGH, _SIDE = 170, 46  # of a plot of lines


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" font-family="sans-serif" '
        f'font-size="12" fill="currentColor">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "currentColor") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "currentColor", width: float = 1) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="{width:g}"/>'


def bars(entries: Mapping[str, Mapping[str, Any]], ticks: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Shares as horizontal bars from 0 to 100 %.

    entries: name -> {"value", "n", and if known "low", "high"}. ticks: legend -> name -> share, short lines across the
    bars.
    """
    parts, top = [], 24
    for i, legend in enumerate(ticks or {}):
        x = _LEFT + i * 110
        parts += [_line(x, 8, x + 14, 8, _HUES[1 + i], 3), _text(x + 20, 12, legend)]
    for i, (name, entry) in enumerate(entries.items()):
        y = top + i * _LINE
        middle, long = y + _LINE / 2, _WIDE * entry["value"]
        parts.append(_text(_LEFT - 8, middle + 4, name, "end"))
        parts.append(f'<rect x="{_LEFT}" y="{y + 4}" width="{long:.1f}" height="{_LINE - 8}" fill="{_HUES[0]}"/>')
        if "low" in entry:
            parts.append(_line(_LEFT + _WIDE * entry["low"], middle, _LEFT + _WIDE * entry["high"], middle, width=2))
        for k, own in enumerate((ticks or {}).values()):
            if own.get(name) is not None:
                x = _LEFT + _WIDE * own[name]
                parts.append(_line(x, y + 2, x, y + _LINE - 2, _HUES[1 + k], 3))
        parts.append(_text(_LEFT + _WIDE + 10, middle + 4, f"{100 * entry['value']:.1f} (n {entry['n']})"))
    bottom = top + len(entries) * _LINE
    for tick in (0, 25, 50, 75, 100):
        x = _LEFT + _WIDE * tick / 100
        parts += [_line(x, bottom, x, bottom + 4), _text(x, bottom + 17, str(tick), "middle")]
    parts.append(_line(_LEFT, bottom, _LEFT + _WIDE, bottom))
    return _svg(_LEFT + _WIDE + 110, bottom + 24, parts)


def lines(labels: Sequence[str], curves: Mapping[str, Sequence[float | None]], share: bool = True) -> str:
    """Curves over evenly spaced labels; None is a gap. share: the scale is 0 to 100 %, else from 0 to the largest."""
    known = [value for curve in curves.values() for value in curve if value is not None]
    top = 1.0 if share else max([*known, 1e-9]) * 1.05
    step = (_WIDE - 20) / max(len(labels) - 1, 1)

    def place(i: int, value: float) -> tuple[float, float]:
        return _SIDE + 10 + i * step, 10 + _HIGH * (1 - min(max(value / top, 0.0), 1.0))

    parts = [_line(_SIDE, 10, _SIDE, 10 + _HIGH), _line(_SIDE, 10 + _HIGH, _SIDE + _WIDE, 10 + _HIGH)]
    for part in (0.0, 0.5, 1.0):
        label = f"{100 * part:g}" if share else f"{top * part:.3g}"
        parts.append(_text(_SIDE - 6, 14 + _HIGH * (1 - part), label, "end"))
    parts += [_text(place(i, 0)[0], 28 + _HIGH, label, "middle") for i, label in enumerate(labels)]
    for k, (name, curve) in enumerate(curves.items()):
        colour = _HUES[k % len(_HUES)]
        points = [place(i, value) for i, value in enumerate(curve) if value is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(_SIDE + _WIDE + 12, 20 + 16 * k, name, colour=colour))
    return _svg(_SIDE + _WIDE + 150, max(_HIGH + 36, 30 + 16 * len(curves)), parts)


def points(
    curves: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, share: bool = False, line: str = ""
) -> str:
    """Curves of (x, y) with x > 0 on a scale of powers of ten. share: y is one of 0 to 100 %, else y > 0 is on such a
    scale, too. line: the curve of this name is a line without marks. across, up: what the axes are."""
    xs = [math.log10(x) for curve in curves.values() for x, _ in curve]
    ys = [y if share else math.log10(y) for curve in curves.values() for _, y in curve]
    (left, right), (low, high) = _room(xs), (0.0, 1.0) if share else _room(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        part = (math.log10(x) - left) / (right - left), ((y if share else math.log10(y)) - low) / (high - low)
        return _SIDE + _WIDE * part[0], 20 + _HIGH * (1 - part[1])

    bottom = 20 + _HIGH
    parts = [_line(_SIDE, 20, _SIDE, bottom), _line(_SIDE, bottom, _SIDE + _WIDE, bottom)]
    parts += [_text(_SIDE - 6, 12, up), _text(_SIDE + _WIDE, bottom + 32, across, "end")]
    for part in (0.0, 0.5, 1.0):
        value = low + part * (high - low)
        label = f"{100 * value:g} %" if share else f"{10**value:.3g}"
        parts.append(_text(_SIDE - 6, bottom - _HIGH * part + 4, label, "end"))
        parts.append(_text(_SIDE + _WIDE * part, bottom + 16, f"{10 ** (left + part * (right - left)):.2g}", "middle"))
    for k, (name, curve) in enumerate(curves.items()):
        colour, spots = _HUES[k % len(_HUES)], [place(x, y) for x, y in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{1 + (name != line)}"/>')
        if name != line:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        parts.append(_text(_SIDE + _WIDE + 12, 30 + 16 * k, name, colour=colour))
    return _svg(_SIDE + _WIDE + 190, max(bottom + 40, 40 + 16 * len(curves)), parts)


def _room(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the largest, with some room; something where there is nothing yet."""
    values = values or (0.0,)
    room = 0.05 * (max(values) - min(values)) or 0.5
    return min(values) - room, max(values) + room


def below(plots: Sequence[str]) -> str:
    """One picture of several, one below the other."""
    sizes = [[float(v) for v in re.findall(r'(?:width|height)="([\d.]+)"', plot)[:2]] for plot in plots]
    tops = [sum(height for _, height in sizes[:i]) for i in range(len(plots))]
    inside = [plot.replace("<svg ", f'<svg y="{top:g}" ', 1) for plot, top in zip(plots, tops, strict=True)]
    return _svg(max(width for width, _ in sizes), sum(height for _, height in sizes), inside)
