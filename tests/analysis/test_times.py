"""Which levels are visited."""

import pytest
import torch

from steersman.errors import InputError
from steersman.lab.analysis.forward import all_levels, axis, choose
from steersman.schedule import EDM, VP, Flow

LEVELS = all_levels(VP.linear(20))


def times(**choice):
    return [int(LEVELS[place].time) for place in choose(LEVELS, **choice)]


def test_all_levels_are_the_trained_times_noisiest_first():
    assert times() == list(range(19, -1, -1))
    for schedule in (EDM(), Flow()):
        levels = all_levels(schedule)
        ratios = torch.stack([level.sigma / level.alpha for level in levels])
        assert len(levels) == 1000 and bool((ratios.diff() < 0).all()) and float(ratios[-1]) > 0


def test_chosen_levels():
    assert times(times=[0, 5.4, 19, 5]) == [19, 5, 0]
    assert times(every=5) == [15, 10, 5, 0]
    assert times(every=30) == [0]
    assert times(count=3) == [19, 9, 0] or times(count=3) == [19, 10, 0]
    assert times(count=1) == [19] and times(count=20) == times()


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"times": [20.0]}, "times must be 0 to 19, got 20"),
        ({"times": []}, "times must have at least 1 time"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"count": 21}, "count must be 1 to 20, got 21"),
        ({"count": 2, "every": 2}, "give one of --times, --every, --count"),
    ],
)
def test_refusals(choice, told):
    with pytest.raises(InputError, match=told):
        choose(LEVELS, **choice)


def test_an_axis_counts_noise_as_its_schedule_does():
    x, title, log = axis(VP.linear(20), LEVELS[-2:])
    assert (x, title, log) == ([1, 0], "time t (0 clean, 19 noise)", False)
    edm = EDM()
    x, _, log = axis(edm, [edm.at_ratio(2.0)])
    assert x == [pytest.approx(2.0)] and log
