# SPDX-License-Identifier: Apache-2.0
"""How sure a success rate is: intervals for one run, and paired comparison of two runs on the same seeds.

A thin layer over statsmodels and scipy, so that every number that is printed carries an interval made in one
place. Ten episodes a task say almost nothing about a task (5 of 10 is 24 to 76 %); the width must be seen
next to the number.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

CONFIDENCE = 0.95
LARGEST_GAIN = 4.0
"""a stratified interval counts an episode as at most this many: few failures say little about how they spread"""


def _z(confidence: float) -> float:
    from scipy.stats import norm

    if not 0.0 < confidence < 1.0:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
    return float(norm.ppf(0.5 + confidence / 2))


def _check_counts(successes: int, n: int) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} successes of {n} episodes")


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """The Wilson score interval for any z (statsmodels takes only an alpha, and the stratified interval
    scales z).
    """
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a success rate, (low, high) in [0, 1].

    Good at 0 and at n, where the usual +- formula has no width: 0 of 20 gives (0.00, 0.16).
    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    from statsmodels.stats.proportion import proportion_confint

    _check_counts(successes, n)
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def stratified_interval(
    counts: Mapping[str, tuple[int, int]],
    confidence: float = CONFIDENCE,
    *,
    weights: Mapping[str, float] | None = None,
) -> tuple[float, float, float]:
    """Success rate over tasks with a stratified interval. Returns (rate, low, high).

    `counts`: task -> (successes, episodes). The rate is sum w_t p_t with w_t = n_t / n (micro: every episode
    counts the same) or as `weights` say (task -> weight, with sum 1; see `macro_weights`). The tasks are fixed, not
    drawn by chance, so only the noise within each counts: v = sum w_t^2 p_t (1 - p_t) / (n_t - 1), unbiased. The
    interval is Wilson's at the effective sample size p (1 - p) / v, as for a stratified survey. With one task it is
    the Wilson interval; with tasks of unequal difficulty it is narrower than a pooled one. Where a task has a single
    episode or nothing varies, the sample size is the number of episodes (with `weights`: 1 / sum w_t^2 / n_t).
    Simulated coverage: 94 % or more for 2 to 50 tasks of 10 to 200 episodes at rates from 0.2 to 98 %. (The
    interval of Yan and Su 2010 was tried: it covered only 74 % at 50 tasks of 10 episodes, rate 98 %.)
    Raises ValueError when there is no task, a count is impossible, or `weights` are of other tasks.
    """
    if not counts:
        raise ValueError("expected at least one task, got none")
    if weights is not None and weights.keys() != counts.keys():
        raise ValueError(f"expected a weight for each of {', '.join(counts)}, got {', '.join(weights) or 'none'}")
    for successes, n in counts.values():
        _check_counts(successes, n)
    total = sum(n for _, n in counts.values())
    rows = [(n / total if weights is None else weights[task], k / n, n) for task, (k, n) in counts.items()]
    rate = min(1.0, sum(w * p for w, p, _ in rows))
    size = 1 / sum(w * w / n for w, _, n in rows)
    if len(rows) > 1 and all(n > 1 for _, _, n in rows):
        variance = sum(w * w * p * (1 - p) / (n - 1) for w, p, n in rows)
        # Nothing but ones and zeros in each task would give no variance and an endless sample.
        if variance > 0:
            size = min(rate * (1 - rate) / variance, LARGEST_GAIN * size)
    low, high = _wilson(rate, size, _z(confidence))
    return rate, low, high


def macro_weights(groups: Mapping[str, Collection[str]]) -> dict[str, float]:
    """Task -> weight, sum 1, of an average in which every group of tasks counts the same, and in it every task.

    `groups`: name -> tasks. With one group this is the mean over tasks; with Meta-World's four tiers it is the average
    that published MT50 tables print.
    """
    return {task: 1 / (len(groups) * len(tasks)) for tasks in groups.values() for task in tasks}


@dataclass(frozen=True)
class PairedComparison:
    """Two runs on the same (task, seed) pairs."""

    n: int
    """pairs"""
    both: int
    """pairs that both solve"""
    only_a: int
    only_b: int
    neither: int
    difference: float
    """success rate of b minus that of a, in [-1, 1]"""
    interval: tuple[float, float]
    """of the difference (Agresti and Min 2005)"""
    p_value: float
    """exact two-sided McNemar test of no difference"""


def paired_difference_interval(only_a: int, only_b: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of (rate of b - rate of a) for n pairs, of which only_a / only_b are solved by one side alone.

    Agresti and Min (2005): the Wald interval after half a pair is added to each of the four cells. It has a
    width even if the two runs agree everywhere. Clipped to [-1, 1].
    """
    if n < 1 or only_a < 0 or only_b < 0 or only_a + only_b > n:
        raise ValueError(f"expected only_a + only_b <= n and n >= 1, got {only_a}, {only_b}, {n}")
    n_star, a, b = n + 2.0, only_a + 0.5, only_b + 0.5
    difference = (b - a) / n_star
    half = _z(confidence) * math.sqrt((a + b) - (b - a) ** 2 / n_star) / n_star
    return max(-1.0, difference - half), min(1.0, difference + half)


def compare_paired(
    a: Mapping[tuple[str, int], bool], b: Mapping[tuple[str, int], bool], confidence: float = CONFIDENCE
) -> PairedComparison:
    """Compare success of two runs on the same seeds. `a`, `b`: (task, seed) -> success.

    Raises ValueError unless both hold the same episodes: a comparison on other seeds is not a paired one.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if not a:
        raise ValueError("expected at least one pair of episodes, got none")
    if a.keys() != b.keys():
        missing = len(a.keys() ^ b.keys())
        raise ValueError(
            f"expected two runs on the same (task, seed) pairs, got {missing} episodes that only one has; "
            "evaluate both with the same tasks, --episodes and --first-seed"
        )
    cells = {(x, y): 0 for x in (True, False) for y in (True, False)}
    for key, success in a.items():
        cells[bool(success), bool(b[key])] += 1
    both, only_a = cells[True, True], cells[True, False]
    only_b, neither = cells[False, True], cells[False, False]
    p_value = float(mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue) if only_a + only_b else 1.0
    interval = paired_difference_interval(only_a, only_b, len(a), confidence)
    difference = (only_b - only_a) / len(a)
    return PairedComparison(len(a), both, only_a, only_b, neither, difference, interval, min(1.0, p_value))
