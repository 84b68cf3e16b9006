# SPDX-License-Identifier: Apache-2.0
"""`vla compare A B`: two evaluations on the same (task, seed) episodes, paired.

Pairing removes the difficulty of the scene, so that a difference needs fewer episodes than two separate rates do.
What must agree is checked, not assumed: the episodes, the first frames, the simulator and its version. Only where one
side was perturbed, and the other not or in another way, first frames differ by intention; the output says so.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from vla.eval.episodes import EpisodeResult, read_results

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class CompareConfig:
    """Is B better than A? Both are folders that `vla eval` wrote, with the same suite, episodes and seeds."""

    a: Positional[Path]
    """evaluation folder"""
    b: Positional[Path]
    """evaluation folder; the difference is B minus A"""
    difference: float | None = None
    """say how many pairs a difference of this size would need, too: 0.05 is five points"""
    out: Path | None = None
    """also write the comparison here, as JSON"""
    force: bool = False
    """compare although simulator versions or settings differ"""


def pairs_needed(discordant: float, difference: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Pairs of episodes that a McNemar test needs to see a `difference` in success (Connor 1987).

    `discordant`: fraction of pairs that one side alone solves; it is at least the size of the difference. None if the
    difference is zero: no number would do. ValueError outside of [0, 1] and [-1, 1].
    """
    from scipy.stats import norm

    if not (0 <= discordant <= 1 and -1 <= difference <= 1):
        raise ValueError(f"expected fractions, got {discordant} discordant pairs and a difference of {difference}")
    difference = abs(difference)
    discordant = max(discordant, difference)
    if difference == 0:
        return None
    z_alpha, z_power = norm.ppf(1 - alpha / 2), norm.ppf(power)
    root = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(max(discordant - difference**2, 0.0))
    return math.ceil((root / difference) ** 2)


def compare(config: CompareConfig, console: "Console | None" = None) -> dict[str, Any]:
    """Compare, print, and return {n, a, b, difference, interval, p_value, only_a, only_b, needed, differs, tasks}.

    With `difference`, also needed_for_difference.

    "differs" names what the two evaluations made different on purpose: {"perturbation": [of A, of B]}, for example.
    Raises ValueError when a folder is no evaluation, or when the two are not of the same episodes.
    """
    from rich.console import Console
    from rich.table import Table

    from vla.eval.statistics import compare_paired

    (results_a, summary_a), (results_b, summary_b) = _read(config.a), _read(config.b)
    if not config.force:
        _check_same(results_a, results_b, summary_a, summary_b)
    rows = {}
    for task in ("all", *sorted({r.task for r in results_a})):
        side_a, side_b = (
            {(r.task, r.seed): r.success for r in results if task in ("all", r.task)}
            for results in (results_a, results_b)
        )
        paired = compare_paired(side_a, side_b)
        rates = {"a": sum(side_a.values()) / len(side_a), "b": sum(side_b.values()) / len(side_b)}
        discordant = (paired.only_a + paired.only_b) / paired.n
        needed = pairs_needed(discordant, paired.difference)
        rows[task] = {**rates, **asdict(paired), "interval": list(paired.interval), "needed": needed}
        if config.difference is not None:
            rows[task]["needed_for_difference"] = pairs_needed(discordant, config.difference)
    table = Table(
        "task", "n", "A", "B", "B - A", "95 % interval", "p", "needed", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in table.columns:
        column.no_wrap = True
    for task, row in rows.items():
        low, high = (f"{100 * x:+.1f}" for x in row["interval"])
        both = [f"{100 * row[side]:.1f} %" for side in "ab"]
        difference = [f"{100 * row['difference']:+.1f}", f"{low} to {high}", f"{row['p_value']:.3g}"]
        table.add_row(task, str(row["n"]), *both, *difference, "" if row["needed"] is None else str(row["needed"]))
    console = console or Console(highlight=False)
    console.print(f"A  {summary_a['name']}  {config.a}\nB  {summary_b['name']}  {config.b}", soft_wrap=True)
    differs = _intended(summary_a, summary_b)
    for key, (of_a, of_b) in differs.items():
        frames = ", so first frames were not compared" if key == "perturbation" else ""
        console.print(f"They differ in {key}: A {of_a}, B {of_b}{frames}.", soft_wrap=True)
    console.print(table)
    overall = rows.pop("all")
    low, high = overall["interval"]
    if low <= 0 <= high:
        more = f"; a difference of this size needs about {overall['needed']} pairs" if overall["needed"] else ""
        console.print(f"No difference that {overall['n']} pairs could show{more}.", soft_wrap=True)
    else:
        console.print(f"{'B' if low > 0 else 'A'} is better (exact McNemar p = {overall['p_value']:.3g}).")
    if config.difference is not None:
        console.print(
            f"A difference of {100 * abs(config.difference):g} points would need about "
            f"{overall['needed_for_difference']} pairs, if as many disagree as here (80 % power).",
            soft_wrap=True,
        )
    result = {"bench": "compare", **overall, "differs": differs, "tasks": rows}
    if config.out is not None:
        config.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _read(folder: Path) -> tuple[list[EpisodeResult], dict[str, Any]]:
    if not (folder / "summary.json").is_file():
        raise ValueError(f"expected a finished evaluation, got '{folder}', which has no summary.json; run `vla eval`")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return read_results(folder / "episodes.jsonl"), summary


def _intended(about_a: dict[str, Any], about_b: dict[str, Any]) -> dict[str, list[str]]:
    """What the two made different on purpose: {"instruction" or "perturbation": [of A, of B]}."""
    sides = {
        # Older evaluations do not say what they told the policy, and had no perturbations.
        "instruction": [about["manifest"].get("instruction") for about in (about_a, about_b)],
        "perturbation": [about["manifest"].get("perturbation") or "none" for about in (about_a, about_b)],
    }
    return {key: both for key, both in sides.items() if None not in both and both[0] != both[1]}


def _check_same(
    a: list[EpisodeResult], b: list[EpisodeResult], about_a: dict[str, Any], about_b: dict[str, Any]
) -> None:
    frames = {r.episode: r.first_frame_sha256 for r in a}
    alike = about_a["manifest"].get("image_size") == about_b["manifest"].get("image_size")
    alike = alike and "perturbation" not in _intended(about_a, about_b)
    other = [r.episode for r in b if alike and frames.get(r.episode, r.first_frame_sha256) != r.first_frame_sha256]
    differs = [f"the first frame of {e.task} seed {e.seed}" for e in other[:1]]
    differs += [k for k in ("env",) if about_a[k] != about_b[k]]
    versions = [about["manifest"]["versions"] for about in (about_a, about_b)]
    differs += [
        f"{k} {versions[0].get(k)} / {versions[1].get(k)}"
        for k in ("mujoco",)
        if versions[0].get(k) != versions[1].get(k)
    ]
    if differs:
        raise ValueError(
            f"the evaluations differ in more than the policy: {', '.join(differs)}; evaluate both in the same setting, "
            "or compare anyway with --force"
        )
