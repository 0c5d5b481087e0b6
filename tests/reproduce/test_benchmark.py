"""Benchmarks: the bundled ones, the choice of a scale, and a small one from its first image to its tables."""

import csv
import shutil
from importlib import resources

import pytest
import torch

from steersman.errors import InputError
from steersman.files import write_image
from steersman.lab.metrics.intervals import Figure
from steersman.lab.reproduce import Benchmarking, benchmark_names, load_benchmark
from steersman.lab.reproduce.benchmark import Method, choose
from steersman.lab.sweep import Row

ZOO = resources.files("steersman.models.zoo")


@pytest.mark.parametrize("name", benchmark_names())
def test_a_bundled_one_is_whole(name, tmp_path):
    wanted = load_benchmark(name)
    work = Benchmarking(wanted=wanted, rooms={"models": tmp_path, "data": tmp_path}, out=tmp_path / "out")
    assert all("{" not in work.filled(spec) for spec in wanted.specs)
    assert work.missing == list(work.paths)
    assert {"unguided", "dps", "tfg", "ours"} <= set(work.compared)
    assert set(wanted.published) <= set(wanted.methods)


def test_what_the_paper_says():
    published = load_benchmark("tfg-cifar10").published
    assert published["tfg-4"] == {"accuracy/judge": 0.771, "cfid": 74}
    methods = load_benchmark("tfg-cifar10").methods
    assert {name: method.load().sampling()["steps"] for name, method in methods.items() if name in ("tfg", "nrcg")} == {
        "tfg": 50,
        "nrcg": 400,
    }


def row(name, accuracy, cfid):
    figures = {"accuracy/judge": Figure(accuracy), "cfid": Figure(cfid)}
    return Row(name=name, values={"case": name}, figures=figures, evaluations={}, seconds=0.0, lost=())


def test_a_scale_is_chosen_by_accuracy_and_distance_together():
    unguided = row("unguided", 0.1, 50.0)
    weak, good, burnt = row("weak", 0.4, 40.0), row("good", 0.8, 30.0), row("burnt", 1.0, 120.0)
    assert choose([weak, good, burnt], unguided) is good
    assert choose([weak, row("lost", None, None)], unguided) is weak
    with pytest.raises(InputError, match="the unguided images must have a cFID above 0, got None"):
        choose([weak], row("unguided", 0.1, None))


def test_the_scales_of_all_guides_are_searched_in_proportion():
    values = Method(recipe="tfg").values()
    assert values[0] == {"scale": 0.1, "extra_guides.0.scale": 0.025}
    assert values[-1] == {"scale": 10.0, "extra_guides.0.scale": 2.5}
    assert Method(guided=False).values() == []
    assert Method(search={"particles.temperature": [0.1, 1.0]}).values() == [
        {"particles.temperature": 0.1},
        {"particles.temperature": 1.0},
    ]


@pytest.fixture
def small(tmp_path):
    """A benchmark of two digits, with noise for real images."""
    generator = torch.Generator().manual_seed(0)
    for label in ("0 - zero", "1 - one"):
        for index in range(6):
            image = torch.rand(3, 28, 28, generator=generator) * 2 - 1
            (tmp_path / "real" / label).mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / "real" / label / f"{index}.png", image)
    judge = tmp_path / "judge"
    judge.mkdir()
    for suffix, name in (("json", "card.json"), ("safetensors", "model.safetensors")):
        shutil.copy(ZOO / f"mnist-lenet.{suffix}", judge / name)
    wanted = load_benchmark("mnist").model_copy(
        update={
            "targets": ("0", "1"),
            "judges": (str(judge), str(judge)),
            "features": "zoo:mnist-lenet",
            "reference": str(tmp_path / "real"),
            "evaluations": 7.0,
        }
    )
    settings = {"rooms": {}, "num": 2, "searched": 2, "methods": ("mpgd",), "resamples": 0}
    return Benchmarking(wanted=wanted, out=tmp_path / "out", **settings)


def test_steps_are_as_many_as_the_evaluations_allow(small):
    small._keep_reference()
    assert small._steps("unguided", "equal") == 7  # one evaluation of the denoiser each
    assert small._steps("mpgd", "equal") == 3  # and one of the classifier
    assert small._steps("mpgd", "own") == 50


@pytest.mark.parametrize(("name", "count"), [("unguided", 1), ("mpgd", 5), ("fk-steering", 5)])
def test_a_method_has_a_cell_for_each_value_and_no_other(small, name, count):
    small._keep_reference()
    cells = small._sweep(small._cases(name, 3)).cells()
    assert len(cells) == count
    assert all(cell.run.guided == (name != "unguided") for cell in cells)


def test_a_method_that_it_does_not_have_is_refused(small, tmp_path):
    with pytest.raises(InputError, match="unknown method 'mpdg'; did you mean 'mpgd'"):
        Benchmarking(wanted=small.wanted, rooms={}, out=tmp_path, methods=("mpdg",))


@pytest.mark.long
def test_a_small_one_from_the_first_image_to_the_tables(small):
    found = small.run()
    assert {side: [row.values["case"].partition(",")[0] for row in rows] for side, rows in found.items()} == {
        "own": ["unguided", "mpgd"],
        "equal": ["unguided", "mpgd"],
    }
    assert [row.cost for row in found["equal"]] == [7, 6]
    with (small.out / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["cost"], row["method"]) for row in rows] == [
        ("own steps", "unguided"),
        ("own steps", "mpgd"),
        ("equal evaluations", "unguided"),
        ("equal evaluations", "mpgd"),
    ]
    assert rows[1]["chosen"].startswith("scale ")
    assert all(float(row["cfid"]) > 0 and row["diversity"] for row in rows)
    assert {path.name for path in small.out.glob("*.*")} == {
        "benchmark.csv",
        "benchmark.md",
        "equal.png",
        "own.png",
        "reference.npz",
    }
    drawn = {path: path.stat().st_mtime_ns for path in small.out.rglob("[0-9]*.png")}
    small.run()  # nothing is drawn again
    assert len(drawn) == 4 * (1 + 1 + 5 + 1) * 2
    assert all(path.stat().st_mtime_ns == time for path, time in drawn.items())
