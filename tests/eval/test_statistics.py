# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from vla.eval.statistics import (
    compare_paired,
    macro_weights,
    paired_difference_interval,
    stratified_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_matches_newcombe_1998_table_1(successes, n, expected):
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=5e-5)


def test_one_stratum_is_wilson_and_equal_full_strata_pool():
    assert stratified_interval({"a": (7, 20)})[1:] == pytest.approx(wilson_interval(7, 20))
    strata = {str(i): (10, 10) for i in range(50)}
    assert stratified_interval(strata)[1:] == pytest.approx(wilson_interval(500, 500), abs=1e-9)


def test_strata_of_unequal_difficulty_are_surer_than_the_pool():
    rate, low, high = stratified_interval({"easy": (98, 100), "hard": (3, 100)})
    pooled = wilson_interval(101, 200)
    assert rate == pytest.approx(0.505) and high - low < 0.55 * (pooled[1] - pooled[0])


def test_macro_weighs_tasks_and_not_episodes():
    counts = {"a": (90, 100), "b": (1, 10)}
    assert stratified_interval(counts)[0] == pytest.approx(91 / 110)
    assert stratified_interval(counts, weights=macro_weights({"all": counts}))[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("rates", "episodes"),
    [((0.97, 0.6, 0.2, 0.9), 25), ((0.98,) * 50, 10), ((0.0, 0.0, 0.0, 0.02), 40), ((0.93, 0.99, 0.95), 40)],
)
def test_stratified_interval_covers(rates, episodes):
    generator = np.random.Generator(np.random.Philox(key=1))
    hits = 0
    for successes in generator.binomial(episodes, rates, (800, len(rates))):
        _, low, high = stratified_interval({str(i): (int(k), episodes) for i, k in enumerate(successes)})
        hits += low <= sum(rates) / len(rates) <= high
    assert hits / 800 >= 0.93


def test_mcnemar_is_the_binomial_test_on_what_differs():
    from scipy.stats import binomtest

    a = {("t", i): i < 40 for i in range(60)}
    b = {("t", i): i < 36 or 40 <= i < 52 for i in range(60)}
    result = compare_paired(a, b)
    assert (result.both, result.only_a, result.only_b, result.neither) == (36, 4, 12, 8)
    assert result.p_value == pytest.approx(binomtest(4, 16, 0.5).pvalue)
    assert result.difference == pytest.approx(8 / 60)
    assert result.interval[0] < 8 / 60 < result.interval[1]


def test_difference_interval_matches_agresti_approval_ratings():
    # Agresti, Categorical Data Analysis, section 10.1: 150 and 86 of 1600 changed; 0.040 with interval 0.021
    # to 0.059.
    assert paired_difference_interval(86, 150, 1600) == pytest.approx((0.021, 0.059), abs=5e-4)
    low, high = paired_difference_interval(0, 0, 50)
    assert low == -high and 0.02 < high < 0.06


def test_runs_on_other_seeds_are_not_compared():
    with pytest.raises(ValueError, match="same"):
        compare_paired({("t", 0): True}, {("t", 1): True})
    same = {("t", 0): True, ("t", 1): False}
    assert compare_paired(same, same).p_value == 1.0


@pytest.mark.parametrize("counts", [(5, 4), (-1, 4), (0, 0)])
def test_impossible_counts(counts):
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson_interval(*counts)
