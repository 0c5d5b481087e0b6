"""Folders with schedulers and networks as they are seldom configured: each works as its pipeline, or is refused."""

import diffusers
import pytest
import torch

from steersman.errors import InputError
from steersman.lab.train.denoiser import unet
from steersman.models.denoisers import load_denoiser
from steersman.sampling import DiffusersSampler, sample

BETAS = torch.linspace(0.02, 0.2, 60).tolist()
V, X0 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
SCHEDULERS = {
    "4000 times": ("DDIM", {"num_train_timesteps": 4000}),
    "trained betas": ("DDIM", {"num_train_timesteps": 60, "trained_betas": BETAS, **X0}),
    "sigmoid betas": ("DDPM", {"beta_schedule": "sigmoid"}),
    "clipped otherwise": ("DDPM", {"clip_sample_range": 2.5, **V}),
    "thresholded": ("DDPM", {"clip_sample": False, "thresholding": True, **X0}),
    "thresholded further": ("DDIM", {"clip_sample": False, "thresholding": True, "sample_max_value": 2.0}),
    "times of an offset": ("DDIM", {"steps_offset": 1, "set_alpha_to_one": False}),
    "no signal": ("DDIM", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **X0}),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_folder_walks_as_its_pipeline(name, tmp_path):
    kind, config = SCHEDULERS[name]
    torch.manual_seed(0)
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**config)
    pipe = getattr(diffusers, f"{kind}Pipeline")(unet(8, 0, widths=(8, 16)).eval().double(), scheduler)
    pipe.scheduler = scheduler  # DDIMPipeline makes one of its own
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    wanted = pipe(num_inference_steps=6, output_type="np", generator=torch.Generator().manual_seed(3)).images
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(1, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(7)]
    denoiser = load_denoiser(str(tmp_path), dtype=torch.float64)
    assert denoiser.parameterization == config.get("prediction_type", "epsilon")
    found = sample(denoiser, DiffusersSampler(scheduler), steps=6, noise=iter(draws), clip=False, dtype=torch.float64)
    images = found.clamp(-1, 1) / 2 + 0.5
    # the float32 of the scheduler's own levels, through six steps where the signal is as little as 6e-3
    torch.testing.assert_close(images, torch.from_numpy(wanted).permute(0, 3, 1, 2).double(), rtol=0, atol=2e-4)


def test_labels_without_a_null_label(tmp_path):
    network = unet(8, 3, widths=(8, 16))  # four rows
    network.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    denoiser = load_denoiser(str(tmp_path))
    assert (denoiser.classes, denoiser.null) == (("0", "1", "2", "3"), None)
    level, x_t = denoiser.schedule.at_time(5.0), torch.zeros(1, 3, 8, 8)
    assert denoiser(x_t, level, label=torch.tensor([3])).x0_hat.shape == x_t.shape
    for condition in ({}, {"label": torch.tensor([1]), "cfg_scale": 2.0}):
        with pytest.raises(InputError, match="no unconditional model"):
            denoiser(x_t, level, **condition)


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_a_network_that_is_told_something_else_is_refused(kind, tmp_path):
    network = unet(8, 0, widths=(8, 16))
    type(network)(**{**network.config, "class_embed_type": kind}).save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(InputError, match=f"class_embed_type must be None, .*got '{kind}'") as said:
        load_denoiser(str(tmp_path))
    assert "\n" not in str(said.value)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            diffusers.EulerDiscreteScheduler(timestep_type="continuous"),
            "timestep_type must be discrete, got continuous",
        ),
        (diffusers.DDPMScheduler(variance_type="learned"), "variance_type must be learned_range, .*got learned"),
        (diffusers.CogVideoXDDIMScheduler(), "snr_shift_scale must be None"),
        (diffusers.ScoreSdeVeScheduler(), "a scheduler with a beta_schedule"),
        (diffusers.CMStochasticIterativeScheduler(), "a scheduler with a beta_schedule"),
    ],
)
def test_a_scheduler_whose_noise_is_not_known_is_refused(scheduler, message, tmp_path):
    unet(8, 0, widths=(8, 16)).save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    with pytest.raises(InputError, match=message) as said:
        load_denoiser(str(tmp_path))
    assert "\n" not in str(said.value)
