# SPDX-License-Identifier: Apache-2.0
"""`vla bench queries`: does one network answer every question, and does learning them all pay?

One unified checkpoint of the tabletop (reach and push) answers eight queries about held-out episodes, is run in
closed loop in different ways, and is compared with networks of the same size and as many steps that learn less:
actions alone, no future image, inverse dynamics alone; some of them short, some with few demonstrations. What is there
stays in `out`, so that a run that was stopped goes on where it was; --quick is small, and proves nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.bench.query_answers import Compared, HeldOut, answers
from vla.bench.query_networks import PAIRS, QUICK, SCARCE, Bench, Sizes
from vla.bench.results import Row, results
from vla.bench.run import BenchConfig
from vla.data.inspect import problems

if TYPE_CHECKING:
    from vla.eval.statistics import PairedComparison

SURE = 0.3
"""A chunk is executed for as long as every action is this sure."""
DELAY = 4
PICTURES = 8
"""Columns of pictures.png."""


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure everything that is not on disk yet; returns the results, and draws plots into `config.out`."""
    from rich.console import Console

    console = Console(highlight=False)
    room = config.out / ("quick/queries" if config.quick else "queries")
    bench = Bench(config, QUICK if config.quick else Sizes(), room, console)
    seeds = range(1 if config.quick else config.seeds)
    bench.record()
    bench.train(seeds)
    unified = bench.checkpoint("unified", 0)
    compared = [answers(bench.held_out(unified, seed)) for seed in seeds]
    bench.rows += query_rows(compared)
    bench.rows += _own_words(bench.held_out(unified, 0))
    bench.rows += _inverse_alone(bench, unified, seeds)
    bench.rows += _closed_loop(bench, unified)
    bench.rows += _guarantees(bench, unified)
    bench.rows += _co_training(bench, seeds)
    draw(compared, bench.held_out(unified, 0), room)
    console.print(f"figures: '{room}'", soft_wrap=True)
    return results(
        "queries", bench.rows, list(seeds), {"quick": config.quick, "problems_of_a_frame": problems(True, True)}
    )


def query_rows(compared: Sequence[dict[str, Compared]]) -> list[Row]:
    """One row a query, and how many of them beat the answer that needs no network. `compared`: one each seed."""
    rows, beating = [], 0
    for name in compared[0]:
        of = [c[name] for c in compared]
        pooled = Compared(np.mean([c.ours for c in of], axis=0), np.mean([c.baseline for c in of], axis=0))
        gain, (low, high) = pooled.better()
        beating += low > 0
        note = f"without a network {pooled.baseline.mean():.3f}; better by {gain:.3f} ({low:.3f} to {high:.3f})"
        half = 1.96 * pooled.ours.std(ddof=1) / len(pooled.ours) ** 0.5
        ours = float(pooled.ours.mean())
        extra = f"; {of[0].note}" if of[0].note else ""
        rows.append(
            Row(f"query_{name}", ours, "error", len(pooled.ours), (ours - half, ours + half), note=note + extra)
        )
    rows.insert(
        0,
        Row(
            "queries_beating_prior",
            float(beating),
            "queries",
            len(compared[0]),
            goal="all 8",
            passes=beating == len(compared[0]) == 8,
            note="interval of the difference above 0; one frame of every held-out episode",
        ),
    )
    if "label" in compared[0]:
        from vla.eval.statistics import wilson_interval

        wrong = np.concatenate([c["label"].ours for c in compared])
        n = len(compared[0]["label"].ours)  # the episodes are the same for every seed
        right = float(1 - wrong.mean())
        interval = wilson_interval(round(right * n), n)
        note = compared[0]["label"].note
        rows.append(Row("label_accuracy", right, "fraction", n, interval, ">= 0.9", right >= 0.9, note))
    if "plan" in compared[0]:
        used = float(np.mean([float(c["plan"].note.removeprefix("used ")) for c in compared]))
        rows.append(
            Row(
                "plan_effective_ratio",
                used,
                "fraction",
                len(compared[0]["plan"].ours),
                goal=">= 0.75",
                passes=used >= 0.75,
                note="words written / positions evaluated on the way",
            )
        )
    return rows


