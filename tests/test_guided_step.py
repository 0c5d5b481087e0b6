"""How much of the package one guided step runs: a reader follows it through few functions and files."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

import steersman
from steersman.denoise import Prediction
from steersman.recipes import load_recipe
from steersman.sampling import sample
from steersman.schedule import VP

ROOT = Path(steersman.__file__).parent


class Denoiser:
    """A tiny U-Net that predicts the denoised image."""

    schedule, shape, classes = VP.linear(), (3, 8, 8), ()

    def __init__(self):
        torch.manual_seed(0)
        blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
        self.network = UNet2DModel(sample_size=8, norm_num_groups=4, **blocks)

    def __call__(self, x_t, level, **condition):
        return Prediction(self.network(x_t, float(level.time)).sample)

    def decode(self, x0):
        return x0


def classifier(image, level=None):
    return image.mean((2, 3))


class Trace:
    """The functions and files of the package that the second step of three runs; comprehensions are their owners'."""

    def __init__(self):
        self.functions, self.files, self.update = set(), set(), None

    def note(self, frame, event, argument):
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_qualname
        if event == "call" and path.is_relative_to(ROOT) and not name.endswith(">"):
            self.functions.add((path.relative_to(ROOT).as_posix(), name))
            self.files.add(path.relative_to(ROOT).as_posix())

    def __call__(self, report):
        sys.setprofile(None)
        if report.step.index == 0:
            sys.setprofile(self.note)
        elif report.step.index == 1:
            self.update = report.updates[0]


@pytest.mark.usefixtures("unchecked")
def test_a_guided_step_runs_few_functions_of_few_files():
    recipe, trace = load_recipe("elucd-ddpm", {"sampling.steps": 3}), Trace()
    try:
        settings = {"guides": recipe.bind_prepared(classifier), "target": 1, "seeds": [0], **recipe.sampling()}
        sample(Denoiser(), recipe.sampler(), callbacks=[trace], **settings)
    finally:
        sys.setprofile(None)
    assert trace.update is not None and trace.update.value.abs().max() > 0
    assert len(trace.functions) <= 40, sorted(trace.functions)
    assert len(trace.files) <= 9, sorted(trace.files)
