"""The command on an accelerator: images and records as on a CPU, and no step of a batch waits."""

import json

import numpy as np
import pytest
from PIL import Image

from accelerator import Steps
from steersman.lab.generate import open_session
from steersman.lab.report import Frames
from steersman.lab.run import Run


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("recipe", [pytest.param("default", marks=pytest.mark.long), "fk-steering"])
def test_a_run_is_drawn_judged_and_shown(recipe, denoiser, call, accelerator, tmp_path):
    for device in ("cpu", "cuda"):
        settings = ["--recipe", recipe, "--steps", 3, "--num", 2, "--batch-size", 2, "--dtype", "float32"]
        settings += ["--classifier", "zoo:sportballs-mobilenet", "--device"]
        out = tmp_path / device
        code, _, said = call("sample", "--denoiser", denoiser, "--target", "baseball", *settings, device, "--out", out)
        assert code == 0, said
    images, metrics = [], []
    for device in ("cpu", "cuda"):
        images.append(np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / device).glob("0*.png"))]))
        metrics.append(json.loads((tmp_path / device / "metrics.json").read_text()))
    assert images[0].shape == (2, 16, 16, 3)
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"]
    assert accelerator.doubles == []


@pytest.mark.long
def test_callbacks_wait_for_nothing(denoiser, accelerator, tmp_path):
    guide = ("zoo:sportballs-mobilenet",)
    session = open_session(
        Run(denoiser=denoiser, classifiers=guide, targets=("baseball",), device="cuda:0", batch_size=2)
    )
    frames, steps = Frames(count=2, decode=session.denoiser.decode), Steps(accelerator)
    session.samples([(session.targets[0], seed) for seed in (0, 1)], [frames, steps], steps=3)
    assert steps.waits == [] and len(frames.images) == len(steps.marks)
    frames.write(tmp_path / "walk.gif")
    assert Image.open(tmp_path / "walk.gif").n_frames == len(steps.marks)