def _own_words(data: HeldOut) -> list[Row]:
    """Labels in the policy's own words."""
    from vla.bench.query_answers import label_in_own_words
    from vla.eval.statistics import wilson_interval

    found, alone = label_in_own_words(data)
    n, right = len(found.ours), float(1 - found.ours.mean())
    interval = wilson_interval(round(right * n), n)
    note = f"nothing to choose from, the policy decides among draws of the query; the query by itself: {alone:.1%}"
    return [Row("label_in_own_words", right, "fraction", n, interval, note=note)]


def draw(compared: Sequence[dict[str, Compared]], data: HeldOut, room: Path) -> None:
    """queries.png: errors against those of answers without a network. pictures.png: seen, expected, true."""
    from PIL import Image

    from vla.bench.plots import ladder_plot
    from vla.canvas import query

    ladder = [
        {"name": name, "values": [c[name].ours.mean() / c[name].baseline.mean() for c in compared]}
        for name in compared[0]
    ]
    title = "One network, eight questions about held-out episodes"
    ladder_plot(ladder, room / "queries.png", title, "error / error of an answer without a network (1: no better)")
    frames_B = data.frames_B[:PICTURES]
    later_B = data.later(frames_B, data.policy.horizon)
    chunks_BHA, _ = data.chunks(frames_B)
    asked = [query.world_model(data.question(f), a) for f, a in zip(frames_B, chunks_BHA, strict=True)]
    made = np.concatenate([next(iter(a.future_image.values.values())) for a in data.ask(asked)])
    camera = data.policy.cameras[0]
    seen, true = (np.stack([data.pictures(f)[camera] for f in of]) for of in (frames_B, later_B))
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in (seen, made, true)])
    Image.fromarray(sheet.repeat(3, 0).repeat(3, 1)).save(room / "pictures.png")


def _inverse_alone(bench: Bench, unified: Path, seeds: Sequence[int]) -> list[Row]:
    """Inverse dynamics of the unified network against those of a network that learns nothing else."""
    alone = bench.checkpoint("inverse", 0)
    both = []
    for checkpoint in (unified, alone):
        found = [answers(bench.held_out(checkpoint, seed), ("inverse",))["inverse"].ours for seed in seeds]
        both.append(np.mean(found, axis=0))
    ours, single = both
    if len(ours) != len(single):
        raise ValueError("the two networks hold out other episodes: train both with the same --seed and holdout")
    ratio = float(ours.mean() / single.mean())
    draw = np.random.default_rng(0).integers(0, len(ours), (2000, len(ours)))
    ratios = ours[draw].mean(1) / single[draw].mean(1)
    low, high = (float(x) for x in np.quantile(ratios, [0.025, 0.975]))
    note = f"{ours.mean():.3f} and {single.mean():.3f} spreads of an action; as many steps"
    return [Row("inverse_error_ratio", ratio, "ratio", len(ours), (low, high), "<= 1.1", ratio <= 1.1, note)]


def _closed_loop(bench: Bench, unified: Path) -> list[Row]:
    """The same checkpoint, run in different ways on the same episodes."""
    from vla.eval.statistics import wilson_interval

    plain = bench.evaluate(unified, "actions")
    n = len(plain)
    rows = []
    success = sum(r.success for r in plain.values())
    rows.append(Row("unified_success", success / n, "success", n, wilson_interval(success, n)))
    joint = bench.evaluate(unified, "joint", decoding="joint")
    turns = bench.evaluate(unified, "one_by_one", decoding="one_by_one")
    paired = _paired(turns, joint)
    rows.append(
        Row(
            "joint_minus_sequential",
            paired.difference,
            "success",
            n,
            paired.interval,
            ">= 0",
            paired.difference >= 0,
            f"joint {_rate(joint):.1%}, one segment after the other {_rate(turns):.1%}; p = {paired.p_value:.2g}",
        )
    )
    sure = bench.evaluate(unified, "sure", sure_above=SURE)
    calls, fewer = (np.mean([r.policy_calls for r in of.values()]) for of in (plain, sure))
    paired = _paired(plain, sure)
    saved = float(1 - fewer / calls)
    rows.append(
        Row(
            "evaluations_saved",
            saved,
            "fraction",
            n,
            goal=">= 0.3 at equal success",
            passes=saved >= 0.3 and paired.interval[1] >= 0,
            note=f"success {_rate(sure):.1%} instead of {_rate(plain):.1%} (difference {_interval(paired)}); "
            f"{fewer:.1f} chunks an episode instead of {calls:.1f}",
        )
    )
    late = bench.evaluate(unified, f"delay_{DELAY}", delay=DELAY)
    naive = bench.evaluate(unified, f"delay_{DELAY}_naive", delay=DELAY, naive=True)
    paired = _paired(late, plain)
    rows.append(
        Row(
            "delay_4_drop",
            paired.difference,
            "success",
            n,
            paired.interval,
            "<= 0.12",
            paired.difference <= 0.12,
            f"success {_rate(late):.1%} at a delay of {DELAY} steps; not told what is executed: {_rate(naive):.1%}",
        )
    )
    return rows


