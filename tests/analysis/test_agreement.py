"""Which setting of a calibration is which cell of a sweep."""

import pytest

from steersman.errors import InputError
from steersman.lab.analysis.calibration import pairs, read_cells, read_errors
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.plots import Pair
from steersman.lab.report.tables import write_rows
from steersman.lab.sweep.sweeping import FRONTS, Row, write_table

HEADER = ("classifier", "input", "name", "integral calibration error")
HEADER = (*HEADER, "integral calibration error low", "integral calibration error high")


@pytest.fixture
def calibration(tmp_path):
    folder = tmp_path / "calibration"
    folder.mkdir()
    names = ("a, noisy", "a, denoised", "b, noisy", "b, denoised")
    rows = [(*name.split(", "), name, place / 10, "", "") for place, name in enumerate(names)]
    write_rows(folder / "integral.csv", HEADER, [(*rows[0][:4], 0.0, 0.25), *rows[1:]])
    return folder


def cell(fid, accuracy=0.5, unguided=False, **values):
    known = Figure() if fid is None else Figure(fid, fid - 1, fid + 1)
    figures = {"accuracy/guide": Figure(accuracy), "fid": known, "kid": Figure(9.0)}
    evaluations = {"denoiser": 1, "classifier": 1}
    return Row(
        name="", values=values, figures=figures, evaluations=evaluations, seconds=1.0, lost=(), unguided=unguided
    )


def sweep(folder, *rows):
    folder.mkdir()
    write_table(folder, rows, about="", pareto=None)
    return folder


def test_names_have_the_same_parts_in_any_order(calibration, tmp_path):
    folder = sweep(
        tmp_path / "sweep",
        *(cell(float(place), case=name) for place, name in enumerate(("noisy, b", "denoised, b", "a, noisy", "c"))),
    )
    errors, cells = read_errors(calibration), read_cells(folder, larger=FRONTS)
    assert errors["a, noisy"] == Figure(0.0, 0.0, 0.25) and errors["b, noisy"] == Figure(0.2)
    assert pairs(errors, cells, "fid") == [
        Pair(name="a, noisy", x=Figure(0.0, 0.0, 0.25), y=Figure(2.0, 1.0, 3.0)),
        Pair(name="b, noisy", x=Figure(0.2), y=Figure(0.0, -1.0, 1.0)),
        Pair(name="b, denoised", x=Figure(0.3), y=Figure(1.0, 0.0, 2.0)),
    ]
    assert set(cells["noisy, b"]) == {"accuracy/guide", "fid"}


def test_what_is_varied_is_fixed_or_each_settings_best(tmp_path):
    folder = sweep(
        tmp_path / "sweep",
        cell(5.0, 0.25, input="noisy", scale="1"),
        cell(4.0, 0.125, input="noisy", scale="2"),
        cell(3.0, 0.75, input="denoised", scale="1"),
        cell(6.0, 1.0, input="denoised", scale="2"),
        cell(None, 0.5, input="lookahead", scale="2"),
        cell(1.0, 1.0, unguided=True, input="", scale=""),  # which no calibration belongs to
    )

    def found(**choice):
        cells = read_cells(folder, larger=FRONTS, **choice)
        return {name: (each["fid"].value, each["accuracy/guide"].value) for name, each in cells.items()}

    assert found(where={"scale": "1"}) == {"noisy": (5.0, 0.25), "denoised": (3.0, 0.75)}
    assert found(best=["scale"]) == {"noisy": (4.0, 0.25), "denoised": (3.0, 1.0), "lookahead": (None, 0.5)}
    assert list(found()) == ["noisy, 1", "noisy, 2", "denoised, 1", "denoised, 2", "lookahead, 2"]
    with pytest.raises(InputError, match="unknown setting that the sweep varies 'beta'; known: input, scale"):
        found(best=["beta"])
    with pytest.raises(InputError, match="got scale=3, which no cell has"):
        found(where={"scale": "3"})


def test_refusals(calibration, tmp_path):
    errors, cells = read_errors(calibration), sweep(tmp_path / "sweep", cell(1.0, case="a, noisy"), cell(2.0, case="c"))
    with pytest.raises(
        InputError, match=r"at least 3 settings .* fid .*, got 1; .*\| b, denoised, the sweep a, noisy \| c"
    ):
        pairs(errors, read_cells(cells, larger=FRONTS), "fid")
    write_rows(calibration / "integral.csv", HEADER[:2], [("a", "noisy")])
    with pytest.raises(InputError, match="has no column 'name'"):
        read_errors(calibration)
    with pytest.raises(InputError, match=r"sweep: .*sweep.csv' cannot be read"):
        read_cells(calibration, larger=FRONTS)
