"""A diffusers scheduler by its name, from the command line: recorded in full, and the same when it is repeated."""

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from PIL import Image

from steersman.lab.train.denoiser import unet


@pytest.fixture
def command(tmp_path, call):
    """Runs ``steersman sample`` with a small U-Net of random weights; returns the exit code and what was complained."""
    torch.manual_seed(0)
    unet(16, 0, widths=(8, 16)).save_pretrained(tmp_path / "denoiser" / "unet")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    scheduler.save_pretrained(tmp_path / "denoiser" / "scheduler")

    def run(*arguments, out):
        return call("sample", *arguments, "--out", tmp_path / out)[::2]

    networks = ("--denoiser", tmp_path / "denoiser", "--classifier", "zoo:sportballs-mobilenet", "--judge", "none")
    return lambda *arguments, out: run(*(() if "--from" in arguments else networks), *arguments, out=out)


def pixels(folder):
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("0*.png"))])


@pytest.mark.long
def test_a_run_by_a_named_scheduler_is_recorded_in_full_and_repeats(command, tmp_path):
    of = ("--target", "baseball", "--num", 2, "--recipe", "interval", "--steps", 4)
    named = "sampler={kind: diffusers, scheduler: UniPCMultistepScheduler, settings: {solver_order: 3}}"
    assert command(*of, "--set", named, out="a") == (0, "")
    recorded = yaml.safe_load((tmp_path / "a" / "run.yaml").read_text())["recipe"]["settings"]["sampler"]
    assert (recorded["kind"], recorded["scheduler"]) == ("diffusers", "UniPCMultistep")
    settings = recorded["settings"]
    assert (settings["solver_order"], settings["solver_type"], settings["timestep_spacing"]) == (3, "bh2", "linspace")
    assert command("--from", tmp_path / "a" / "run.yaml", out="b") == (0, "")
    assert np.array_equal(pixels(tmp_path / "a"), pixels(tmp_path / "b"))
    other = named.replace("UniPC", "DEIS")
    assert command(*of, "--set", other, out="c") == (0, "")
    assert not np.array_equal(pixels(tmp_path / "a"), pixels(tmp_path / "c"))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("{kind: diffusers, scheduler: Uniform}", "unknown scheduler 'Uniform'"),
        ("{kind: diffusers, scheduler: DDIM, settings: {eat: 1}}", "unknown setting of DDIMScheduler 'eat'"),
        (
            "{kind: diffusers, scheduler: EDMEuler}",
            "sampler.scheduler must be for the denoiser's schedule, VP, got EDMEulerScheduler; use ",
        ),
    ],
)
def test_a_scheduler_that_cannot_be_is_one_line_and_nothing_is_written(sampler, message, command, tmp_path):
    code, err = command("--target", "baseball", "--recipe", "interval", "--set", f"sampler={sampler}", out="a")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "a").exists()
