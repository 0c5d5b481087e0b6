"""Which points no other dominates."""

import random

import pytest

from steersman.errors import InputError
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.plots import Pair, front, write_dots, write_front


def point(name, cost, quality, spread=0.5):
    return Pair(name=name, x=Figure(cost), y=Figure(quality, quality - spread, quality + spread))


KNOWN = [point("a", 1, 9), point("b", 2, 5), point("c", 3, 5), point("d", 3, 4), point("e", 4, 6), point("f", 2, 5)]


def test_the_front_of_known_points():
    assert [each.name for each in front(KNOWN, larger=False)] == ["a", "b", "f", "d"]
    assert [each.name for each in front(KNOWN, larger=True)] == ["a"]
    assert front([point("a", 1, float("nan")), point("b", 2, 1)], larger=True) == [point("b", 2, 1)]


def test_none_on_the_front_is_dominated_and_each_other_is():
    draw = random.Random(0)
    points = [point(str(k), draw.randrange(8), draw.randrange(8)) for k in range(60)]
    best = front(points, larger=True)
    for one in points:
        better = [
            other
            for other in points
            if other.x.value <= one.x.value
            and other.y.value >= one.y.value
            and (other.x.value < one.x.value or other.y.value > one.y.value)
        ]
        assert (one in best) == (not better)


def test_plots_are_written_whole(tmp_path):
    write_front(tmp_path / "front.png", KNOWN, larger=False, x="cost", y="loss")
    write_dots(tmp_path / "dots", KNOWN, figure="loss")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dots.csv",
        "dots.pdf",
        "dots.png",
        "front.pdf",
        "front.png",
    ]
    assert (tmp_path / "dots.csv").read_text().splitlines()[:2] == ["name,value,low,high", "a,9,8.5,9.5"]
    with pytest.raises(InputError, match="at least 1 point that has a cost and a quality, got none"):
        write_front(tmp_path / "none.png", [point("a", 1, float("nan"))], larger=True, x="", y="")
