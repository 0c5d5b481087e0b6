"""The bundled reproductions, what one needs, and what is refused of a file of one's own."""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from steersman.errors import InputError
from steersman.lab.reproduce import Work, benchmark_names, load_benchmark, load_reproduction, reproduction_names
from steersman.lab.reproduce.reproduction import RATE
from steersman.recipes import recipe_names

ROOMS = {"models": Path("models"), "data": Path("data")}


def needed(name, **settings):
    wanted = load_reproduction(name)
    return Work(**{"wanted": wanted, "rooms": ROOMS, "out": Path("out"), "num": wanted.num} | settings)


@pytest.mark.parametrize("name", reproduction_names())
def test_a_bundled_one_is_whole(name):
    wanted = load_reproduction(name)
    assert wanted.recipe in recipe_names()
    work = needed(name)
    assert work.missing == list(work.paths)
    for spec in (wanted.denoiser, *wanted.classifiers, wanted.reference or "", wanted.features):
        assert "{" not in work.filled(spec)
    assert sum(run.num for run in work.runs.values()) == wanted.num
    assert work.figures == sorted(wanted.published["guided"], key=work.figures.index)
    if isinstance(wanted.targets, int):
        assert {run.num for run in work.runs.values()} == {wanted.num / wanted.targets}
        assert (wanted.num / wanted.targets) % wanted.batch_size == 0  # no batch is padded


def test_all_files_are_needed_by_one():
    content = yaml.safe_load((resources.files("steersman.lab.reproduce") / "files.yaml").read_text())
    wanted = [*map(load_reproduction, reproduction_names()), *map(load_benchmark, benchmark_names())]
    assert set(content) == {name for each in wanted for name in each.files()}


def test_what_the_papers_say():
    for name, steps, fid in (("", 18, 2.35), ("/10", 10, 3.38), ("/36", 36, 2.22), ("/250", 250, 1.33)):
        wanted = load_reproduction(f"elucd-imagenet64{name}")
        assert (wanted.load_recipe().sampling()["steps"], wanted.published["guided"]["fid"]) == (steps, fid)
    assert load_reproduction("elucd-imagenet128/resnet101").published["guided"]["fid"] == 2.19
    assert load_reproduction("nrcg-celeba").load_recipe().resolved()["preprocess"]["transform"] == "raw"


def test_heuns_method_asks_the_denoiser_twice_but_for_the_last_step():
    found, each = needed("elucd-imagenet64", num=1000), load_reproduction("elucd-imagenet64").tflop
    assert found.tflop == pytest.approx(35 * each.denoiser + 18 * each.guide)
    assert found.hours == pytest.approx(1000 * found.tflop / RATE / 3600)
    assert needed("elucd-imagenet128", steps=10, guided=False).tflop == pytest.approx(6.14)


def test_memory_and_disk():
    found = needed("nrcg-celebahq", num=1024, batch_size=4)
    assert found.memory == pytest.approx(0.43 + 4 * 2.02)
    assert found.disk == pytest.approx(1024 * 3 * 256 * 256 / 1e9)


def test_an_empty_folder_is_missing(tmp_path):
    wanted, rooms = load_reproduction("nrcg-celebahq"), {"models": tmp_path, "data": tmp_path}
    (tmp_path / "celebahq256").mkdir()
    (tmp_path / "ddpm-celebahq-256").mkdir()
    (tmp_path / "ddpm-celebahq-256" / "config.json").write_text("{}")
    found = Work(wanted=wanted, rooms=rooms, out=tmp_path / "out", num=2)
    assert found.missing == ["nrcg-celebahq", "inception", "celebahq"]


@pytest.mark.parametrize(("num", "classes"), [(7, 3), (3, 7), (6, 3), (2500, 2)])
def test_image_i_has_seed_i_and_its_share_of_the_classes(num, classes):
    wanted = load_reproduction("elucd-imagenet128").model_copy(update={"targets": classes})
    work = Work(wanted=wanted, rooms=ROOMS, out=Path("out"), num=num)
    drawn = {seed: run.targets for run in work.runs.values() for seed in range(run.seed, run.seed + run.num)}
    assert drawn == {image: (str(image * classes // num),) for image in range(num)}
    assert len(work.runs) == len({run.seed for run in work.runs.values()})


def test_few_images_have_fewer_figures():
    wanted = load_reproduction("elucd-imagenet128")
    work = {num: Work(wanted=wanted, rooms=ROOMS, out=Path("out"), num=num) for num in (2, 4)}
    assert work[2].figures == ["fid"]
    assert work[4].figures == ["fid", "precision", "recall"]


REFUSED = [
    ({"denoisr": "x"}, "unknown key of a reproduction 'denoisr'; did you mean 'denoiser'"),
    ({"denoiser": "adm:{adm-129}"}, "unknown file of files.yaml 'adm-129'; did you mean 'adm-128'"),
    ({"recipe": "elucd"}, "unknown recipe 'elucd'"),
    ({"changes": {"sampling.step": 3}}, "unknown setting of sampling"),
    ({"published": {"guided": {"fdi": 1.0}}}, "unknown figure 'fdi'"),
    ({"published": {"steered": {"fid": 1.0}}}, "published.steered"),
    ({"reference": None}, "reference must be given, as fid needs one"),
    ({"num": 0}, "num must be greater than 0, got 0"),
    ({"classifiers": []}, "classifiers"),
    ({"tflop": {"denoiser": 1.0}}, "tflop.guide is missing"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[next(iter(changes)) for changes, _ in REFUSED])
def test_what_is_wrong_in_a_file_is_said_in_a_line(changes, message, tmp_path):
    bundled = resources.files("steersman.lab.reproduce") / "tables" / "elucd-imagenet128.yaml"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(bundled.read_text()) | changes))
    with pytest.raises(InputError) as refused:
        load_reproduction(str(path))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown reproduction 'nrcg-celeb'; did you mean 'nrcg-celeba'"):
        load_reproduction("nrcg-celeb")
