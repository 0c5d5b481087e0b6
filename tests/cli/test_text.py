"""Texts as targets, and one's own classifier, on the command line; with a tiny CLIP and a tiny denoiser."""

import json

import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from PIL import Image

from steersman.lab.train.denoiser import unet

TEXT = "a photo of a ball"


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("denoiser")
    torch.manual_seed(0)
    unet(16, 0, widths=(8, 16)).save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def sample(denoiser, clip, call, monkeypatch, tmp_path):
    """Runs ``steersman sample`` with the recipe for CLIP, and returns exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, classifiers=(f"clip:{clip}",)):
        given = ["--denoiser", denoiser, "--steps", 3, "--num", 1]
        given += [] if "--recipe" in arguments else ["--recipe", "elucd-clip"]
        for each in classifiers:
            given += ["--classifier", each]
        return call("sample", *given, *arguments)

    return run


def pixels(path):
    return Image.open(path).tobytes()


@pytest.mark.long
def test_a_text_is_a_target(sample, tmp_path):
    code, out, err = sample("--target", TEXT)
    assert (code, err) == (0, "")
    folder = tmp_path / "outputs" / "a-photo-of-a-ball"
    assert "guide's similarity" in out and "guide sees it" not in out
    metrics = json.loads((folder / "metrics.json").read_text())
    # one text alone is not told from others, and the judge, of balls, does not know it
    assert metrics["accuracy"] == metrics["probability"] == {"guide": None, "judge": None}
    assert -1 <= metrics["similarity"]["guide"] <= 1 and metrics["similarity"]["judge"] is None
    record = yaml.safe_load((folder / "run.yaml").read_text())
    assert record["targets"] == [TEXT]
    sample("--target", TEXT, "--no-guidance", "--out", "plain")
    assert pixels(folder / "000000.png") != pixels(tmp_path / "plain" / "000000.png")


@pytest.mark.long
def test_guidance_raises_the_similarity(sample, tmp_path):
    similarity = {}
    for scale in (-100, 0, 100):
        sample("--target", TEXT, "--num", 2, "--steps", 20, "--scale", scale, "--out", str(scale))
        metrics = json.loads((tmp_path / str(scale) / "metrics.json").read_text())
        similarity[scale] = metrics["similarity"]["guide"]
    assert similarity[-100] < similarity[0] < similarity[100]


@pytest.mark.long
def test_a_recorded_text_repeats_to_the_pixel(sample, call, tmp_path):
    sample("--target", TEXT, "--out", "a")
    call("sample", "--from", "a/run.yaml", "--out", "b")
    assert pixels(tmp_path / "a" / "000000.png") == pixels(tmp_path / "b" / "000000.png")


@pytest.mark.long
def test_several_texts_are_told_from_each_other_and_have_a_folder_each(sample, tmp_path):
    wild = "../a: b"
    code, out, err = sample(
        "--target", TEXT, "--target", "a, b", "--target", wild, "--out", "out", "--set", "objective=class"
    )
    assert (code, err) == (0, "")
    assert "guide sees it" in out and "judge sees it" not in out
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert {TEXT, "a, b"} < folders and len(folders) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["targets"]) == {TEXT, "a, b", wild}
    assert metrics["probability"]["guide"] is not None


@pytest.mark.long
def test_texts_are_blended(sample, tmp_path):
    code, _, err = sample("--blend", "a ball=1", "--blend", "blur=-0.5", "--out", "out")
    assert (code, err) == (0, "")
    code, _, _ = sample("--blend", "a ball=1", "--out", "ball")
    assert pixels(tmp_path / "out" / "000000.png") != pixels(tmp_path / "ball" / "000000.png")


@pytest.mark.long
def test_a_text_for_several_classifiers(sample, clip, tmp_path):
    code, _, err = sample("--target", "baseball, red", "--out", "out", classifiers=(f"clip:{clip}", f"clip:{clip}"))
    assert (code, err) == (0, "")
    code, _, err = sample(
        "--target", "baseball", "--out", "mixed", classifiers=("zoo:sportballs-mobilenet", f"clip:{clip}")
    )
    assert (code, err) == (0, "")
    code, _, err = sample("--target", TEXT, "--out", "no", classifiers=(f"clip:{clip}", "zoo:sportballs-mobilenet"))
    assert (code, err.count("\n")) == (2, 1) and f"unknown class '{TEXT}'" in err


def test_a_classifier_of_texts_judges_too(sample, clip_folder, tmp_path):
    judge = f"clip:{clip_folder()}"
    sample("--target", "baseball", "--judge", judge, "--out", "out", classifiers=("zoo:sportballs-mobilenet",))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["similarity"]["guide"] is None and metrics["similarity"]["judge"] is not None
    assert metrics["accuracy"]["guide"] is not None and metrics["accuracy"]["judge"] is None


BAD = [
    (
        ["--target", TEXT, "--set", "objective=class"],
        "objective class needs two classes or more, got one, whose probability is always 1",
    ),
    (
        ["--target", TEXT, "--set", "objective=binary"],
        "objective binary needs a classifier with one logit for two classes",
    ),
    (["--target", " "], "target must not be an empty text"),
    (["--target", " ".join(30 * "a")], "target must have at most 16 tokens, with start and end, got 32"),
    (["--target", "all"], "target cannot be all, as neither denoiser nor guide has classes"),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, message, sample, tmp_path):
    code, _, err = sample(*arguments)
    assert message in err
    assert (code, err.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.few(9)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "elucd-ddpm"], "a classifier of texts has no ReLU for softplus 3 to replace"),
        (["--set", "preprocess={transform: raw, size: 4}"], "does not take images of 4 pixels"),
    ],
)
def test_what_a_recipe_asks_for_and_towers_cannot_do_is_said(arguments, said, sample):
    code, _, err = sample("--target", TEXT, *arguments)
    assert (code, err.count("\n")) == (0, 1)
    assert said in err


@pytest.mark.long
def test_ones_own_classifier_guides(sample, tmp_path):
    (tmp_path / "own_guide.py").write_text(
        "import torch\n"
        "class Dark(torch.nn.Module):\n"
        "    names = ['dark', 'light']\n"
        "    def forward(self, x):\n"
        "        return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)\n"
    )
    means = {}
    for target in ("dark", "light"):
        arguments = ("--target", target, "--steps", 20, "--scale", 1000, "--out", target)
        code, _, err = sample(*arguments, classifiers=("module:own_guide:Dark",))
        assert (code, err) == (0, "")
        means[target] = sum(pixels(tmp_path / target / "000000.png"))
    assert means["dark"] < means["light"]
