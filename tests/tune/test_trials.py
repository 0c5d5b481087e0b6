"""Which trial is taken."""

from dataclasses import asdict

import pytest

from steersman.errors import InputError
from steersman.lab.metrics.intervals import Figure
from steersman.lab.metrics.intervals import share as shared
from steersman.lab.tune import Bounds, Trial, choose
from steersman.typed import typed


def trial(number, right, distance, cost):
    return Trial(
        number=number, settings={"scale": number}, accuracy=shared(right, 16), distance=Figure(distance), cost=cost
    )


TRIALS = [
    trial(0, 16, 20.0, 100.0),  # the surest: no lower than 80.6%
    trial(1, 14, 30.0, 40.0),  # 87.5%
    trial(2, 13, 10.0, 30.0),  # 81.3%
    trial(3, 12, 12.0, 20.0),  # 75%
    trial(4, 16, 25.0, 120.0),
    Trial(number=5, settings={}, reason="sampling.steps must be at least 1, got 0"),
]


@pytest.mark.parametrize(
    ("bounds", "number"),
    [
        ({}, 2),
        ({"accuracy": 0.85}, 1),
        ({"accuracy": 1.0}, 0),
        ({"accuracy": 0.85, "distance": 22}, 0),
        ({"distance": 15}, 3),
        ({"budget": 50}, 2),
        ({"budget": 25}, 3),
        ({"budget": 50, "accuracy": 0.85}, 1),
        ({"budget": 200, "distance": 26, "accuracy": 0.9}, 0),
    ],
)
def test_it_is_the_cheapest_within_the_bounds_or_the_nearest_within_a_budget(bounds, number):
    assert choose(TRIALS, Bounds(**bounds)).number == number
    assert choose(TRIALS[::-1], Bounds(**bounds)).number == number


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        (
            {"accuracy": 0.9, "budget": 50},
            "budget 50 and the other bounds; the nearest is trial 0, accuracy 100.0%, distance 20, cost 100",
        ),
        ({"budget": 10}, "budget 10 and .* nearest is trial 3"),
        ({"accuracy": 0.8, "distance": 5}, "distance 5 and .* nearest is trial 2"),
    ],
)
def test_where_none_keeps_to_the_bounds_the_nearest_is_named(bounds, told):
    with pytest.raises(InputError, match=told):
        choose(TRIALS, Bounds(**bounds))


def test_where_none_was_drawn_there_is_nothing_to_take():
    with pytest.raises(InputError, match="none of the trials could be drawn"):
        choose(TRIALS[-1:], Bounds())


@pytest.mark.parametrize("bad", [{"accuracy": 0.0}, {"accuracy": 1.1}, {"distance": 0.0}, {"budget": -1.0}])
def test_bounds_that_bind_nothing_or_all_are_refused(bad):
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be above 0.*, got {next(iter(bad.values()))}"):
        Bounds(**bad)


def test_a_trial_is_written_down_whole():
    assert [typed("", asdict(each), Trial) for each in TRIALS] == TRIALS
