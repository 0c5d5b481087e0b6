"""Rank correlations that are known."""

import math
from itertools import permutations

import pytest
import torch
from scipy.stats import spearmanr

from steersman.errors import InputError
from steersman.lab.metrics.intervals import Figure, by_chance, rank_correlation

UP = [0.1, 0.4, 0.9, 1.6, 2.5]


def correlation(x, y):
    return rank_correlation(x, y, resamples=9).value


def test_one_wherever_it_rises_and_minus_one_wherever_it_falls():
    assert rank_correlation(UP, [math.exp(x) for x in UP]) == Figure(1.0, 1.0, 1.0)
    assert correlation(UP, [-(x**3) for x in UP]) == -1.0


def test_as_the_sum_of_squared_differences_has_it():
    # 1 - 6 sum d^2 / (n (n^2 - 1)), with d = 0, 1, 1, 0, 0
    assert correlation(UP, [1, 3, 2, 4, 5]) == pytest.approx(1 - 6 * 2 / (5 * 24))


def test_equal_values_share_their_rank():
    values = [[3.0, 1, 3, 2, 3], [0, 0, 1, 1, 2]]
    assert correlation(*values) == pytest.approx(spearmanr(*values).statistic)
    assert correlation([1, 1, 2, 2], [5, 5, 9, 9]) == 1.0
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == Figure() and math.isnan(by_chance([1, 1, 1], [1, 2, 3]))


def test_chance_of_three_settings():
    # of the 6 orders of 1 2 3, rho is 1, .5, .5, -.5, -.5, -1
    assert by_chance([1, 2, 3], [4, 5, 6]) == by_chance([1, 2, 3], [6, 5, 4]) == pytest.approx(2 / 6)
    assert by_chance([1, 2, 3], [4, 6, 5]) == 1.0


def test_chance_counts_every_pairing(draw):
    x, y = draw(6).tolist(), [1.0, 2, 2, 3, 4, 4]
    far = abs(spearmanr(x, y).statistic)
    all_of_them = [abs(spearmanr(x, [y[i] for i in order]).statistic) >= far - 1e-9 for order in permutations(range(6))]
    assert by_chance(x, y) == pytest.approx(sum(all_of_them) / 720)


def test_chance_of_nine_is_exact_and_of_ten_is_drawn():
    nine, ten = range(9), range(10)
    assert by_chance(nine, nine) == pytest.approx(2 / math.factorial(9), rel=1e-12)
    assert by_chance(ten, ten, drawn=99) == 1 / 100  # the one found is among them
    y = [1, 0, 4, 2, 3, 5, 9, 6, 8, 7]
    theirs = spearmanr([*ten, 10], [*y, 1]).pvalue
    assert by_chance([*ten, 10], [*y, 1]) == pytest.approx(theirs, abs=0.01)  # theirs is of Student's law


def test_the_interval_is_as_wide_as_other_settings_are_spread(draw):
    def settings(count):
        x = draw(count)
        return x.tolist(), (x + 0.8 * draw(count)).tolist()

    spread = torch.tensor([correlation(*settings(60)) for _ in range(200)]).std().item()
    found = [rank_correlation(*settings(60), resamples=300) for _ in range(20)]
    assert all(each.low < each.value < each.high for each in found)
    # a deviation of 200 is known to 5%, a mean of 20 widths to some more, thrice both
    assert sum(each.high - each.low for each in found) / 20 / 3.92 == pytest.approx(spread, rel=0.25)
    assert rank_correlation(UP, [1, 3, 2, 5, 4], seed=1) == rank_correlation(UP, [1, 3, 2, 5, 4], seed=1)


def test_refusals():
    with pytest.raises(InputError, match="same length, at least 2, got 2 and 3 values"):
        correlation([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="got 1 and 1 values"):
        by_chance([1], [1])
    with pytest.raises(InputError, match="not finite"):
        correlation([1, float("nan")], [1, 2])
