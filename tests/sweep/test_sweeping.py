"""Sweeps with a tiny denoiser: what they write, that they go on, and what they refuse before they write."""

import csv
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from steersman.errors import InputError
from steersman.lab.generate import generate, generate_until_stopped, open_session
from steersman.lab.sweep import Sweep, Sweeping, varied

REFERENCE = "sportballs?num=40&resolution=16"
CHANGES = (
    "sampling.steps=2",
    "input=denoised",
    "weight=deviation",
    "smoothing=none",
    "particles=1",
    "recurrence.times=1",
    "preprocess.size=null",
)


def sweep(denoiser, *given, **settings):
    base = {"targets": ("baseball",), "num": 4, "denoiser": denoiser, "classifiers": ("zoo:sportballs-mobilenet",)}
    settings = {"changes": CHANGES, "reference": REFERENCE, "resamples": 8} | settings
    return Sweep(settings=base | settings.pop("base", {}), varied=varied(given), **settings)


def pixels(folder):
    return {file.name: np.asarray(Image.open(file)).astype(int) for file in sorted(folder.glob("0*.png"))}


def table(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


TWO = ("scale=0.5,4", "stabilizer=rms,ema")


@pytest.fixture(scope="module")
def done(denoiser, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    sweeping = Sweeping(sweep(denoiser, *TWO), out)
    assert not out.exists()  # whatever was checked and loaded
    sweeping.draw()
    sweeping.compare(pareto=True)
    return out


def test_a_sweep_writes_a_run_a_cell_and_compares_them(done):
    cells = [f"scale={scale},stabilizer={kind}" for scale in (0.5, 4) for kind in ("rms", "ema")] + ["unguided"]
    assert sorted(path.name for path in (done / "cells").iterdir()) == sorted(cells)
    for name in cells:
        held = {path.name for path in (done / "cells" / name).iterdir()}
        assert held == {
            *(f"00000{seed}.png" for seed in range(4)),
            *("run.yaml", "metrics.json", "evaluation.json", "grid.png"),
        }
    plots = ["accuracy-guide", "accuracy-judge", "fid", "cfid"]
    files = {f"{name}.{end}" for name in plots for end in ("csv", "png", "pdf")}
    files |= {f"pareto-{name}.{end}" for name in plots for end in ("png", "pdf")}
    assert {path.name for path in done.iterdir()} == files | {
        *("cells", "grid.png"),
        *(f"sweep.{end}" for end in ("csv", "md", "tex", "yaml")),
    }


def test_the_table_has_what_was_varied_the_figures_and_the_cost(done):
    *rows, unguided = table(done)
    assert (unguided["scale"], unguided["stabilizer"], unguided["unguided"]) == ("", "", "yes")
    assert unguided["classifier evaluations"] == "0.0" and float(unguided["fid"]) > 0
    assert [(row["scale"], row["stabilizer"]) for row in rows] == [(s, k) for s in ("0.5", "4") for k in ("rms", "ema")]
    for row in rows:
        assert float(row["accuracy/judge low"]) <= float(row["accuracy/judge"]) <= float(row["accuracy/judge high"])
        assert float(row["fid"]) > 0 and float(row["cfid"]) > 0
        assert row["clip_score"] == ""
        assert (row["denoiser evaluations"], row["classifier evaluations"], row["lost"]) == ("2.0", "1.0", "0")
        assert row["unguided"] == ""
    best = min(float(row["fid"]) for row in rows)  # all cost the same, and more than the one without guidance
    assert [row for row in rows if "fid" in row["pareto"].split()] == [
        row for row in rows if float(row["fid"]) == best < float(unguided["fid"])
    ]
    lines = (done / "sweep.md").read_text().splitlines()
    assert lines[0].startswith(
        "4 images of each target (baseball) in each cell, seeds 0 to 3; against sportballs?num=40&"
    )
    fids = " | ".join(f"{name} (sportballs-judge) ↓" for name in ("FID", "cFID", "KID"))
    assert lines[2].startswith(f"| scale | stabilizer | accuracy (guide) ↑ | accuracy (judge) ↑ | {fids} |")
    assert len(lines) == 2 + 2 + 5 and lines[-1].startswith("| unguided | – |")
    latex = (done / "sweep.tex").read_text().splitlines()
    assert latex[2].startswith(r"\begin{tabular}{llrrrrr") and latex[-1] == r"\end{tabular}"
    assert r"FID (sportballs-judge) $\downarrow$" in latex[4] and r"\% {\scriptsize [" in latex[6]
    curves = (done / "fid.csv").read_text().splitlines()
    assert curves[0] == "curve,x,y,spread,above"
    assert [line.split(",")[:2] for line in curves[1:]] == [
        [name, scale] for name in ("stabilizer=rms", "stabilizer=ema", "unguided") for scale in ("0.5", "4.0")
    ]
    assert [line.split(",")[2] for line in curves[1:3]] == [rows[0]["fid"], rows[2]["fid"]]


@pytest.mark.long
def test_the_same_seed_and_settings_in_two_sweeps_give_the_same_pixels(done, denoiser, tmp_path):
    asked = sweep(denoiser, "scale=4,9", changes=(*CHANGES, "stabilizer=rms"), base={"num": 2, "seed": 1})
    sweeping = Sweeping(asked, tmp_path / "other")
    sweeping.draw()
    other, first = pixels(tmp_path / "other/cells/scale=4"), pixels(done / "cells/scale=4,stabilizer=rms")
    assert list(other) == ["000001.png", "000002.png"]
    assert all(abs(other[name] - first[name]).max() <= 1 for name in other)  # they stood in another batch
    assert any(abs(other[name] - pixels(tmp_path / "other/cells/scale=9")[name]).max() > 1 for name in other)
    session = open_session(sweeping.cells[0].run)  # with networks of its own
    generate(session, tmp_path / "alone")
    alone = pixels(tmp_path / "alone")
    assert all((other[name] == alone[name]).all() for name in other)


@pytest.mark.long
def test_a_killed_sweep_goes_on_with_the_missing_cells_only(denoiser, tmp_path, monkeypatch):
    asked, out = sweep(denoiser, *TWO), tmp_path / "out"
    drawn = []

    def killed(session, folder, **settings):
        if len(drawn) == 2:
            folder.mkdir(parents=True)
            (folder / "000000.png").write_bytes(b"")  # it died on the way
            raise KeyboardInterrupt
        drawn.append(folder.name)
        return generate_until_stopped(session, folder, **settings)

    monkeypatch.setattr("steersman.lab.sweep.sweeping.generate_until_stopped", killed)
    with pytest.raises(KeyboardInterrupt):
        Sweeping(asked, out).draw()
    assert len(drawn) == 2
    before = {path: os.stat(path).st_mtime_ns for name in drawn for path in (out / "cells" / name).iterdir()}

    def counted(session, folder, **settings):
        drawn.append(folder.name)
        return generate_until_stopped(session, folder, **settings)

    monkeypatch.setattr("steersman.lab.sweep.sweeping.generate_until_stopped", counted)
    again = Sweeping(asked, out)
    assert [cell.folder for cell in again.missing()] == ["scale=4,stabilizer=rms", "scale=4,stabilizer=ema", "unguided"]
    again.draw()
    assert len(drawn) == len(set(drawn)) == 5
    assert all(os.stat(path).st_mtime_ns == time for path, time in before.items())
    rows = again.compare()
    third = Sweeping(asked, out)  # all is drawn and measured: no network is asked
    assert not third.missing() and not third.sessions
    assert [row.figures for row in third.compare()] == [row.figures for row in rows]
    assert len(drawn) == 5


def test_a_folder_of_another_sweep_is_left_alone(done, denoiser):
    before = sorted(path.name for path in done.rglob("*"))
    for other, named in (
        (sweep(denoiser, "scale=0.5,4"), "varied, shared"),
        (sweep(denoiser, *TWO, base={"seed": 1}), "shared"),
        (sweep(denoiser, *TWO, reference="sportballs?num=17&resolution=16"), "reference"),
    ):
        with pytest.raises(InputError, match=rf"holds a sweep with other settings \({named}\); give another --out"):
            Sweeping(other, done)
    assert sorted(path.name for path in done.rglob("*")) == before


def test_a_version_of_something_else_is_not_another_setting(done, denoiser):
    file = done / "sweep.yaml"
    record = yaml.safe_load(file.read_text())
    assert record["varied"] == {"scale": [0.5, 4], "stabilizer": ["rms", "ema"]}
    assert record["shared"]["recipe"]["settings"]["sampling"]["steps"] == 2
    assert "stabilizer" not in record["shared"]["recipe"]["settings"]
    file.write_text(yaml.safe_dump(record | {"versions": {"torch": "1.0"}}))
    assert not Sweeping(sweep(denoiser, *TWO), done).missing()


REFUSED = [
    (
        ["scale=1,2", "injection=mean,spherical", "sampler=dpmpp"],
        {},
        "cell scale=1, injection=spherical, sampler=dpmpp:",
    ),
    (["classifier=zoo:sportballs-mobilenet,zoo:sportballs-nothing"], {}, "cell classifier=zoo:sportballs-nothing: "),
    (
        ["scale=1,2"],
        {"reference": "sportballs?num=16"},
        "must have the size of the samples, 16 by 16 pixels, got 64 by 64",
    ),
    (["scale=1,2"], {"reference": "nowhere"}, "got 'nowhere'"),
    (["scale=1,2"], {"features": "nothing"}, "unknown features 'nothing'"),
    (["scale=1,2"], {"figures": ("fid", "fdi")}, "unknown figure 'fdi'; did you mean 'fid'"),
    (
        ["scale=1,2"],
        {"reference": "sportballs?num=16&resolution=16"},
        "cfid needs at least 2 images of 'baseball' in the reference, got 1",
    ),
    (["scale=1,2"], {"base": {"targets": ("zebra",)}}, "cell scale=1: "),
    (["label=baseball,cricket"], {}, "cell label=cricket: unknown label 'cricket'"),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("given", "settings", "told"), REFUSED)
def test_what_cannot_be_drawn_or_measured_is_refused_before_anything_is_written(
    denoiser, tmp_path, given, settings, told
):
    with pytest.raises(InputError) as error:
        Sweeping(sweep(denoiser, *given, **settings), tmp_path / "out")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_several_targets_are_compared_with_their_own_and_few_images_leave_figures_out(denoiser, tmp_path):
    both = {"targets": ("baseball", "soccer ball"), "num": 2}
    sweeping = Sweeping(sweep(denoiser, "stabilizer=none,ema", base=both), tmp_path)
    sweeping.draw()
    row, *_ = sweeping.compare()
    assert row.figures["cfid"].value is not None and row.figures["accuracy/judge"].value is not None
    assert row.figures["recall"].value is None  # of four neighbours each
    assert (tmp_path / "fid.csv").read_text().startswith("name,value,low,high\nstabilizer=none,")