def _guarantees(bench: Bench, unified: Path) -> list[Row]:
    """What holds by construction, counted all the same."""
    from vla.bench.query_limits import broken_limits, changed_prefixes, foreign_tokens
    from vla.policy import Policy

    policy = Policy.load(unified)
    data = bench.held_out(unified, 0)
    foreign, tokens = foreign_tokens(data)
    broken, chunks = broken_limits(policy, bench.sizes.limits)
    exact, prefixes = changed_prefixes(data, bench.sizes.prefixes)
    return [
        Row("wrong_segment_tokens", float(foreign), "tokens", tokens, goal="0", passes=foreign == 0),
        Row("limit_violations", float(broken), "actions", chunks, goal="0", passes=broken == 0, note="n: chunks"),
        Row("prefix_bit_exact", exact, "fraction", prefixes, goal="1", passes=exact == 1.0),
    ]


def _co_training(bench: Bench, seeds: Sequence[int]) -> list[Row]:
    """Success of acting alone, after as many steps that also learnt other questions."""
    found: dict[str, dict[tuple[str, int], Any]] = {}
    for name, kind in PAIRS:
        label = f"{name}-{kind}"
        found[label] = {}
        for seed in seeds:
            results_of = bench.evaluate(bench.checkpoint(name, seed, kind), f"{label}-{seed}")
            found[label] |= {(f"{task} {seed}", episode): r for (task, episode), r in results_of.items()}
    trained = f"{len(seeds)} trainings of {bench.sizes.pair_steps} steps each"
    gain = _paired(found["no_image-short"], found["unified-short"])
    rows = [
        Row(
            "future_image_gain",
            gain.difference,
            "success",
            gain.n,
            gain.interval,
            "> +0.02",
            gain.difference > 0.02,
            f"with {_rate(found['unified-short']):.1%}, without {_rate(found['no_image-short']):.1%}; {trained}",
        )
    ]
    ours, plain = _rate(found["unified-tenth"]), _rate(found["actions-tenth"])
    paired = _paired(found["actions-tenth"], found["unified-tenth"])
    ratio = ours / max(plain, 1 / paired.n)
    rows.append(
        Row(
            "low_data_ratio",
            ratio,
            "ratio",
            paired.n,
            goal=">= 1.2",
            passes=ratio >= 1.2,
            note=f"all queries {ours:.1%}, actions alone {plain:.1%} (difference {_interval(paired)}); "
            f"{bench.sizes.recorded // SCARCE} demonstrations, {trained}",
        )
    )
    return rows


def _rate(of: dict[tuple[str, int], Any]) -> float:
    return float(np.mean([r.success for r in of.values()]))


def _paired(a: dict[tuple[str, int], Any], b: dict[tuple[str, int], Any]) -> "PairedComparison":
    from vla.eval.statistics import compare_paired

    return compare_paired({k: r.success for k, r in a.items()}, {k: r.success for k, r in b.items()})


def _interval(paired: "PairedComparison") -> str:
    return f"{paired.interval[0]:+.1%} to {paired.interval[1]:+.1%}"
