"""Loops of a user's own, which ask the network and the scheduler by hand: steered as the pipeline's own loop is."""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import steersman
from pipelines.families import draw, draws, embeds, make
from steersman.errors import InputError
from steersman.guidance import Denoised, Lookahead, Rms, Sample
from steersman.sampling import Particles, Recurrence

ROUTES = ["x0_hat", "x_t"]


def pixels(network, scheduler, steps=3, around=contextlib.nullcontext, **more):
    """What DDPMPipeline and DDIMPipeline do."""
    scheduler.set_timesteps(steps)
    generators = draws()
    x = torch.cat([torch.randn(1, 3, 16, 16, generator=each) for each in generators])
    for time in scheduler.timesteps:
        with around():
            output = network(x, time)
        output = output if torch.is_tensor(output) else output.sample
        x = scheduler.step(output, time, x, generator=generators, **more).prev_sample
    return x.clamp(-1, 1)


def latents(pipe, around=contextlib.nullcontext, steps=3):
    """What StableDiffusionPipeline does, with classifier-free guidance."""
    prompts, nothing = pipe.encode_prompt(["a ball", "a dab"], torch.device("cpu"), 1, True)
    told = torch.cat([nothing, prompts]).detach()
    pipe.scheduler.set_timesteps(steps)
    x = torch.cat([torch.randn(1, 4, 8, 8, generator=each) for each in draws()]) * pipe.scheduler.init_noise_sigma
    for time in pipe.scheduler.timesteps:
        shown = pipe.scheduler.scale_model_input(torch.cat([x] * 2), time)
        with around():
            output = pipe.unet(shown, time, encoder_hidden_states=told).sample
        without, output = output.chunk(2)
        x = pipe.scheduler.step(without + 7.5 * (output - without), time, x).prev_sample
    return x.detach()


class Bare(nn.Module):
    """A network that returns a tensor."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, time):
        return self.network(x, time).sample


@pytest.mark.few(3)
@pytest.mark.parametrize("wrt", ROUTES)
@pytest.mark.parametrize("held", ["pipeline", "parts", "module"])
def test_a_loop_over_pixels_is_steered_as_the_pipeline(held, wrt, guide):
    pipe = make("DDIM", "DDIM", clip_sample=False)
    settings = {"wrt": wrt, "input": Lookahead(clip=False, until=0.1)}
    with steersman.steer(pipe, guide(**settings), target=[1, 2]):
        expected = draw(pipe, "DDIM", eta=0.5)
    network = Bare(pipe.unet) if held == "module" else pipe.unet
    mine = pipe if held == "pipeline" else SimpleNamespace(unet=network, scheduler=pipe.scheduler)
    with steersman.steer(mine, guide(**settings), target=[1, 2]):
        for _ in range(2):  # a loop after the other
            assert (pixels(network, pipe.scheduler, eta=0.5) - expected).abs().max() < 1e-6


WAYS = {
    "plain": (contextlib.nullcontext, contextlib.nullcontext),
    "no_grad around the network": (contextlib.nullcontext, torch.no_grad),
    "no_grad around the loop": (torch.no_grad, contextlib.nullcontext),
    "inference_mode around the network": (contextlib.nullcontext, torch.inference_mode),
    "inference_mode around the loop": (torch.inference_mode, contextlib.nullcontext),
}


@pytest.mark.few(9)
@pytest.mark.parametrize("wrt", ROUTES)
@pytest.mark.parametrize("way", WAYS)
def test_a_loop_over_latents_is_steered_whatever_it_does_with_gradients(way, wrt, guide):
    pipe = make("SD", "Euler")
    with steersman.steer(pipe, guide(wrt=wrt), target=[1, 2]):
        expected = draw(pipe, "SD", output_type="latent")
    outside, inside = WAYS[way]
    with steersman.steer(pipe, guide(wrt=wrt), target=[1, 2]), outside():
        was = torch.is_grad_enabled()
        found = latents(pipe, inside)
        assert torch.is_grad_enabled() == was
    assert (found - (expected + 1) / 2).abs().max() < 1e-5
    assert (latents(pipe) - found).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"injection": Sample(), "wrt": "x_t"}, {}),
        ({"wrt": "x_t"}, {"recurrence": Recurrence(times=2)}),
        ({"scale": 0.0}, {"particles": Particles(count=6, temperature=0.01, potential="max")}),
    ],
    ids=["sample", "recurrence", "particles"],
)
def test_a_loop_s_network_is_asked_again(settings, more, guide):
    pipe = make("DDIM", "DDIM", clip_sample=False)
    images = []
    for run in (lambda: draw(pipe, "DDIM", eta=0.0, generator=None), lambda: pixels(pipe.unet, pipe.scheduler)):
        torch.manual_seed(1)
        with steersman.steer(pipe, guide(**settings), target=0, **more):
            images.append(run())
    assert all(each.isfinite().all() for each in images)
    plain = pixels(pipe.unet, pipe.scheduler)
    assert (images[1] - plain).abs().max() > 0.01


def test_a_loop_whose_network_has_no_gradient_is_refused_in_a_line(guide):
    pipe = make("DDIM")
    forward = pipe.unet.forward
    pipe.unet.forward = torch.no_grad()(forward)
    try:
        with (
            pytest.raises(InputError, match="no gradient leads from the network's answer") as said,
            steersman.steer(pipe, guide(wrt="x_t"), target=1),
        ):
            pixels(pipe.unet, pipe.scheduler)
    finally:
        pipe.unet.forward = forward
    assert "\n" not in str(said.value)


def test_steps_out_of_order_are_refused_in_a_line(guide):
    pipe = make("DDIM", clip_sample=False)
    with steersman.steer(pipe, guide(), target=1):
        pipe.scheduler.set_timesteps(4)
        first, second, third, _ = pipe.scheduler.timesteps
        x = embeds(2, 3, 16, 16)
        x = pipe.scheduler.step(x, first, x).prev_sample
        with pytest.raises(InputError, match=f"one after the other, got {third} where {second} is next"):
            pipe.scheduler.step(x, third, x)
        for each in pipe.scheduler.timesteps[1:]:
            x = pipe.scheduler.step(x, int(each), x).prev_sample
        with pytest.raises(InputError, match="set_timesteps must be called before each loop"):
            pipe.scheduler.step(x, first, x)


def test_what_is_done_after_a_loop_is_not_kept(guide):
    pipe = make("DDIM", clip_sample=False)
    with steersman.steer(pipe, guide(wrt="x_t", input=Denoised(), stabilizer=Rms()), target=1):
        x = pixels(pipe.unet, pipe.scheduler)
        kept = torch.zeros(())
        for _ in range(3):
            kept = kept + x.mean()
        seen = weakref.ref(x)
        del x, kept
        gc.collect()
        assert seen() is None
