# SPDX-License-Identifier: Apache-2.0
"""`vla bench queries`: does one network answer every question, and does learning them all pay?

One unified checkpoint of the tabletop (reach and push) answers eight queries about held-out episodes, is run in
closed loop in different ways, and is compared with networks of the same size and as many steps that learn less. Its
parts (parts.py); networks that are there are not trained again:

    answers      eight queries against answers that need no network
    inverse      inverse dynamics against a network that learns nothing else
    closed_loop  together or in turn, for as long as it is sure, late
    guarantees   tokens, limits and prefixes that hold by construction, counted all the same
    images       acting, with and without future images to learn
    low_data     acting, learnt from a tenth of the demonstrations: every question against actions alone

--quick is small, and proves nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vla.bench import parts
from vla.bench.query_answers import Compared, HeldOut, answers
from vla.bench.query_networks import CELLS, QUICK, Networks, Sizes
from vla.bench.results import Row
from vla.data.inspect import problems

if TYPE_CHECKING:
    from vla.bench.run import BenchConfig

PICTURES = 8
"""Columns of pictures.png."""


@dataclass(frozen=True)
class QueriesConfig(parts.PartsConfig):
    """What the parts of `vla bench queries` are told."""

    bench: ClassVar = "queries"
    parts: ClassVar = {
        "answers": ("queries", "answer_rows"),
        "inverse": ("queries", "inverse_rows"),
        "closed_loop": ("query_loops", "closed_loop_rows"),
        "guarantees": ("queries", "guarantee_rows"),
        "images": ("query_loops", "image_rows"),
        "low_data": ("query_loops", "low_data_rows"),
    }
    out: Path = Path("runs/bench/queries")
    policy: str = ""
    """A unified checkpoint that stands for the one that is trained here; "": none."""
    seeds: int = 3
    threads: int = 0
    """Trainings and evaluations at once; 0: as many as there are cores."""

    @property
    def networks(self) -> Networks:
        return Networks(self.out, QUICK if self.quick else Sizes(), self.policy, self.threads)

    @property
    def repeated(self) -> range:
        """The seeds."""
        return range(1 if self.quick else self.seeds)


def run(config: "BenchConfig") -> dict[str, Any]:
    """As `parts.run`, once the networks are there; its folder is <out>/queries, with --quick <out>/quick/queries."""
    queries = QueriesConfig(
        out=(config.out / "quick" if config.quick else config.out) / "queries",
        only=config.only,
        quick=config.quick,
        resume=config.resume,
        overwrite=config.overwrite,
        policy="" if config.policy == type(config).policy else config.policy,
        seeds=config.seeds,
        threads=config.threads,
    )
    needed = [cell for part in parts.to_run(queries) for cell in CELLS[part]]
    queries.networks.make(needed, queries.repeated)
    return parts.run(queries) | {"seeds": list(queries.repeated), "problems_of_a_frame": problems(True, True)}


def answer_rows(config: QueriesConfig) -> list[Row]:
    """The eight queries, and pictures of them."""
    networks = config.networks
    unified = networks.checkpoint("unified", 0)
    compared = [answers(networks.held_out(unified, seed)) for seed in config.repeated]
    data = networks.held_out(unified, 0)
    draw(compared, data, config.out)
    return query_rows(compared) + _own_words(data)


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


def inverse_rows(config: QueriesConfig) -> list[Row]:
    """Inverse dynamics of the unified network against those of a network that learns nothing else."""
    networks = config.networks
    both = []
    for checkpoint in (networks.checkpoint("unified", 0), networks.checkpoint("inverse", 0)):
        data = [networks.held_out(checkpoint, seed) for seed in config.repeated]
        found = [answers(some, ("inverse",))["inverse"].ours for some in data]
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


def guarantee_rows(config: QueriesConfig) -> list[Row]:
    """What holds by construction, counted all the same."""
    from vla.bench.query_limits import broken_limits, changed_prefixes, foreign_tokens
    from vla.policy import Policy

    networks = config.networks
    unified = networks.checkpoint("unified", 0)
    policy, data = Policy.load(unified), networks.held_out(unified, 0)
    foreign, tokens = foreign_tokens(data)
    broken, chunks = broken_limits(policy, networks.sizes.limits)
    exact, prefixes = changed_prefixes(data, networks.sizes.prefixes)
    return [
        Row("wrong_segment_tokens", float(foreign), "tokens", tokens, goal="0", passes=foreign == 0),
        Row("limit_violations", float(broken), "actions", chunks, goal="0", passes=broken == 0, note="n: chunks"),
        Row("prefix_bit_exact", exact, "fraction", prefixes, goal="1", passes=exact == 1.0),
    ]
