"""Targets of one's own and sets of classes, through `sample`, `steer` and whole commands."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

import steersman as sm
from steersman.lab.run import read_run

FEW = {"steps": 3, "progress": False}


@dataclass(frozen=True)
class Resembles:
    """Minus the squared distance from a reference image."""

    sharpness: float = 1.0

    def encode_target(self, target):
        return torch.from_numpy(np.asarray(target.convert("L"), np.float32) / 127.5 - 1)[None]

    def __call__(self, image, target, level):
        return -self.sharpness * (image - target).square().flatten(1).sum(1)


@pytest.fixture
def recipe():
    sm.register("objective", "resembles")(Resembles)
    return sm.load_recipe(
        "default",
        {"objective": {"kind": "resembles", "sharpness": 4.0}, "weight": "constant", "injection": "denoised"}
        | {"scale": 0.05, "smoothing": "none", "particles": 1, "recurrence": 1},
    )


def test_each_target_is_encoded_once(recipe, monkeypatch):
    encoded = []
    own = Resembles.encode_target
    monkeypatch.setattr(Resembles, "encode_target", lambda self, target: encoded.append(target) or own(self, target))
    targets = [grey(0), grey(255), grey(128)]
    sm.sample("zoo:mnist", target=targets, recipe=recipe, seeds=3, batch_size=1, steps=1, progress=False)
    assert encoded == targets


def grey(value, side=28):
    return Image.new("L", (side, side), value)


def distance(images, values):
    return (images - torch.tensor(values).reshape(-1, 1, 1, 1)).square().flatten(1).mean(1)


def test_reference_images_are_targets_each_images_own(recipe):
    settings = {"recipe": recipe, "seeds": 3, **FEW}
    both = sm.sample("zoo:mnist", target=[grey(0), grey(255), grey(255)], **settings).tensor
    plain = sm.sample("zoo:mnist", seeds=3, **FEW).tensor
    assert (distance(both, [-1.0, 1.0, 1.0]) < distance(plain, [-1.0, 1.0, 1.0])).all()
    parts = sm.sample("zoo:mnist", target=[grey(0), grey(255), grey(255)], batch_size=2, **settings).tensor
    torch.testing.assert_close(parts, both, rtol=0, atol=1e-4)
    alone = sm.sample("zoo:mnist", target=grey(255), **{**settings, "seeds": [2]}).tensor
    torch.testing.assert_close(alone, both[2:], rtol=0, atol=1e-4)


def test_particles_take_rows_of_reference_images(recipe):
    recipe = recipe.changed({"particles": {"count": 4, "temperature": 0.01}, "scale": 0})
    found = sm.sample("zoo:mnist", target=[grey(0), grey(255)], recipe=recipe, seeds=2, **FEW).tensor
    swapped = sm.sample("zoo:mnist", target=[grey(255), grey(0)], recipe=recipe, seeds=2, **FEW).tensor
    assert (distance(found, [-1.0, 1.0]) <= distance(swapped, [-1.0, 1.0])).all()
    assert not torch.equal(found, swapped)


def test_a_pipeline_steered_to_reference_images(recipe):
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    torch.manual_seed(0)
    network = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4, **blocks)
    pipe = DDPMPipeline(network, DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)

    def draw():
        images = pipe(batch_size=2, num_inference_steps=4, generator=torch.Generator().manual_seed(1)).images
        return torch.stack([torch.from_numpy(np.asarray(image.convert("L"), np.float32)) for image in images])[:, None]

    plain = draw() / 127.5 - 1
    with sm.steer(pipe, target=[grey(0, 8), grey(255, 8)], recipe=recipe):
        steered = draw() / 127.5 - 1
    assert (distance(steered, [-1.0, 1.0]) < distance(plain, [-1.0, 1.0])).all()
    with pytest.raises(sm.InputError, match="one for each of 2 images, got 3"):
        with sm.steer(pipe, target=[grey(0, 8)] * 3, recipe=recipe):
            draw()


def test_a_recipe_whose_objective_has_a_classifier_needs_one():
    with pytest.raises(sm.InputError, match="classifier must be given, as the recipe's objective needs one"):
        sm.load_recipe("nrcg").bind()


def test_a_batch_mixes_classes_and_sets():
    settings = {"classifier": "zoo:mnist-lenet", "recipe": "nrcg", **FEW}
    both = sm.sample("zoo:mnist", target=["7", "1|4", {2, 3}], seeds=3, **settings).tensor
    for seed, target in enumerate([7, {"4", "1"}, "2|3"]):
        alone = sm.sample("zoo:mnist", target=target, seeds=[seed], **settings).tensor
        torch.testing.assert_close(alone, both[seed : seed + 1], rtol=0, atol=1e-4)
    whole = [sm.sample("zoo:mnist", target=target, seeds=1, **settings).tensor for target in ("1", "1|4", "4")]
    assert not torch.equal(whole[0], whole[1]) and not torch.equal(whole[1], whole[2])


ARGUMENTS = ["--steps", 2, "--num", 2, "--recipe", "nrcg", "--classifier", "zoo:sportballs-mobilenet"]


def test_a_union_on_the_command_line(call, denoiser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    targets = ["--target", "baseball|volleyball", "--target", "soccer ball"]
    networks = ["--denoiser", denoiser, "--judge", "zoo:sportballs-judge"]
    code, out, err = call("sample", *ARGUMENTS, *targets, *networks, "--out", "both")
    assert (code, err) == (0, "")
    assert "baseball|volleyball" in out
    record = yaml.safe_load((tmp_path / "both" / "run.yaml").read_text())
    assert record["targets"] == ["baseball|volleyball", "soccer ball"]
    assert record["drawn"]["targets"] == record["targets"]
    assert record["drawn"]["classes"] == {"baseball|volleyball": "0 2"}
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert list(metrics["targets"]) == record["targets"]
    assert read_run(tmp_path / "both" / "run.yaml").targets == ("baseball|volleyball", "soccer ball")
    code, _, err = call("sample", "--from", "both/run.yaml", "--out", "again")
    assert (code, err) == (0, "")
    for file in (tmp_path / "both").rglob("0*.png"):
        again = tmp_path / "again" / file.relative_to(tmp_path / "both")
        assert Image.open(file).tobytes() == Image.open(again).tobytes()
    guide = ["--guide", "zoo:sportballs-mobilenet", "--reference", "sportballs?num=40&seed=5&resolution=16"]
    code, out, err = call(
        "evaluate", "both", *guide, "--figures", "accuracy/guide,accuracy/judge,cfid", "--resamples", 4
    )
    assert (code, err) == (0, "")
    figures = json.loads((tmp_path / "both" / "evaluation.json").read_text())["figures"]
    assert figures["accuracy/guide"]["value"] == pytest.approx(metrics["accuracy"]["guide"])
    assert figures["accuracy/judge"]["value"] == pytest.approx(metrics["accuracy"]["judge"])
    assert figures["cfid"]["value"] > 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ball", "target must leave out a class, got 'ball', which is every class there is"),
        ("baseball|dog", "unknown class 'dog'"),
        ("game", "class 'game' is ambiguous, as WordNet has 2 meanings of it"),
    ],
)
def test_what_no_target_can_be_is_one_line(target, message, call, denoiser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("sample", *ARGUMENTS, "--denoiser", denoiser, "--target", target)
    assert code == 2
    assert message in err.replace("\n", " ")
    assert not list(tmp_path.iterdir())
