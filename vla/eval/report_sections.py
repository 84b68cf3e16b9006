# SPDX-License-Identifier: Apache-2.0
"""The sections of a report: each a function from what was found in the run folder to HTML, "" if there is
nothing.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from vla.eval.episodes import EpisodeResult, read_results
from vla.eval.report_charts import Line, chunk_charts, lattice_panel, line_chart, number, smooth, thin

VIDEO_BYTES = 4_000_000
"""of all videos together; base64 adds a third, and the page should stay below 6 MB"""
VIDEOS = 8
"""at most, of each outcome"""
KINDS = ("policy", "swapped", "random", "expert")
TITLES = {
    "policy": "Policy",
    "swapped": "Told about another object",
    "random": "Random actions",
    "expert": "Scripted expert",
}
NOTES = {
    "policy": "closed loop, from pixels and words",
    "swapped": "same scenes, judged by the original instruction: low means that it reads",
    "random": "same scenes, uniform actions",
    "expert": "same scenes, privileged state",
}


@dataclass(frozen=True)
class Run:
    """What was found in a run folder. Parts that are missing are empty."""

    folder: Path
    evaluations: dict[str, dict[str, Any]]
    """kind ("policy", "swapped", ...) -> summary.json"""
    folders: dict[str, Path]
    metrics: list[dict[str, Any]]
    denoise: dict[str, Any] | None
    demo: dict[str, Any] | None
    dataset: dict[str, Any] | None
    foresight: list[dict[str, Any]] | None = None

    def results(self, kind: str) -> list[EpisodeResult]:
        """Episodes of an evaluation, or none."""
        path = self.folders[kind] / "episodes.jsonl" if kind in self.folders else None
        return read_results(path) if path and path.exists() else []


def _percent(value: float) -> str:
    """0.985 -> "98.5", 1.0 -> "100": one decimal only where there is one."""
    return f"{100 * value:.1f}".removesuffix(".0")


def _span(interval: Sequence[float]) -> str:
    """An interval in per cent; whole numbers, but never rounded to a certain 0 or 100."""
    low, high = (100 * bound for bound in interval)
    return f"{low:.0f}&ndash;{high:.0f} %" if high - low >= 2 else f"{low:.1f}&ndash;{high:.1f} %"


def headline(run: Run) -> str:
    """The three big numbers, each with its interval on the same scale."""
    cards = []
    for kind, summary in run.evaluations.items():
        low, high = summary["interval"]
        cards.append(
            f'<div class="card {kind}"><h3>{TITLES[kind]}</h3>'
            f'<div class="big">{_percent(summary["success"])}<small>%</small></div>'
            f'<div class="scale"><i style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
            f'<b style="left:{100 * summary["success"]:.2f}%"></b></div>'
            f'<p class="note num">95 % interval {_span(summary["interval"])}, {summary["n"]} episodes</p>'
            f'<p class="note">{NOTES[kind]}</p></div>'
        )
    return f'<div class="grid three headline">{"".join(cards)}</div>' if cards else ""


def comparisons(run: Run) -> str:
    """One sentence a control: the paired difference on the same scenes."""
    from vla.eval.statistics import compare_paired

    if "policy" not in run.folders:
        return ""
    ours = {(r.task, r.seed): r.success for r in run.results("policy")}
    parts = []
    for kind, what in (
        ("swapped", "being told about another object costs"),
        ("random", "over random actions it gains"),
    ):
        theirs = {(r.task, r.seed): r.success for r in run.results(kind)}
        if not ours or ours.keys() != theirs.keys():
            continue
        result = compare_paired(theirs, ours)
        low, high = (100 * bound for bound in result.interval)
        p = "p &lt; 0.0001" if result.p_value < 1e-4 else f"p = {result.p_value:.2g}"
        parts.append(f"{what} <b>{100 * result.difference:.0f} points</b> ({low:.0f} to {high:.0f}, {p})")
    if not parts:
        return ""
    text = "; ".join(parts)
    return f'<p class="note num">On the same scenes, {text}. Exact McNemar test on pairs.</p>'


def tasks(run: Run) -> str:
    """Bars per task with their intervals."""
    shown = [kind for kind in run.evaluations if kind != "expert"] or list(run.evaluations)
    names = list(dict.fromkeys(task for kind in shown for task in run.evaluations[kind]["tasks"]))
    if not names:
        return ""
    blocks = []
    for name in names:
        rows, episodes = [], 0
        for kind in shown:
            row = run.evaluations[kind]["tasks"].get(name)
            if row is None:
                continue
            episodes = max(episodes, row["n"])
            low, high = row["interval"]
            rows.append(
                f'<div class="row {kind}"><div class="bar" title="{TITLES[kind]}">'
                f'<i style="width:{100 * row["success"]:.2f}%"></i>'
                f'<u style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></u></div>'
                f'<span class="num"><b>{row["success"] * 100:.0f} %</b> {_span(row["interval"])}</span></div>'
            )
        label = f"<strong>{escape(name)}<span>{episodes} episodes</span></strong>"
        blocks.append(f'<div class="task">{label}<div>{"".join(rows)}</div></div>')
    legend = "".join(f'<span class="{kind}"><i></i>{TITLES[kind]}</span>' for kind in shown)
    return (
        "<section><h2>Success by task</h2><p>Whiskers are 95 % Wilson intervals.</p>"
        f'<div class="card" style="margin-top:18px"><div class="tasks" style="margin-top:0">'
        f"{''.join(blocks)}</div>"
        f'<div class="legend">{legend}</div>{comparisons(run)}</div></section>'
    )


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float) and row[key] == row[key]]


def training(run: Run) -> str:
    """Loss curves, validation error, throughput."""
    loss, validation = _curve(run.metrics, "loss"), _curve(run.metrics, "val_loss")
    charts = []

    def chart(title: str, value: str, svg: str) -> None:
        charts.append(f'<div class="card chart"><h3>{title}<span class="num">{value}</span></h3>{svg}</div>')

    def is_log(*curves: Sequence[tuple[float, float]]) -> bool:
        values = [y for curve in curves for _, y in curve]
        return min(values) > 0 and max(values) > 8 * min(values)

    if loss or validation:
        lines = [
            Line("", thin(loss), "var(--grey)", faint=True),
            Line("training", thin(smooth(loss)), "var(--soft)"),
            Line("validation", thin(validation), dots=len(validation) <= 24),
        ]
        value = f"{number((validation or loss)[-1][1])} at the end"
        chart("Loss", value, line_chart(lines, log=is_log(loss, validation)))
    digits = [(name, _curve(run.metrics, f"loss_{name}")) for name in ("coarse", "fine")]
    if all(curve for _, curve in digits):
        colours = ("var(--accent)", "var(--other)")
        lines = [Line(name, thin(smooth(c)), colour) for (name, c), colour in zip(digits, colours, strict=True)]
        svg = line_chart(lines, log=is_log(*(line.points for line in lines)))
        chart("Loss by digit", "coarse first, then fine", svg)
    if error := _curve(run.metrics, "val_mae"):
        svg = line_chart([Line("", thin(error), dots=len(error) <= 24)], zero=True)
        chart("Error of validation actions", f"{number(error[-1][1])} mean absolute", svg)
    if rate := _curve(run.metrics, "frames_per_s"):
        middle = sorted(y for _, y in rate)[len(rate) // 2]
        svg = line_chart(
            [Line("", thin(rate), faint=True), Line("", thin(smooth(rate, 0.1)))],
            zero=True,
        )
        chart("Throughput", f"{number(middle)} frames/s, median", svg)
    if not charts:
        return ""
    elapsed = [row["elapsed_s"] for row in run.metrics if isinstance(row.get("elapsed_s"), int | float)]
    last = max((row.get("step", 0) for row in run.metrics), default=0)
    took = f" in {elapsed[-1] / 60:.1f} minutes" if elapsed else ""
    return (
        f"<section><h2>Training</h2><p>{number(last)} steps{took}.</p>"
        f'<div class="grid two">{"".join(charts)}</div></section>'
    )


def _video(folder: Path, result: EpisodeResult) -> Path:
    return folder / f"{result.task}_{result.seed}_{'success' if result.success else 'failure'}.mp4"


def _shown(results: list[EpisodeResult], folder: Path) -> list[EpisodeResult]:
    """Episodes that have a video: successes, then failures, each going round the tasks, and not too many."""
    rank: dict[tuple[str, bool], int] = {}
    rows: dict[bool, list[tuple[int, EpisodeResult]]] = {True: [], False: []}
    for result in results:
        if _video(folder, result).is_file():
            place = rank[result.task, result.success] = rank.get((result.task, result.success), -1) + 1
            rows[result.success].append((place, result))
    ordered = {ok: [r for _, r in sorted(rows[ok], key=lambda row: row[0])][:VIDEOS] for ok in rows}
    return ordered[True] + ordered[False]


def gallery(run: Run) -> str:
    """Videos of successes and failures, as many as fit."""
    kind = next((k for k in KINDS if k in run.folders and any((run.folders[k] / "videos").glob("*.mp4"))), None)
    if kind is None:
        return ""
    cards, left = [], VIDEO_BYTES
    for result in _shown(run.results(kind), run.folders[kind] / "videos"):
        outcome = "success" if result.success else "failure"
        path = _video(run.folders[kind] / "videos", result)
        if path.stat().st_size > left:
            continue
        left -= path.stat().st_size
        data = base64.b64encode(path.read_bytes()).decode()
        told = (
            f"<span>told: {escape(result.given_instruction)}</span>"
            if result.given_instruction != result.instruction
            else ""
        )
        where = f"{escape(result.task)}, seed {result.seed}, {result.length} steps"
        cards.append(
            f'<figure><video autoplay muted loop playsinline src="data:video/mp4;base64,{data}"></video>'
            f'<figcaption><span class="badge {outcome}" '
            f'style="color:var(--{"accent" if result.success else "bad"})">'
            f"{outcome}</span><br>{escape(result.instruction)}{told}"
            f'<span class="num">{where}</span></figcaption></figure>'
        )
    if not cards:
        return ""
    return (
        "<section><h2>What it does</h2><p>The first successes and the first failures of each task, by seed: "
        "not the best ones.</p>"
        f'<div class="grid videos">{"".join(cards)}</div></section>'
    )


def denoising(run: Run) -> str:
    """One decision, step by step: the action tokens as they are unmasked."""
    trace = run.denoise
    if not trace or not trace.get("steps"):
        return ""
    names, steps, final = trace["action_names"], trace["steps"], trace.get("final")
    panels = []
    for i, step in enumerate(steps):
        before = steps[i - 1] if i else None
        known = sum(bool(d) for row in step["known"] for cell in row for d in cell)
        total = sum(len(cell) for row in step["known"] for cell in row)
        panels.append(
            f'<div class="chart"><h3>{escape(str(step["name"]))}<span class="num">{100 * known / total:.0f} '
            f"% of digits"
            f"</span></h3>{lattice_panel(step, names, before)}</div>"
        )
    told = f'<figcaption><div class="told">{escape(trace["instruction"])}</div></figcaption>'
    picture = ""
    if trace.get("image_png_base64"):
        image = f'<img alt="camera image" src="data:image/png;base64,{trace["image_png_base64"]}">'
        picture = f"<figure>{image}{told}</figure>"
    else:
        picture = f"<figure>{told}</figure>"
    legend = (
        '<div class="legend"><span style="--tone:var(--cell)"><i></i>masked</span>'
        '<span style="--tone:var(--accent-soft)"><i></i>coarse digit known</span>'
        '<span style="--tone:var(--accent)"><i></i>fully known</span>'
        "<span>paler: less sure</span><span>ring: decided in this step</span></div>"
    )
    curves = ""
    if final:
        drafts = [s["value"] for s in steps if s.get("value") and all(v is not None for r in s["value"] for v in r)]
        drafts = [draft for draft in drafts if draft != final]
        behind = " (earlier steps in grey)" if drafts else ""
        curves = (
            '<div class="card chart" style="margin-top:16px"><h3>The decided chunk'
            f"<span>{len(final)} timesteps{behind}</span></h3>"
            f'<div class="chunk">{"".join(chunk_charts(final, names, drafts))}</div></div>'
        )
    return (
        "<section><h2>One decision, digit by digit</h2><p>An action is written as digits, the coarse one "
        "first. All "
        "tokens start masked; each denoising step decides the ones that the network is surest of. Rows are "
        "action "
        "dimensions, columns are timesteps of the chunk.</p>"
        f'<div class="grid denoise">{picture}<div><div class="card"><div class="panels">'
        f"{''.join(panels)}</div>"
        f"{legend}</div>{curves}</div></div></section>"
    )


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Scalars and short lists of nested dicts as (name, text), names joined by spaces."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in _flat(item, f"{name} {key}".strip())]
    if isinstance(value, list | tuple):
        if not value or len(value) > 8 or any(isinstance(item, Mapping | list) for item in value):
            return []
        return [(name, ", ".join(str(item) for item in value))]
    if value is None or value == "":
        return []
    if isinstance(value, bool):
        return [(name, "yes" if value else "no")]
    text = number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return [(name, text)] if len(text) <= 200 else []


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    body = "".join(
        f'<tr><td>{escape(name.replace("_", " "))}</td><td class="num">{escape(text)}</td></tr>' for name, text in rows
    )
    return f'<div class="card"><h3>{title}</h3><table>{body}</table></div>'


def _amount(value: float, unit: str) -> str:
    return f"{_percent(value)} %" if unit == "fraction" else f"{number(float(value))} {unit}".strip()


def facts(run: Run) -> str:
    """What the numbers depend on: data, speed, versions, machine."""
    demo = run.demo or {}
    main = run.evaluations.get("policy") or next(iter(run.evaluations.values()), {})
    manifest = main.get("manifest", {})
    goals = [
        (str(row["id"]), f"{_amount(row['value'], row.get('unit', ''))} (goal: {row['goal']})")
        for row in demo.get("rows", [])
        if "goal" in row and isinstance(row.get("value"), int | float)
    ]
    data: list[tuple[str, str]] = []
    if run.dataset:
        keys = ("total_episodes", "total_frames", "total_tasks", "fps", "robot_type", "codebase_version")
        data = [(key.removeprefix("total_"), text) for key in keys for _, text in _flat(run.dataset.get(key), key)]
        if "episodes" in dict(data) and isinstance(run.dataset.get("total_frames"), int):
            hours = run.dataset["total_frames"] / max(1, run.dataset.get("fps", 0)) / 3600
            data.append(("demonstrations", f"{hours:.1f} hours"))
    latency = main.get("latency_ms", {})
    speed = []
    if latency.get("p50") is not None:
        speed.append(("policy call", f"{latency['p50']:.1f} ms median, {latency['p95']:.1f} ms p95"))
    if main.get("steps_per_s"):
        speed.append(("evaluation", f"{number(main['steps_per_s'])} environment steps/s"))
    details = {k: v for k, v in demo.get("facts", {}).items() if k != "seconds"}
    seconds = demo.get("facts", {}).get("seconds", {})
    took = [(name, f"{value / 60:.1f} min") for name, value in seconds.items() if isinstance(value, int | float)]
    versions = _flat(manifest.get("versions") or demo.get("versions"))
    machine = _flat({k: v for k, v in manifest.items() if k != "versions"})
    tables = (
        _table("Goals", goals),
        _table("Time", took + speed),
        _table("Data", data),
        *(_table(escape(name.replace("_", " ").capitalize()), _flat(value)[:16]) for name, value in details.items()),
        _table("Versions", versions),
        _table("Machine and run", machine),
    )
    body = "".join(tables)
    return f'<section><h2>Facts</h2><div class="facts">{body}</div></section>' if body else ""


def introduction(run: Run) -> str:
    """What was evaluated, on what data and machine, in one line."""
    main = run.evaluations.get("policy") or next(iter(run.evaluations.values()), None)
    parts = []
    if main:
        count = len(main["tasks"])
        parts.append(f"{main['env']}, suite {main['suite']}: {count} task{'s' if count != 1 else ''}")
    if run.dataset and run.dataset.get("total_episodes"):
        parts.append(f"trained on {run.dataset['total_episodes']:,} demonstrations")
    if main and (cpu := main.get("manifest", {}).get("cpu")):
        parts.append(str(cpu))
    if main and (date := main.get("manifest", {}).get("date")):
        parts.append(str(date)[:10])
    return escape(" \u00b7 ".join(parts))
