# SPDX-License-Identifier: Apache-2.0
"""Figures of benchmarks: a ladder of variants, and curves with bands. Each function writes one PNG.

Drawn on figures of their own with Agg: no window, no global state of pyplot. The colours are those of the report
(vla/eval/report_style.py).
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INK, SOFT, RULE, PAGE = "#17191e", "#646a73", "#e7e6e1", "#ffffff"
ACCENT, ACCENT_SOFT = "#3f51d8", "#b9c2f7"
COLOURS = (ACCENT, "#c8551b", "#d39a2d", "#2f8f6b", "#8a4fbf", "#646a73", "#1f9fb4", "#b0356f")
"""Of curves, in turn; markers change with them, so that they can be told apart in grey."""
_MARKERS = "osD^vPX*"
_WIDTH, _DPI = 8.0, 150
Curve = Sequence[tuple[float, float, float | None, float | None]]
"""Points (x, mean, low, high); low and high may be None."""


def ladder_plot(
    rows: Sequence[Mapping[str, Any]], path: Path, title: str, xlabel: str, *, number: str = "{:.3g}"
) -> None:
    """Horizontal bars, the first row on top: means, whiskers for intervals, a dot for each seed.

    `rows`: {"name": str, "values": one number a seed, "interval": (low, high) or None, "highlight": bool, optional};
    without any highlight all bars look the same. `number`: how to print a mean. ValueError for no row, or a row
    without values.
    """
    if not rows or not all(len(row["values"]) for row in rows):
        raise ValueError("expected one or more rows with one or more values each to draw a ladder of")
    figure, axes = _figure(title, 1.15 + 0.42 * len(rows))
    ends, chosen = [], any(row.get("highlight") for row in rows)
    for place, row in enumerate(rows):
        values = np.asarray(row["values"], float)
        mean, interval = float(values.mean()), row.get("interval")
        strong = row.get("highlight") or not chosen
        axes.barh(place, mean, height=0.62, color=ACCENT_SOFT if strong else RULE, zorder=2)
        if interval is not None:
            whisker = [[mean - interval[0]], [interval[1] - mean]]
            axes.errorbar(mean, place, xerr=whisker, color=INK, lw=1.3, capsize=3.5, capthick=1.3, zorder=3)
        spread = place + np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else [place]
        axes.scatter(values, spread, s=15, color=ACCENT if strong else SOFT, edgecolor=PAGE, lw=0.6, zorder=4)
        ends.append((max([0.0, mean, *values, *(interval or ())]), number.format(mean)))
    for place, (end, text) in enumerate(ends):  # to the right of everything that is drawn in the row
        axes.annotate(
            text, (end, place), (7, 0), textcoords="offset points", va="center", color=INK, fontsize=9, zorder=5
        )
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.1 * (high - low))
    axes.set_yticks(range(len(rows)), [textwrap.fill(str(row["name"]), 40) for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(axis="x", color=RULE, lw=0.8)
    axes.set_xlabel(xlabel)
    _save(figure, path)


def curves_plot(
    curves: Mapping[str, Curve], path: Path, title: str, xlabel: str, ylabel: str, logx: bool = False
) -> None:
    """Lines with bands, one a name; the legend stands at the right, in the order in which the lines end.

    `logx`: x on a logarithmic axis. ValueError for no curve, a curve without points, or x <= 0 with `logx`.
    """
    if not curves or not all(len(points) for points in curves.values()):
        raise ValueError("expected one or more curves with one or more points each")
    all_x = sorted({float(point[0]) for points in curves.values() for point in points})
    if logx and all_x[0] <= 0:
        raise ValueError(f"expected x > 0 on a logarithmic axis, got {all_x[0]}; give logx=False")
    figure, axes = _figure(title, 4.4)
    handles = []
    for index, (name, points) in enumerate(curves.items()):
        points = sorted(points, key=lambda point: point[0])
        x, mean = (np.array([point[i] for point in points], float) for i in (0, 1))
        # A missing end becomes NaN, where fill_between leaves a gap.
        low, high = (np.array([np.nan if p[i] is None else p[i] for p in points], float) for i in (2, 3))
        colour, marker = COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)]
        label = textwrap.fill(str(name), 26)
        axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0, zorder=2)
        marks = marker if len(x) <= 25 else None
        (line,) = axes.plot(x, mean, color=colour, marker=marks, ms=5, mec=PAGE, mew=0.7, lw=1.8, label=label, zorder=3)
        handles.append((mean[-1], line))
    if logx:
        axes.set_xscale("log")
        if len(all_x) <= 12:
            axes.set_xticks(all_x, [f"{x:g}" for x in all_x])
            axes.set_xticks([], minor=True)
    axes.margins(x=0.03)
    axes.grid(color=RULE, lw=0.8)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    ordered = [line for _, line in sorted(handles, key=lambda pair: -pair[0])]
    axes.legend(
        handles=ordered, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, labelcolor=INK, fontsize=9
    )
    _save(figure, path)


def _figure(title: str, height: float) -> tuple[Any, Any]:
    """A figure with a title and bare axes; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = textwrap.fill(title, 78)
    figure = Figure((_WIDTH, height + 0.2 * title.count("\n")), dpi=_DPI, facecolor=PAGE, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=SOFT)
    axes.xaxis.label.set(color=SOFT, fontsize=9.5)
    axes.yaxis.label.set(color=SOFT, fontsize=9.5)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(RULE)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    """The file appears whole or not at all, and is the same for the same numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", metadata={"Software": None})
    os.replace(temporary, path)
