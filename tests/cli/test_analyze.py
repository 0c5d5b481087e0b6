"""``steersman analyze``: its files, how it goes on after it was killed, and what it refuses."""

import csv
import json
from functools import partial

import pytest
import torch

from analysis.tiny import Tiny, network
from steersman.cli.analyze import stabilizer
from steersman.errors import InputError
from steersman.guidance import Adam, Ema, Identity
from steersman.lab.analysis.parts import Parts
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.page import report
from steersman.lab.sweep.sweeping import Row, write_table

BALLS = ["--data", "sportballs?num=5&seed=3&resolution=8"]
TWO = ["--classifier", "one=zoo:0", "--classifier", "two=zoo:1"]
COMMANDS = {
    "accuracy": [*TWO, *BALLS, "--count", "3"],
    "sensitivity": [*TWO, *BALLS, "--times", "19,10", "--stabilizer", "none", "--stabilizer", "ema 0.9"],
    "calibration": [*TWO, "--num", "5", "--steps", "4", "--softplus", "none,3", "--temperature", "1,2"],
    "gradients": ["--classifier", "zoo:0", "--num", "3", "--steps", "4", "--count", "2"],
}
FILES = {
    "accuracy": ["accuracy.csv", "accuracy.png"],
    "sensitivity": ["gradients.csv", "gradients.png", "logits.csv", "logits.png", "stabilised.csv", "stabilised.png"],
    "calibration": [
        *("calibration.csv", "calibration.png", "integral.csv", "integral.md"),
        *("reliability.csv", "reliability.png"),
    ],
    "gradients": ["gradients.png", "norms.csv", "norms.png"],
}


@pytest.fixture
def call(call, monkeypatch):
    """Runs an analysis on tiny networks; returns exit code, standard output and standard error."""

    def load(spec, *, softplus=None, **_):
        made = network(int(spec[-1]))
        return made if softplus is None else made.smooth(softplus)

    monkeypatch.setattr("steersman.models.denoisers.load_denoiser", lambda spec, **_: Tiny())
    monkeypatch.setattr("steersman.models.classifiers.load_classifier", load)
    return partial(call, "analyze")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_analysis_goes_on_to_the_same_figures(command, call, monkeypatch, tmp_path):
    two = [command, *COMMANDS[command], "--batch-size", 2, "--out"]
    code, said, _ = call(*two, tmp_path / "whole")
    assert code == 0 and f"figures in {tmp_path / 'whole'}" in said
    written = {path.name for path in (tmp_path / "whole").iterdir()}
    assert written == {*FILES[command], "settings.json", "parts"}

    write, asked = Parts.write, []
    with monkeypatch.context() as killed:

        def once(self, images, values):
            if images[0]:
                raise KeyboardInterrupt
            write(self, images, values)

        killed.setattr(Parts, "write", once)
        assert call(*two, tmp_path / "parts")[0] == 130
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"settings.json", "parts"}
    with monkeypatch.context() as watched:

        def heard(self, images, values):
            asked.extend(images)
            write(self, images, values)

        watched.setattr(Parts, "write", heard)
        assert call(*two, tmp_path / "parts")[0] == 0
    assert asked == list(range(2, 3 if command == "gradients" else 5))
    for name in FILES[command]:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    code, _, err = call(*two, tmp_path / "parts", "--seed", 1)
    assert code == 2 and "holds an analysis with seed 0, not 1" in err and err.count("\n") == 1


@pytest.mark.few(9)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_batch_size_matters_to_no_figure(command, call, tmp_path):
    for size in (1, 3):
        call(command, *COMMANDS[command], "--batch-size", size, "--out", tmp_path / str(size))
    for name in FILES[command]:
        if name.endswith(".csv"):
            one, three = (rows(tmp_path / size / name) for size in "13")
            assert len(one) == len(three)
            for ours, theirs in zip(one, three, strict=True):
                for cell, other in zip(ours, theirs, strict=True):
                    # float32, whose rounding may depend on an image's place in its batch
                    assert cell == other or float(cell) == pytest.approx(float(other), rel=1e-4, abs=1e-6)


