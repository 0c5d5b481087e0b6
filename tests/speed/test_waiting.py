"""A step never waits for an accelerator: shown on the device ``meta``, of whose tensors no value can be read."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from steersman.lab.train.denoiser import unet
from steersman.models.classifiers import Classifier, Preprocess
from steersman.models.denoisers import DiffusersDenoiser
from steersman.recipes import load_recipe
from steersman.sampling import sample
from steersman.schedule import VP

RECIPES = (
    "default",
    "nrcg",
    "nrcg/celeba",
    "elucd-ddpm",
    "elucd-edm",
    "elucd-dit",
    "tfg",
    "dsg",
    "universal",
    "polyak",
    "interval",
)


class Copies(TorchDispatchMode):
    """Counts what is copied from the host to the device."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        if operation.name().startswith("aten::_to_copy") and output.is_meta and not args[0].is_meta:
            self.count += 1
        return output


def walk(name, steps):
    """Walks without candidates, whose weights are kept on the host, and returns how many copies went to the device."""
    recipe = load_recipe(name, [f"sampling.steps={steps}", "particles=1"])
    binary = "binary" in str(recipe.resolved()["objective"])
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1 if binary else 4)
    )
    names = ("no", "yes") if binary else tuple("abcd")
    classifier = Classifier(
        network, preprocess=Preprocess(mean=(0.4,), std=(0.3,), size=24), names=names, binary=binary
    )
    denoiser = DiffusersDenoiser(
        nn.Module.to(unet(16, 4, widths=(8, 16)), "meta"), schedule=VP.linear(), classes=tuple("abcd")
    )
    with Copies() as copies:
        sample(
            denoiser,
            recipe.sampler(),
            guides=recipe.bind_prepared(classifier.to("meta")),
            target=[0, 1],
            seeds=[0, 1],
            device="meta",
            condition={"label": torch.tensor([0, 1], device="meta"), "cfg_scale": 2.0},
            **recipe.sampling(),
        )
    return copies.count


@pytest.mark.few(12)
@pytest.mark.parametrize("name", RECIPES)
def test_no_step_reads_a_value_from_the_device(name):
    walk(name, 3)


@pytest.mark.long
def test_a_step_copies_its_noise_to_the_device_and_nothing_else():
    walk("nrcg", 2)
    assert walk("nrcg", 7) - walk("nrcg", 6) == 1
