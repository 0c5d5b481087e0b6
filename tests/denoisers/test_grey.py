"""A denoiser of one channel, from its folder to the evaluation of its images."""

import json
import sys

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from steersman.lab.data.images import read_images
from steersman.lab.train.denoiser import unet

GREY_GUIDE = """
import torch
from steersman.models.classifiers import Classifier, Preprocess

class Light(torch.nn.Module):
    def forward(self, image):
        light = 10 * image.mean((1, 2, 3))
        return torch.stack([-light, light], 1)

def make():
    return Classifier(Light(), preprocess=Preprocess(channels="grey"), names=["dark", "light"])

def judge():
    return make()
"""


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    torch.manual_seed(0)
    unet(28, 0, widths=(8, 16), channels=1).save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("format", ["png", "npz"])
def test_images_of_one_channel_are_drawn_judged_and_evaluated(format, grey, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_grey.py").write_text(GREY_GUIDE)
    own = ["--classifier", "module:own_grey:make", "--judge", "module:own_grey:judge", "--target", "light"]
    walk = ["--num", 2, "--steps", 3, "--set", "smoothing=none", "--format", format, "--gif"]
    code, _, said = call("sample", "--denoiser", grey, *own, *walk, "--out", "out")
    sys.modules.pop("own_grey", None)
    assert code == 0, said
    with Image.open(tmp_path / "out" / "grid.png") as sheet:
        assert sheet.mode == "RGB"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["accuracy"]["judge"] is not None
    images = read_images("out")
    (pixels,) = images.pixels()
    assert pixels.shape == (2, 3, 28, 28) and (pixels[:, :1] == pixels).all()
    if format == "png":
        with Image.open(tmp_path / "out" / "000000.png") as image:
            assert image.mode == "L" and image.size == (28, 28)
            assert np.array_equal(np.array(image), pixels[0, 0].numpy())