@pytest.mark.long
def test_figures_stand_under_their_names(call, tmp_path):
    call("accuracy", *COMMANDS["accuracy"], "--out", tmp_path / "accuracy")
    header, *points = rows(tmp_path / "accuracy" / "accuracy.csv")
    assert header == ["curve", "x", "y", "spread"]
    assert [row[0] for row in points[::3]] == ["one, noisy", "one, denoised", "two, noisy", "two, denoised"]
    assert [float(row[1]) for row in points[:3]] == [19, 10, 0] or [float(row[1]) for row in points[:3]] == [19, 9, 0]
    call("calibration", *COMMANDS["calibration"], "--out", tmp_path / "calibration")
    header, *points = rows(tmp_path / "calibration" / "integral.csv")
    assert header[:5] == ["classifier", "smoothing", "input", "temperature", "name"] and len(points) == 2 * 2 * 2 * 2
    assert points[0][:5] == ["one", "as trained", "noisy", "τ 1", "one, as trained, noisy, τ 1"]
    assert header[5:] == [f"integral calibration error{end}" for end in ("", " low", " high")]
    assert all(0 <= float(low) <= float(value) <= float(high) <= 1 for value, low, high in (row[5:] for row in points))
    about, _, *lines = (tmp_path / "calibration" / "integral.md").read_text().splitlines()
    assert about.startswith("5 images, the classes in turn, seeds 0 to 4, in 4 steps (ddpm), unguided; 15 bins.")
    assert len(lines) == 2 + 16 and lines[2].startswith("| one | as trained | noisy | τ 1 | ")
    settings = json.loads((tmp_path / "calibration" / "settings.json").read_text())
    assert settings["analysis"] == "calibration" and settings["classifiers"] == {"one": "zoo:0", "two": "zoo:1"}


@pytest.mark.long
def test_two_classifiers_in_turn(call, tmp_path):
    """At the first of the two steps, the noisier one, the first classifier is asked, then the second."""
    out = ["calibration", *TWO, "--num", "5", "--steps", "2", "--input", "noisy", "--out", tmp_path]
    assert call(*out, "--switch", "both=one,two,0.1")[0] == 0
    assert call(*out, "--switch", "one,two,0", "--switch", "one,two,1e9")[0] == 0  # the same folder: nothing is redone
    errors = {}
    for name, _, y, *_ in rows(tmp_path / "calibration.csv")[1:]:
        errors.setdefault(name, []).append(y)
    assert list(errors) == ["one", "two", "one until 0 then two", "one until 1e+09 then two"]
    assert errors["one until 0 then two"] == errors["one"] != errors["two"] == errors["one until 1e+09 then two"]
    call(*out, "--switch", "both=one,two,0.1")
    both = [row[2] for row in rows(tmp_path / "calibration.csv")[1:] if row[0] == "both"]
    assert both == [errors["one"][0], errors["two"][1]]
    assert rows(tmp_path / "integral.csv")[-1][:5] == ["both", "as trained", "noisy", "τ 1", "both"]


