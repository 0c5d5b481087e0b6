"""Calibration of a classifier that is calibrated by construction, and of one that is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import Denoised, Noisy
from steersman.lab.analysis.calibration import (
    CONFIDENCE,
    CORRECT,
    Turns,
    calibration_errors,
    confidences,
    diagrams,
    error_curves,
    filled_bins,
    in_turn,
    integral,
)
from steersman.lab.analysis.parts import apart, names
from steersman.sampling import DDPM, Heun

COUNT, STEPS = 600, 20
TIMES = [float(time) for time in range(STEPS, 0, -1)]


@pytest.fixture(scope="module")
def even(mixture):
    """Each class as likely as the others: so the classes in turn are a draw of it."""
    return replace(mixture, weights=torch.full((3,), 1 / 3, dtype=torch.float64))


def exact(mixture):
    return lambda image, level=None: mixture.log_posterior(image, level)


@pytest.fixture(scope="module")
def found(even):
    labels = torch.arange(COUNT) % 3
    return confidences(
        even,
        DDPM(),
        {("exact",): exact(even)},
        {("exact",): labels},
        range(COUNT),
        inputs={"noisy": Noisy(), "denoised": Denoised(clip=False)},
        temperatures=(1.0, 4.0),
        condition={"label": labels},
        steps=STEPS,
        clip=False,
        dtype=torch.float64,
    )


def test_the_exact_classifier_is_calibrated_on_what_it_is_exact_of(found):
    errors = {key: [each.error for each in row] for key, row in diagrams(measured(found), 10).items()}
    # of 600 images in 10 bins the error of a calibrated classifier is about sum_m sqrt(n_m p (1 - p)) / n, at most .05
    assert max(errors["exact", "noisy", "τ 1"]) < 0.08
    assert max(errors["exact", "noisy", "τ 4"]) > 0.15  # four times too sure


def measured(found):
    return {key: value.numpy() for key, value in found.items()}


def test_images_are_drawn_for_their_class_and_seen_at_the_steps_own_level(even):
    labels, kept = torch.tensor([0, 1, 2, 2]), []

    def watching(image, level=None):
        kept.append((image.clone(), level))
        return even.log_posterior(image, level)

    found = confidences(
        even,
        Heun(),  # asks twice a step: the first time counts
        {("a",): watching},
        {("a",): labels},
        range(4),
        inputs={"denoised": Denoised(clip=False)},
        at={0, 2},
        condition={"label": labels},
        steps=4,
        clip=False,
        dtype=torch.float64,
    )
    levels = even.schedule.levels(4)
    assert [float(level.time) for _, level in kept] == [float(levels[i].time) for i in (0, 2)]
    assert set(found) == {(CONFIDENCE, "a", "denoised", "τ 1"), (CORRECT, "a", "denoised", "τ 1")}
    for place, (image, level) in enumerate(kept):
        p = even.log_posterior(image, level).exp()
        torch.testing.assert_close(found[CONFIDENCE, "a", "denoised", "τ 1"][:, place], p.amax(1))
        assert torch.equal(found[CORRECT, "a", "denoised", "τ 1"][:, place], p.argmax(1) == labels)


def test_a_binary_classifier_is_sure_of_either_class(even):
    def logit(image, level=None):
        return torch.tensor([[-2.0], [2.0]], dtype=torch.float64)

    told = {("b",): torch.tensor([0, 0])}
    found = confidences(even, DDPM(), {("b",): logit}, told, [0, 1], inputs={"v": Noisy()}, temperatures=[0.5], steps=2)
    sure = torch.full((2, 2), 1.0, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(found[CONFIDENCE, "b", "v", "τ 0.5"], sure)
    assert found[CORRECT, "b", "v", "τ 0.5"].tolist() == [[True, True], [False, False]]


def test_the_integral_is_the_mean_over_time():
    assert integral([0.1, 0.5, 0.3], [10.0, 6.0, 0.0]) == pytest.approx((0.3 * 4 + 0.4 * 6) / 10)
    assert integral([0.5, 0.1], [1.0, 0.0]) == integral([0.1, 0.5], [0.0, 1.0]) == pytest.approx(0.3)
    assert integral([0.4], [999.0]) == 0.4


def test_curves_and_bins_tell_the_diagrams(found):
    rows = diagrams(measured(found), 5)
    assert names(rows)["exact", "noisy", "τ 4"] == "noisy, τ 4"
    curves = error_curves(calibration_errors(measured(found), TIMES, 5), TIMES)
    assert [curve.name for curve in curves] == ["noisy, τ 1", "noisy, τ 4", "denoised, τ 1", "denoised, τ 4"]
    first = rows["exact", "noisy", "τ 1"][3]
    filled = filled_bins(first)
    assert sum(count for _, _, count, _, _ in filled) == COUNT
    assert all(low < sure <= high for low, high, _, sure, _ in filled)
    error = sum(count / COUNT * abs(right - sure) for _, _, count, sure, right in filled)
    assert error == pytest.approx(float(first.error)) == pytest.approx(curves[0].y[3])


@pytest.mark.long
def test_errors_have_the_interval_that_other_images_would_fall_into(found):
    """Twelve sets of 50 images are spread as the interval of one of them says, and so is their mean over time."""
    values = measured(found)
    sets = [
        calibration_errors({key: array[first::12] for key, array in values.items()}, TIMES, 5)["exact", "noisy", "τ 4"]
        for first in range(12)
    ]
    for pick in (lambda each: each.integral, lambda each: each.steps[3]):
        values = torch.tensor([pick(each).value for each in sets])
        widths = [pick(each).high - pick(each).low for each in sets]
        assert all(pick(each).low <= pick(each).value <= pick(each).high for each in sets)
        # a deviation of 12 is known to 21%, thrice that
        assert sum(widths) / 12 / 3.92 == pytest.approx(values.std().item(), rel=0.65)
    for each in sets:
        assert each.integral.value == pytest.approx(integral([step.value for step in each.steps], TIMES))


def test_the_band_is_the_interval(found):
    errors = calibration_errors(measured(found), TIMES, 5)
    curve = error_curves(errors, TIMES)[1]
    step = errors["exact", "noisy", "τ 4"].steps[6]
    assert curve.y[6] - curve.spread[6] == pytest.approx(step.low)
    assert curve.y[6] + curve.above[6] == pytest.approx(step.high)
    one = calibration_errors({key: array[:1] for key, array in measured(found).items()}, TIMES, 5)
    assert error_curves(one, TIMES)[0].spread is None


def test_two_classifiers_in_turn_are_each_itself_on_its_side(even):
    levels = even.schedule.levels(4)[:-1]
    at = float(levels[1].sigma / levels[1].alpha)  # from there on down it is the second's turn
    values = {
        (kind, name, "v"): np.arange(8.0).reshape(2, 4) + offset
        for kind, offsets in ((CONFIDENCE, (0, 100)), (CORRECT, (200, 300)))
        for name, offset in zip("ab", offsets, strict=True)
    }
    both = in_turn(values, Turns(name="ab", above="a", below="b", at=at), levels)
    assert both[CONFIDENCE, "ab", "v"].tolist() == [[0, 101, 102, 103], [4, 105, 106, 107]]
    assert both[CORRECT, "ab", "v"].tolist() == [[200, 301, 302, 303], [204, 305, 306, 307]]
    assert len(both) == 2


def test_panels_take_as_many_parts_as_it_takes():
    keys = [(c, v, s) for c in "ab" for v in "xy" for s in "1234"]
    assert apart(keys)["a", "y", "3"] == ("a, y", "3")
    assert apart(keys, most=8)["a", "y", "3"] == ("a", "y, 3")
    assert apart(keys, most=16)["a", "y", "3"] == (None, "a, y, 3")
    assert apart([("a", str(i)) for i in range(9)])["a", "7"] == (None, "7")
    assert apart([("a", "x")]) == {("a", "x"): (None, "a")}


def test_refusals(even, posterior):
    told = {("a",): torch.zeros(1, dtype=torch.int64)}
    with pytest.raises(InputError, match="temperature must be above 0, got 0"):
        confidences(even, DDPM(), {("a",): posterior}, told, [0], inputs={"v": Noisy()}, temperatures=[0.0], steps=2)
