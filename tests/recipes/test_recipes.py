"""Every recipe and variant loads, explains itself, and runs on a model of the format that it is for."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import nn

from steersman.lab.train.denoiser import unet
from steersman.models.classifiers import RAW, Classifier
from steersman.models.denoisers import EDMDenoiser, load_denoiser
from steersman.recipes import load_recipe, recipe_names
from steersman.sampling import sample

NAMES = ("a", "b", "c")
NAME = {"ids": lambda name: name.replace("/", "-")}


class Convolutions(nn.Module):
    """A classifier of images of any size, told the level or not."""

    def __init__(self, count):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, count)
        )

    def forward(self, x, time=None):
        logits = self.layers(x)
        return logits if time is None else logits + 1e-3 * time[:, None] * logits


def classifier(*, binary=False, noise_aware=False, beta=None):
    torch.manual_seed(1)
    names = NAMES[:2] if binary else NAMES
    made = Classifier(
        Convolutions(1 if binary else 3), preprocess=RAW, names=names, binary=binary, noise_aware=noise_aware
    )
    return made if beta is None else made.smooth(beta)


def saved(folder, **parts):
    """A denoiser from a folder of parts as diffusers saves them."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return load_denoiser(str(folder))


def pixels(folder):
    torch.manual_seed(0)
    return saved(folder, unet=unet(8, 0, widths=(8, 16)), scheduler=DDPMScheduler(prediction_type="v_prediction"))


def adm(folder):
    """With labels and a learned variance."""
    torch.manual_seed(0)
    network = UNet2DModel.from_config({**unet(8, 3, widths=(8, 16)).config, "out_channels": 6})
    scheduler = DDPMScheduler(variance_type="learned_range")
    folder.mkdir(exist_ok=True)
    (folder / "card.json").write_text(json.dumps({"classes": NAMES}))
    return saved(folder, unet=network, scheduler=scheduler)


def flow(folder):
    torch.manual_seed(0)
    return saved(folder, unet=unet(8, 0, widths=(8, 16)), scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0))


def dit(folder):
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=3,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=8,
    )
    return saved(folder, transformer=network, vae=vae, scheduler=DDIMScheduler())


def edm(folder):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, noise):
            return SimpleNamespace(sample=self.layer(x))

    torch.manual_seed(0)
    return EDMDenoiser(Network(), shape=(3, 8, 8))


LABELLED = {"label": torch.tensor([2, 0])}
FORMATS = {
    "adm-cg": (adm, LABELLED),
    "elucd-ddpm": (adm, LABELLED),
    "elucd-dit": (dit, {**LABELLED, "cfg_scale": 1.5}),
    "elucd-edm": (edm, {}),
    "flow": (flow, {}),
}
"""Recipe to the model that it is for, and what that is told beside the image; all others are for pixels alone."""
TOLD = ("adm-cg",)
"""Recipes for classifiers that are told the level."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The model of a format, made once: ``model(flow)``."""
    made = {}

    def of(build):
        if build not in made:
            made[build] = build(tmp_path_factory.mktemp(build.__name__))
        return made[build]

    return of


def two_steps(name, build, condition, model):
    recipe = load_recipe(name, ["sampling.steps=2"])
    settings = recipe.classifier_settings()
    binary = recipe.resolved()["objective"]["kind"] == "binary"
    guide = classifier(binary=binary, noise_aware=name.split("/")[0] in TOLD, beta=settings["softplus"])
    reports = []
    given = {
        "target": [1, 0],
        "seeds": [5, 6],
        "condition": condition,
        "callbacks": [reports.append],
        **recipe.sampling(),
    }
    guides = recipe.bind_prepared(guide)
    x = sample(model(build), recipe.sampler(), guides=guides, **given)
    return x, reports, guides


@pytest.mark.few(8)
@pytest.mark.parametrize("name", recipe_names(), **NAME)
def test_runs_two_steps_on_a_model_of_its_own_format(name, model):
    build, condition = FORMATS.get(name.split("/")[0], (pixels, {}))
    x, reports, guides = two_steps(name, build, condition, model)
    denoiser = model(build)
    assert x.shape == (2, *denoiser.shape)
    assert x.isfinite().all()
    assert denoiser.decode(x).shape == (2, 3, 8, 8)
    assert len({report.step.index for report in reports}) == 2
    updates = [update for report in reports for update in report.updates if update is not None]
    acted = any(guide.active(report.step) for guide in guides for report in reports)
    assert all(update.finite.all() for update in updates)
    assert any(update.value.abs().max() > 0 for update in updates) == acted


@pytest.mark.parametrize("name", [each for each in recipe_names() if each.startswith("flow")], **NAME)
def test_flow_guides_a_variance_preserving_model_as_well(name, model):
    x, *_ = two_steps(name, pixels, {}, model)
    assert x.isfinite().all()


@pytest.mark.few(4)
@pytest.mark.parametrize("name", recipe_names(), **NAME)
@pytest.mark.usefixtures("unchecked")  # the context that typer passes is not the class that it has one annotate
def test_explains_itself(name, call, monkeypatch):
    recipe = load_recipe(name)
    monkeypatch.setenv("COLUMNS", "2000")
    _, said, _ = call("recipes", "show", name)
    assert said.startswith(f"{name}: {recipe.title}")
    assert f"paper: {recipe.paper.strip()}" in said if recipe.paper else "Ours" in said
    assert recipe.paper or recipe.notes  # our own say why
    assert f"notes: {recipe.notes.strip()}" in said if recipe.notes else True
    for figure in recipe.expected:
        assert figure in said


def test_the_formats_are_of_recipes_that_there_are():
    assert {*FORMATS, *TOLD} <= set(recipe_names(variants=False))