@pytest.mark.long
def test_whether_the_better_calibrated_guides_better(call, tmp_path):
    """FID falls as the error rises, accuracy rises with it."""
    calibration, sweep, out = (tmp_path / name for name in ("calibration", "sweep", "agree"))
    call("calibration", *COMMANDS["calibration"], "--out", calibration)
    errors = {row[4]: float(row[5]) for row in rows(calibration / "integral.csv")[1:]}
    names = sorted(errors, key=errors.get)[::3]  # six of sixteen
    values = sorted({errors[name] for name in names})
    assert len(values) == 6
    cells = [
        Row(
            name="",
            values={"case": ", ".join(reversed(name.split(", ")))},
            figures={"fid": Figure(-errors[name]), "accuracy/judge": Figure(errors[name] ** 2), "kid": Figure(1.0)},
            evaluations={"denoiser": 1, "classifier": 1},
            seconds=1.0,
            lost=(),
        )
        for name in names
    ]
    sweep.mkdir()
    write_table(sweep, cells, about="", pareto=None)
    code, said, _ = call("agree", calibration, sweep, "--out", out)
    assert code == 0 and "in the calibration alone:" in said and f"figures in {out}" in said
    files = {"settings.json", "agree.csv", "agree.md", "correlation.csv", "fid.png", "accuracy-judge.png"}
    assert {path.name for path in out.iterdir()} == files
    header, *found = rows(out / "correlation.csv")
    assert header == ["figure", "settings", *(f"rank correlation{end}" for end in ("", " low", " high")), "p"]
    assert found[0][:5] == ["accuracy/judge", "6", "1.0", "1.0", "1.0"] and found[1][:3] == ["fid", "6", "-1.0"]
    assert [float(row[5]) for row in found] == [pytest.approx(2 / 720)] * 2  # two of 6! orders
    header, *table = rows(out / "agree.csv")
    assert header[:2] == ["name", "integral calibration error"] and len(table) == 6
    assert {row[0]: float(row[1]) for row in table} == {name: errors[name] for name in names}
    assert "| fid | 6 | -1.00 [-1.00, -1.00] | 0.0028 |" in (out / "agree.md").read_text()
    report(out)
    page = (out / "report.html").read_text()
    assert "rank correlation" in page and page.count("data:image/png") == 2

    call("agree", calibration, sweep, "--figure", "fid", "--out", tmp_path / "one")
    assert [row[0] for row in rows(tmp_path / "one" / "correlation.csv")[1:]] == ["fid"]
    for changes, told in (
        (["--figure", "fids"], "unknown figure 'fids'"),
        (["--figure", "cfid"], "cfid and a calibration error, got 0"),
        (["--where", "scale"], "where must be KEY=VALUE, as in scale=5, got 'scale'"),
        (["--best", "scale"], "unknown setting that the sweep varies 'scale'"),
        (["--out", calibration], "holds an analysis with analysis 'calibration', not 'agree'"),
    ):
        code, _, err = call("agree", calibration, sweep, *changes)
        assert code == 2 and told in err and err.count("\n") == 1
    code, _, err = call("agree", sweep, calibration)
    assert code == 2 and "calibration: " in err and err.count("\n") == 1


def test_gradients_say_what_they_are_of(call, tmp_path, monkeypatch):
    titles = []
    written = "steersman.lab.report.plots.write_curves"
    monkeypatch.setattr(written, lambda path, curves, **told: titles.append(told["y"]))
    call("sensitivity", *COMMANDS["sensitivity"], "--objective", "logit", "--out", tmp_path / "logit")
    call("sensitivity", *COMMANDS["sensitivity"], "--target", "baseball", "--out", tmp_path / "baseball")
    assert titles[1] == "sensitivity of ∇ logit(own class)"
    assert titles[5] == "sensitivity of stabilised ∇ log p(baseball)"


@pytest.mark.long
def test_directions_are_written(call, tmp_path):
    code, _, _ = call("directions", "--times", "0,500", "--side", 3, "--out", tmp_path / "out")
    assert code == 0 and {path.name for path in (tmp_path / "out").iterdir()} == {
        *("directions.csv", "directions.pdf", "directions.png")
    }
    header, *points = rows(tmp_path / "out" / "directions.csv")
    assert header == ["time", "field", "x", "y", "u", "v"] and len(points) == 2 * 4 * 9


def test_stabilizers_by_name():
    assert stabilizer("none") == Identity() and stabilizer("adam") == Adam()
    assert stabilizer("ema 0.9") == Ema(beta=0.9) == stabilizer("{kind: ema, beta: 0.9}")
    assert stabilizer("adam 0.8 0.99") == Adam(beta1=0.8, beta2=0.99)
    for given, told in (
        ("emma", "unknown stabilizer 'emma'"),
        ("none 1", "got 'none 1'"),
        ("ema 2", "beta must be at least 0 and below 1, got 2"),
    ):
        with pytest.raises(InputError, match=told):
            stabilizer(given)


