"""``steersman reproduce``: tiny models in the real formats, end to end; what is missing; what is listed."""

import json
import sys
from importlib import resources

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torchvision import models

from denoisers.adm_reference import Reference
from metrics.written import write
from steersman.lab.data.images import read_images

FEATURES = """
from torch import nn
def network():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
"""

# What the scripts of guided-diffusion train with, stated since the tiny file is none of the released ones.
TRAINED = {"diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False, "rescale_timesteps": False}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "coarse.py").write_text(FEATURES)
    monkeypatch.delitem(sys.modules, "coarse", raising=False)


def rewritten(tmp_path, name, **changes):
    """Writes a bundled reproduction with what the tiny models need told, and features that are soon computed."""
    bundled = yaml.safe_load((resources.files("steersman.lab.reproduce") / "tables" / f"{name}.yaml").read_text())
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(bundled | {"features": "module:coarse:network"} | changes))
    return path


def pixels(count, side, seed=0):
    return np.random.default_rng(seed).integers(256, size=(count, side, side, 3), dtype=np.uint8)


def wrapped_mobilenet(path):
    torch.manual_seed(0)
    state = models.mobilenet_v3_small(num_classes=1).state_dict()
    path.parent.mkdir(parents=True)
    save_file({f"classifier.{key}": each for key, each in state.items()}, path)


@pytest.mark.long
def test_a_class_conditional_adm(call, tmp_path):
    """Table 7's: each image's label is its target, its reference is ADM's batch with statistics beside it."""
    reference = Reference(multipliers=(1,), attended=(), heads=4, labels=1000)
    (tmp_path / "models").mkdir()
    (tmp_path / "data").mkdir()
    torch.save(reference.tensors, tmp_path / "models" / "128x128_diffusion.pt")
    np.savez(tmp_path / "data" / "VIRTUAL_imagenet128_labeled.npz", arr_0=pixels(8, 8), mu=np.zeros(2), sigma=np.eye(2))
    torch.manual_seed(0)
    torch.save(models.resnet50().state_dict(), tmp_path / "models" / "resnet50-11ad3fa6.pth")
    path = rewritten(tmp_path, "elucd-imagenet128", denoiser=f"adm:{{adm-128}}?{reference.settings(**TRAINED)}")
    asked = ("reproduce", path, "--num", 4, "--steps", 2, "--resamples", 2, "--out", "o", "--run")
    code, out, err = call(*asked, "--trust", "module:coarse:network")
    assert (code, err) == (0, "")
    assert "missing" not in out
    record = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert set(record["figures"]) == {"fid", "precision", "recall"}
    assert record["published"]["guided"]["fid"] == 2.36
    parts = sorted((tmp_path / "o" / "samples").iterdir())
    runs = [yaml.safe_load((part / "run.yaml").read_text()) for part in parts]
    assert [run["targets"] for run in runs] == [["0"], ["250"], ["500"], ["750"]]
    assert {run["label"] for run in runs} == {"target"}
    assert {run["recipe"]["settings"]["sampling"]["steps"] for run in runs} == {2}
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("fid", "precision", "recall"))] == [
        *("fid", "precision", "recall")
    ]
    assert "2.36" in out


@pytest.mark.long
def test_a_folder_of_the_hub_with_nrcgs_classifier(call, tmp_path):
    """Table 3's, laid out as the hub has it; one that was killed draws what is missing, and nothing else again."""
    from diffusers import DDPMScheduler, UNet2DModel

    room = tmp_path / "models"
    place = room / "ddpm-celebahq-256"
    torch.manual_seed(0)
    UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(place)
    DDPMScheduler().save_pretrained(place)
    (place / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]})
    )
    wrapped_mobilenet(room / "nrCG" / "pretrained_models" / "celebahq" / "summer-snowflake-110.safetensors")
    for label in "01":
        write(tmp_path / "data" / "celebahq256" / label, pixels(4, 8, int(label)))
    path = rewritten(tmp_path, "nrcg-celebahq")
    asked = ("reproduce", path, "--num", 4, "--steps", 2, "--resamples", 4, "--out", "o")
    asked += ("--trust", "module:coarse:network")
    code, out, err = call(*asked)
    assert code == 0
    assert [line for line in err.splitlines() if "the classifier is binary" not in line] == []
    record = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert set(record["figures"]) == {"accuracy/guide", "fid", "cfid"}
    assert all(figure["value"] is not None for figure in record["figures"].values())
    assert "42.2" in out
    assert "99.0%" in out
    images = {file: file.read_bytes() for file in sorted((tmp_path / "o" / "samples").glob("*/0*.png"))}
    drawn = read_images(tmp_path / "o" / "samples" / "000000").read(range(4))
    assert [file.name for file in images] == ["000000.png", "000001.png", "000002.png", "000003.png"]
    (folder,) = (tmp_path / "o" / "samples").iterdir()
    (folder / "metrics.json").unlink()
    (folder / "000003.png").unlink()
    assert call(*asked)[0] == 0
    again = {file: file.read_bytes() for file in images}
    assert [file.name for file in images if again[file] != images[file]] == ["000003.png"]  # whose seconds are others
    assert (read_images(folder).read(range(4)) == drawn).all()
    code, _, err = call(*asked, "--no-guidance")
    assert code == 2
    assert "holds a run with other settings" in err


def test_what_is_missing_is_told_and_with_run_refused(call, tmp_path):
    code, out, err = call("reproduce", "nrcg-celeba", "--data", "sets")
    assert (code, err) == (0, "")
    assert "git clone https://github.com/philippvaeth/nrCG" in out
    assert "the others into sets/celeba64/1" in out
    assert "50,176 images of 400 steps" in out
    code, _, err = call("reproduce", "nrcg-celeba", "--run")
    assert (code, err.count("\n")) == (2, 1)
    assert "lacks models/nrCG/pretrained_models/celeba, models/weights-inception" in err
    assert not (tmp_path / "outputs").exists()


def test_all_are_listed(call):
    code, out, _ = call("reproduce")
    assert code == 0
    for name in ("elucd-imagenet64/250", "elucd-imagenet256", "elucd-clip", "nrcg-sportballs"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nrcg"], "unknown reproduction 'nrcg'; did you mean 'nrcg-celeba'"),
        (["nrcg-celeba", "--num", "1"], "num must be at least 2, got 1"),
        (["nrcg-celeba", "--steps", "0"], "sampling.steps"),
        (["elucd-clip/original-schedule", "--no-guidance"], "has no unguided images"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line(arguments, message, call):
    code, _, err = call("reproduce", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
