# SPDX-License-Identifier: Apache-2.0
"""`vla report`: one self-contained HTML file of a run: how sure the numbers are, and what the policy looks
like.

Everything is inlined (style, SVG, pictures, videos) and there is no script, so that the file can be sent
around and opens anywhere, now and later. A section appears only if its files exist: a training folder or a
single evaluation makes a smaller report, not an error.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from vla.eval.episodes import write_atomically
from vla.eval.report_foresight import foresight
from vla.eval.report_sections import (
    KINDS,
    Run,
    denoising,
    facts,
    gallery,
    headline,
    introduction,
    tasks,
    training,
)
from vla.eval.report_style import page


@dataclass(frozen=True)
class ReportConfig:
    """Make one page of a run's figures and videos."""

    run: Path
    """run folder of `vla demo`, or of one `vla train` or `vla eval`"""
    out: Path | None = None
    """the HTML file; none: report.html in the run folder"""


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {path}, got something else ({error}); delete it to go without") from error


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the last line of a run that was cut off
    return rows


def find(folder: Path) -> Run:
    """Read a run folder. Raises ValueError if it is missing or holds nothing that a report could show."""
    if not folder.is_dir():
        raise ValueError(f"expected a run folder, got {folder}, which is not a folder; make one with `vla demo`")
    folders = {kind: folder / "eval" / kind for kind in KINDS if (folder / "eval" / kind / "summary.json").is_file()}
    if not folders and (folder / "summary.json").is_file():
        name = str((_json(folder / "summary.json") or {}).get("name"))
        folders = {name if name in KINDS else "policy": folder}
    run = Run(
        folder=folder,
        evaluations={kind: _json(path / "summary.json") for kind, path in folders.items()},
        folders=folders,
        metrics=_json_lines(folder / "train" / "metrics.jsonl") or _json_lines(folder / "metrics.jsonl"),
        denoise=_json(folder / "denoise.json"),
        demo=_json(folder / "demo.json"),
        dataset=_json(folder / "dataset" / "meta" / "info.json"),
        foresight=_json(folders.get("policy", folder) / "foresight.json"),
    )
    if not (run.evaluations or run.metrics or run.denoise):
        raise ValueError(
            f"expected a run folder with eval/, train/ or denoise.json, got {folder}, which has none of "
            f"them; "
            "give the --out folder of `vla demo`, `vla train` or `vla eval`"
        )
    return run


def report(config: ReportConfig) -> Path:
    """Write the report of a run folder; returns the HTML file's path. Raises ValueError if there is nothing
    to show.
    """
    run = find(config.run)
    name = config.run.resolve().name.replace("_", " ")
    sections: tuple[Callable[[Run], str], ...] = (tasks, gallery, foresight, denoising, training, facts)
    body = (
        f'<header><div class="mark">Lattice</div><h1>{escape(name)}</h1><p>{introduction(run)}</p></header>'
        + headline(run)
        + "".join(section(run) for section in sections)
        + "<footer>Success rates carry 95 % intervals; controls run on the same seeds.</footer>"
    )
    out = config.out or config.run / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page(escape(f"{name} - Lattice"), body))
    return out


def report_and_say(config: ReportConfig) -> None:
    """What `vla report` does: `report`, and where it is."""
    print(f"written to '{report(config)}'")