@pytest.mark.parametrize(
    ("command", "changes", "told"),
    [
        ("accuracy", ["--every", "2"], "times, every and count must not be given together"),
        ("accuracy", ["--input", "x1"], "unknown input 'x1'"),
        (
            "accuracy",
            ["--classifier", "one=zoo:2"],
            "classifier: each name may be given only once, as NAME=SPEC, got 'one' twice",
        ),
        ("accuracy", ["--num", "6"], "num must be 1 to 5, the number of images of the data, got 6"),
        ("accuracy", ["--data", "nowhere"], "got 'nowhere'"),
        ("accuracy", ["--batch-size", "0"], "batch-size must be at least 1, got 0"),
        ("accuracy", ["--device", "toaster"], "device must be cpu, cuda, cuda:0, … or mps, got 'toaster'"),
        ("sensitivity", ["--stabilizer", "emma"], "unknown stabilizer 'emma'"),
        ("sensitivity", ["--objective", "clas"], "unknown objective 'clas'"),
        ("sensitivity", ["--asked", "later"], "unknown time asked at 'later'"),
        ("sensitivity", ["--times", "0"], "got only the cleanest"),
        ("sensitivity", ["--times", "soon"], "times must be numbers with commas between them, got 'soon'"),
        ("sensitivity", ["--target", "cube"], "cube"),
        ("calibration", ["--class", "cube"], "unknown class of the denoiser 'cube'"),
        ("calibration", ["--temperature", "0"], "temperature must be above 0, got 0"),
        ("calibration", ["--softplus", "-1"], "softplus"),
        (
            "calibration",
            ["--switch", "one,two"],
            "switch must be [NAME=]ABOVE,BELOW,AT, two classifiers and sigma / alpha, got 'one,two'",
        ),
        ("calibration", ["--switch", "one,two,-1"], "got 'one,two,-1'"),
        ("calibration", ["--switch", "one,three,1"], "unknown classifier to switch 'three'"),
        ("calibration", ["--switch", "two=one,two,1"], "switch: 'two' is already the name of a classifier"),
        ("calibration", ["--num", "0"], "num and bins must be at least 1, got num 0 and bins 15"),
        ("calibration", ["--bins", "0"], "num and bins must be at least 1, got num 5 and bins 0"),
        ("gradients", ["--shown", "4"], "num must be at least 1 and shown 1 to num, got num 3 and shown 4"),
        ("gradients", ["--scale", "0"], "no gradient at any step"),
        ("gradients", ["--recipe", "elucd"], "unknown recipe 'elucd'"),
        ("directions", ["--target", "3"], "target must be 0 to 2, got 3"),
        ("directions", ["--times", "1000"], "times must be 0 to 999, got 1000"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(command, changes, told, call, tmp_path):
    usual = list(map(str, COMMANDS.get(command, [])))
    for option in {each for each in changes if str(each).startswith("--")} & set(usual) - {"--classifier"}:
        index = usual.index(option)
        del usual[index : index + 2]  # the changed one takes its place
    code, _, err = call(command, *usual, *changes, "--out", tmp_path / "out")
    assert code == 2 and told in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.few(2)
@pytest.mark.parametrize("command", ["accuracy", "gradients"])
def test_a_batch_that_memory_does_not_hold_is_halved(command, call, monkeypatch, tmp_path):
    four = [command, *COMMANDS[command], "--batch-size", 4, "--out"]
    assert call(*four, tmp_path / "whole")[0] == 0
    own, seen = Tiny.__call__, []

    def full(self, x_t, *args, **kwargs):
        seen.append(len(x_t))
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, x_t, *args, **kwargs)

    monkeypatch.setattr(Tiny, "__call__", full)
    code, _, error = call(*four, tmp_path / "halved")
    assert code == 0, error
    assert "the device's memory does not hold 4 images at a time: 2 are taken from now on" in error
    assert sum(size > 2 for size in seen) == 1
    for name in FILES[command]:
        if name.endswith(".csv"):
            for ours, theirs in zip(*(rows(tmp_path / each / name) for each in ("whole", "halved")), strict=True):
                for cell, other in zip(ours, theirs, strict=True):
                    assert cell == other or float(cell) == pytest.approx(float(other), rel=1e-4, abs=1e-6)


def test_a_memory_that_does_not_hold_one_image_is_one_line(call, monkeypatch, tmp_path):
    def full(self, x_t, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Tiny, "__call__", full)
    code, _, error = call("accuracy", *COMMANDS["accuracy"], "--out", tmp_path / "out")
    assert code == 2 and error.count("\n") == 1 and "use a smaller --batch-size" in error
    assert not (tmp_path / "out").exists()
