"""Intervals: as wide as figures of other samples are spread."""

import pytest
import torch

from steersman.lab.metrics import frechet_distance, wilson
from steersman.lab.metrics.intervals import Figure, mean_of, resampled, resampled_together, share


@pytest.mark.parametrize("count", [40, 41])
def test_of_a_mean_as_the_normal_law_has_it(count, draw):
    values = draw(count)
    found = resampled(lambda i: values[i].mean().item(), count, resamples=4000)
    half = 1.96 * values.std().item() / count**0.5
    assert found.value == values.mean().item()
    # a quantile's standard error is 2.7% of the deviation's 1.96 here
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.1 * half)


@pytest.mark.long
def test_of_a_biased_figure_as_other_samples_are_spread(draw):
    real = draw(400, 3)
    values, sides = [], []
    for _ in range(60):
        x = 1.3 * draw(100, 3) + 0.4
        found = resampled(lambda i, x=x: frechet_distance(x[i], real), 100, least=2, resamples=60)
        assert found.low < found.value < found.high
        values.append(found.value)
        sides.append((found.high - found.low) / 3.92)
    spread = torch.tensor(values).std().item()
    assert sum(sides) / len(sides) == pytest.approx(spread, rel=0.3)  # a deviation of 60 is known to 9%, thrice that


def test_what_fewer_images_are_biased_by_is_left_out():
    assert resampled(lambda i: 1 / len(i), 8) == Figure(0.125, 0.125, 0.125)


def test_figures_together_are_those_alone(draw):
    values = draw(31, 3)
    together = resampled_together(lambda i: values[i].mean(0), 31, seed=4)
    for column, found in enumerate(together):
        alone = resampled(lambda i, column=column: values[i, column].mean().item(), 31, seed=4)
        assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert resampled_together(lambda i: values[i].mean(0)[:1] * 0, 1) == [Figure(0.0)]


def test_bounds_seed_and_too_few():
    values = torch.tensor([0.0, 0, 0, 1])
    figure = lambda i: values[i].mean().item()  # noqa: E731
    found = resampled(figure, 4, bounds=(0.125, 0.375))
    assert found == Figure(0.25, 0.125, 0.375)
    assert resampled(figure, 4, seed=1) == resampled(figure, 4, seed=1)
    assert resampled(figure, 4, resamples=0) == resampled(figure, 4, least=3) == Figure(0.25)


def test_a_share_has_wilsons():
    assert share(9, 10) == Figure(0.9, *wilson(9, 10))


def test_mean_of_independent_figures():
    assert mean_of([Figure(1.0, 0.7, 1.4), Figure(3.0, 2.6, 3.3)]) == Figure(2.0, 1.75, 2.25)
    assert mean_of([Figure(1.0), Figure(3.0, 2.6, 3.3)]) == Figure(2.0)
    assert mean_of([]) == Figure()
