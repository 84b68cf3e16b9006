# SPDX-License-Identifier: Apache-2.0
"""Pictures of a report as inline SVG: line charts, the lattice of one denoising step, and a decoded chunk.

Drawn by hand instead of by a plotting library: they take their colours from the page's style sheet, so that
they follow light and dark, and weigh a few kB each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    points: Points
    colour: str = "var(--accent)"
    faint: bool = False
    dots: bool = False


def number(value: float) -> str:
    """A number for people: three figures, thousands as k, millions as M."""
    size = abs(value)
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (limit if unit == 'M' else 1e3):.3g}{unit}"
    if size >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: Points, limit: int = 240) -> Points:
    """At most `limit` points: means of equal groups, each at its last x, so that the curve keeps its end."""
    if len(points) <= limit:
        return points
    size = math.ceil(len(points) / limit)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def smooth(points: Points, share: float = 0.04) -> Points:
    """Centred moving average over a share of the points."""
    half = int(len(points) * share / 2)
    if half < 1:
        return points
    result = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)  # symmetric up to the ends, so that they are not pulled in
        window = points[i - reach : i + reach + 1]
        result.append((x, sum(y for _, y in window) / len(window)))
    return result


def _path(xy: Points) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in xy)


def line_chart(lines: Sequence[Line], log: bool = False, zero: bool = False) -> str:
    """Curves over steps. `log`: a logarithmic y axis; `zero`: y starts at 0. Names stand at the ends."""
    width, height, left, top, bottom = 460, 226, 40, 6, 24
    right = 64 if any(line.name for line in lines) else 14
    lines = [line for line in lines if line.points]
    ys = [y for line in lines for _, y in line.points]
    xs = [x for line in lines for x, _ in line.points]
    low, high = (0.0 if zero else min(ys)), max(ys)
    if log:
        low, high = math.log10(low), math.log10(high)
    margin = (high - low or abs(high) or 1.0) * 0.06
    low, high = (low if zero else low - margin), high + margin
    x_low, x_high = min(xs), max(xs)
    if zero or x_low < 0.1 * x_high:
        x_low = 0

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if log else y
        across = (x - x_low) / (x_high - x_low or 1.0)
        return left + across * (width - left - right), height - bottom - (y - low) / (high - low) * (
            height - top - bottom
        )

    parts = []
    if log:
        scale = [m * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
        marks = [value for value in scale if low <= math.log10(value) <= high]
        if len(marks) < 2:
            marks = [10**v for v in ticks(low, high, 3)]
    else:
        marks = ticks(low, high)
    for value in marks:
        _, y = place(x_low, value)
        parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in ticks(x_low, x_high):
        x, _ = place(value, ys[0])
        label = number(value) + (" steps" if value == 0 else "")
        anchor = "start" if value == x_low else "middle"
        parts.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="{anchor}">{label}</text>')
    names: list[tuple[float, Line]] = []
    for line in lines:
        xy = [place(x, y) for x, y in line.points]
        style = f'stroke="{line.colour}"' + (' stroke-opacity=".28"' if line.faint else "")
        if len(xy) > 1:
            parts.append(f'<path class="line" {style} d="{_path(xy)}"/>')
        if line.dots or len(xy) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{line.colour}"/>' for x, y in xy]
        if line.name:
            names.append((xy[-1][1], line))
    above = -math.inf
    for y, line in sorted(names, key=lambda entry: entry[0]):
        y = above = max(y + 4, above + 13)  # names must not lie on each other
        parts.append(
            f'<text x="{width - right + 8}" y="{y:.1f}" style="fill:{line.colour};font-weight:600">'
            f"{escape(line.name)}</text>"
        )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _digits(digits: Sequence[int], known: Sequence[int]) -> str:
    """ "7f", "7." (only the coarse digit is known), "" (masked). Base 16 where every digit fits."""
    if not any(known):
        return ""
    signs = [f"{d:x}" if 0 <= d < 16 else str(d) for d in digits]
    gap = "" if all(len(sign) == 1 for sign in signs) else " "
    return gap.join(sign if k and d >= 0 else "\u00b7" for sign, k, d in zip(signs, known, digits, strict=True))


def lattice_panel(step: dict, names: Sequence[str], before: dict | None) -> str:
    """The action segment at one denoising step: rows = dimensions, columns = timesteps, one cell a token.

    A cell's colour says how many of its digits are known (none, some, all), its strength how sure the model
    is, its text the digits themselves; a ring marks what this step has decided.
    """
    known, digits, confidence = step["known"], step["digits"], step.get("confidence")
    columns, rows, left, cell_h = len(known), len(names), 56, 22
    cell_w = min(34.0, max(11.0, 360 / columns))
    width, height = left + columns * cell_w, rows * cell_h + 16
    small = cell_w < 19
    parts = []
    for a, name in enumerate(names):
        y = a * cell_h
        parts.append(f'<text class="name" x="{left - 8}" y="{y + 15}">{escape(name)}</text>')
        for h in range(columns):
            x = left + h * cell_w
            count, total = sum(map(bool, known[h][a])), len(known[h][a])
            sure = float(confidence[h][a]) if confidence and confidence[h][a] is not None else 1.0
            sure = min(1.0, max(0.0, sure)) if math.isfinite(sure) else 0.0
            fill = "var(--cell)" if not count else "var(--accent)" if count == total else "var(--accent-soft)"
            # Even an unsure token that is fully known must not look like one of which a part is known.
            floor = 0.55 if count == total else 0.35
            opacity = floor + (1 - floor) * sure if count else 1.0
            fresh = before is not None and count > sum(map(bool, before["known"][h][a]))
            ring = ' stroke="var(--ink)" stroke-width="0.8"' if fresh else ""
            title = f"{name}, timestep {h}: {count} of {total} digits known" + (
                f", confidence {sure:.2f}" if count else ""
            )
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{y + 1}" width="{cell_w - 2:.1f}" height="{cell_h - 2}" rx="3" '
                f'fill="{fill}" fill-opacity="{opacity:.2f}"{ring}><title>{escape(title)}</title></rect>'
            )
            text = _digits(digits[h][a], known[h][a])
            if text:
                # White on a strong accent, ink on a weak one.
                ink = "var(--on-accent)" if count == total and opacity > 0.7 else "var(--ink)"
                style = f'style="fill:{ink}' + (";font-size:7.5px" if small else "") + '"'
                parts.append(f'<text x="{x + cell_w / 2:.1f}" y="{y + 15}" {style}>{escape(text)}</text>')
    for h in sorted({0, columns - 1}):
        parts.append(f'<text class="time" x="{left + (h + 0.5) * cell_w:.1f}" y="{height - 2}">{h}</text>')
    body = "".join(parts)
    return f'<svg class="token" viewBox="0 0 {width:.0f} {height}" role="img">{body}</svg>'


def chunk_charts(
    final: Sequence[Sequence[float]], names: Sequence[str], drafts: Sequence[Sequence[Sequence[float]]]
) -> list[str]:
    """The decided chunk, one small curve a dimension; drafts of earlier steps lie faint behind it."""
    width, height, top = 168, 96, 20
    charts = []
    for a, name in enumerate(names):
        series = [[row[a] for row in draft] for draft in (*drafts, final)]
        values = [value for curve in series for value in curve]
        low, high = min(values), max(values)
        if low >= -1.001 and high <= 1.001:
            low, high = -1.0, 1.0
        curves = [
            [
                (h / max(1, len(curve) - 1) * width, top + (high - v) / (high - low or 1.0) * height)
                for h, v in enumerate(curve)
            ]
            for curve in series
        ]
        parts = [
            f'<text x="0" y="10" style="fill:var(--ink);font-weight:600">{escape(name)}</text>',
            f'<text x="{width}" y="10" text-anchor="end">{number(low)} to {number(high)}</text>',
        ]
        for value in (low, 0.0, high) if low < 0 < high else (low, high):
            y = top + (high - value) / (high - low or 1.0) * height
            parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        for draft in curves[:-1]:
            parts.append(f'<path class="line" stroke="var(--faint)" stroke-width="1" d="{_path(draft)}"/>')
        parts.append(f'<path class="line" stroke="var(--accent)" d="{_path(curves[-1])}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="var(--accent)"/>' for x, y in curves[-1]]
        charts.append(f'<svg viewBox="0 0 {width} {height + top + 6}" role="img">{"".join(parts)}</svg>')
    return charts
