"""Curves as a table that reads back exactly, and as a plot beside it."""

import csv
import math

import pytest
from PIL import Image

from steersman.errors import InputError
from steersman.lab.report.plots import Curve, _figure, beside, write_curves

A = Curve(name="a, b", x=[0.1, 0.2, 1 / 3], y=[1.0, math.pi, 2.0], spread=[0.5, 0.25, 1e-30])
B = Curve(name="b", x=[3.0, 1.0], y=[-1.0, math.nan])


def test_the_table_reads_back_exactly(tmp_path):
    write_curves(tmp_path / "fig.1", [A, B], x="time", y="value")
    with (tmp_path / "fig.1.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["curve", "x", "y", "spread"]
    assert [row[0] for row in rows] == ["a, b"] * 3 + ["b"] * 2
    assert [float(row[1]) for row in rows[:3]] == A.x and [float(row[2]) for row in rows[:3]] == A.y
    assert [float(row[3]) for row in rows[:3]] == A.spread
    assert rows[3] == ["b", "3.0", "-1.0", ""] and rows[4][2] == "nan"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fig.1.csv", "fig.1.pdf", "fig.1.png"]
    with Image.open(tmp_path / "fig.1.png") as image:
        assert image.format == "PNG" and image.width > 800


def test_the_same_curves_give_the_same_files(tmp_path):
    for name in ("one", "two"):
        write_curves(tmp_path / name, [A, B], x="time", y="value")
    for ending in ("csv", "png", "pdf"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_the_plot_shows_lines_bands_and_names():
    figure = _figure([A, B], "time", "value", log_x=False, log_y=False)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time", "value")
    assert [list(line.get_xdata()) for line in axes.lines] == [A.x, [1.0, 3.0]]  # along x, whatever the order
    (band,) = axes.collections  # one has none
    heights = band.get_paths()[0].get_extents()
    assert heights.y0 == pytest.approx(0.5) and heights.y1 == pytest.approx(math.pi + 0.25)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a, b", "b"]


def test_a_band_may_go_less_far_up_than_down(tmp_path):
    curve = Curve(name="a", x=[1.0, 2.0], y=[0.5, 1.0], spread=[0.25, 0.5], above=[0.125, 0.0])
    write_curves(tmp_path / "one", [curve, B], x="x", y="y")
    rows = (tmp_path / "one.csv").read_text().splitlines()
    assert rows[:2] == ["curve,x,y,spread,above", "a,1.0,0.5,0.25,0.125"] and rows[3] == "b,3.0,-1.0,,"
    (axes,) = _figure([curve], "x", "y", log_x=True, log_y=False).axes
    edges = axes.collections[0].get_paths()[0].get_extents()
    assert (edges.y0, edges.y1) == (0.25, 1.0)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2"]


def test_a_band_stays_above_zero_on_a_logarithmic_axis():
    curve = Curve(name="a", x=[1.0, 10.0, 20.0], y=[1.0, 100.0, 0.0], spread=[2.0, 1.0, 1.0])
    (axes,) = _figure([curve], "x", "y", log_x=True, log_y=True).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    corners = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.round(6).tolist()}
    assert corners == {(1.0, round(1 / 3, 6)), (1.0, 3.0), (10.0, round(100 / 1.01, 6)), (10.0, 101.0)}


def test_what_is_far_too_small_runs_out_of_a_logarithmic_plot():
    def lowest(*y):
        curve = Curve(name="a", x=list(range(len(y))), y=list(y))
        (axes,) = _figure([curve], "x", "y", log_x=False, log_y=True).axes
        return axes.get_ylim()[0]

    assert lowest(100.0, 1.0, 1e-15, math.nan) == pytest.approx(1e-6)
    assert lowest(100.0, 2e-6) < 2e-6


def test_many_curves_are_told_apart():
    curves = [Curve(name=str(i), x=[0.0], y=[float(i)], spread=[1.0]) for i in range(24)]
    (axes,) = _figure(curves, "x", "y", log_x=False, log_y=False).axes
    assert not axes.collections  # so many bands would hide the curves
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 24


def test_panels_share_their_axes_and_what_a_name_looks_like(tmp_path):
    names = ("one", "two"), ("two",), ("one", "two")
    curves = [
        Curve(name=name, panel=panel, x=[0.0, 1.0], y=[float(place), 1.0], spread=[0.5, 0.5])
        for place, (panel, own) in enumerate(zip("abc", names, strict=True))
        for name in own
    ]
    figure = _figure(curves, "x", "y", log_x=False, log_y=False)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    assert [len(axes.collections) for axes in figure.axes] == [2, 1, 2]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    looks = {(line.get_label(), line.get_color()) for axes in figure.axes for line in axes.lines}
    assert len(looks) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    write_curves(tmp_path / "panels", curves, x="x", y="y")
    rows = (tmp_path / "panels.csv").read_text().splitlines()
    assert rows[0] == "curve,x,y,spread" and rows[1].startswith("a, one".join('""') + ",0.0,0.0,")


@pytest.mark.parametrize("count", [2, 5, 7])
def test_an_empty_place_is_not_seen(count):
    curves = [Curve(name="one", panel=str(i), x=[0.0, 1.0], y=[0.0, 1.0]) for i in range(count)]
    figure = _figure(curves, "x", "y", log_x=False, log_y=False)
    seen = [axes for axes in figure.axes if axes.get_visible()]
    assert len(seen) == count
    lowest = seen[-beside(count) :]
    assert all(axes.xaxis.get_tick_params()["labelbottom"] for axes in lowest)


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="at least 1 curve, got none"):
        write_curves(tmp_path / "a", [], x="x", y="y")
    with pytest.raises(InputError, match="'a' must have as many values of each .*, got 2, 1"):
        Curve(name="a", x=[1, 2], y=[1])
    with pytest.raises(InputError, match="got 2, 2, 3"):
        Curve(name="a", x=[1, 2], y=[1, 2], spread=[1, 2, 3])
