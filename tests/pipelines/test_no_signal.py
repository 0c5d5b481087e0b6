"""Pipelines whose scheduler begins without signal (zero terminal SNR): steered, and as they are where a guide rests."""

import diffusers
import pytest
import torch

from pipelines.families import wide
from steersman import steer
from steersman.errors import InputError
from steersman.guidance import Mean, NoisePrediction
from steersman.lab.train.denoiser import unet

ABLE = ("DDIM", "DDPM", "DPMSolverMultistep", "EulerAncestralDiscrete", "EulerDiscrete", "UniPCMultistep")


WAYS = {"x0_hat": NoisePrediction(), "x_t": Mean()}


def pipeline(name, **changes):
    torch.manual_seed(0)
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, f"{name}Scheduler")(**{**settings, **changes})
    vqvae = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=64, scaling_factor=1.0)
    torch.nn.init.normal_(vqvae.quantize.embedding.weight)  # as spread as latents are
    pipe = diffusers.LDMPipeline(vqvae.eval(), unet(16, 0, widths=(8, 16)).eval(), scheduler)
    scheduler.set_timesteps(4)  # the pipeline reads the first sigma before it sets these, Euler's of another walk
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe):
    torch.manual_seed(1)  # its scheduler's draws are of no generator
    drawn = pipe(num_inference_steps=4, output_type="np").images
    return torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1


@pytest.mark.parametrize(
    ("name", "wrt"),
    wide([(name, wrt) for name in ABLE for wrt in WAYS], [("DDIM", "x_t"), ("EulerDiscrete", "x0_hat")]),
)
def test_a_pipeline_that_begins_without_signal_is_steered(name, wrt, guide, likelihood):
    injection = WAYS[wrt]
    pipe = pipeline(name)
    plain = images(pipe)
    with steer(pipe, guide(wrt=wrt, injection=injection, scale=0.0), 1):
        assert torch.equal(images(pipe), plain)
    with steer(pipe, guide(wrt=wrt, injection=injection), 1):
        steered = images(pipe)
    assert steered.isfinite().all()
    assert (likelihood(steered, 1) > likelihood(plain, 1)).all()


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_one_that_predicts_noise_is_refused_in_a_line(name, guide):
    pipe = pipeline(name, prediction_type="epsilon")
    with (
        steer(pipe, guide(), 1),
        pytest.raises(InputError, match="cannot be evaluated at a level without") as said,
    ):
        images(pipe)
    assert "\n" not in str(said.value)
