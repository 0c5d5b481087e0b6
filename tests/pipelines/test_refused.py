"""What cannot be steered is refused in one line, and leaves the pipeline alone."""

import numpy as np
import pytest
import torch
from torch import nn

import steersman
from pipelines.families import draw, embeds, make
from steersman.errors import InputError
from steersman.guidance import Spherical

diffusers = pytest.importorskip("diffusers")


class Unnamed:
    def __call__(self, image, target, level):
        return image.mean((1, 2, 3))


class Hidden(diffusers.DDIMPipeline):
    """Shows its network a sample that went through NumPy, so that no tensor leads there."""

    @torch.no_grad()
    def __call__(self):
        sample = torch.randn(2, 3, 16, 16)
        self.scheduler.set_timesteps(3)
        for time in self.scheduler.timesteps:
            output = self.unet(torch.from_numpy(sample.numpy()).clone(), time).sample
            sample = self.scheduler.step(output, time, sample).prev_sample


def other_scheduler(name):
    pipe = make("SD")
    pipe.scheduler = getattr(diffusers, name)()
    return pipe


REFUSED = {
    "no pipeline": (lambda guide: (nn.Linear(1, 1), guide(), 1), "a pipeline with a scheduler"),
    "scheduler": (lambda guide: (other_scheduler("KarrasVeScheduler"), guide(), 1), "unknown scheduler"),
    "no target": (lambda guide: (make("DDPM"), guide(), None), "there are guides; got none"),
    "name": (lambda guide: (make("DDPM"), guide(), "purple"), "unknown class"),
    "beyond": (lambda guide: (make("DDPM"), guide(), np.int64(3)), "class index must be 0 to 2, got 3"),
    "half": (lambda guide: (make("DDPM"), guide(), [1, 1.5]), "class's index or name, .* got 1.5"),
    "nested": (lambda guide: (make("DDPM"), guide(), torch.ones(2, 1)), "class's index or name, .* got 1.0"),
    "nothing": (lambda guide: (make("DDPM"), guide(), ()), "got an empty list"),
    "flag": (lambda guide: (make("DDPM"), guide(), True), "got True"),
    "too large": (lambda guide: (make("DDPM"), guide(objective=Unnamed()), 2**70), f"got {2**70}"),
    "no names": (lambda guide: (make("DDPM"), guide(objective=Unnamed()), "red"), "classifier of the guides has names"),
    "negative": (lambda guide: (make("DDPM"), guide(objective=Unnamed()), -1), "at least 0"),
    "no noise": (lambda guide: (make("SD", "Euler"), guide(injection=Spherical()), 1), "enters at the deviation"),
    "Runge-Kutta": (lambda guide: (make("SD", "PNDM", skip_prk_steps=False), guide(), 1), "skip_prk_steps=True"),
    "backwards": (lambda guide: (make("SD3", invert_sigmas=True), guide(), 1), "invert_sigmas"),
    "scaled twice": (lambda guide: (make("DiT", "Euler"), guide(), 1), "scaled already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_steered_is_refused_at_once(case, guide, unchecked):
    build, message = REFUSED[case]
    pipe, steering, target = build(guide)
    with pytest.raises(InputError, match=message), steersman.steer(pipe, steering, target=target):
        pass
    assert "step" not in vars(getattr(pipe, "scheduler", pipe))


def test_what_shows_only_later_is_refused_then(guide):
    pipe = make("SD", "Euler")
    pipe.vae = None
    with pytest.raises(InputError, match="images of 1 or 3 channels, got 4"), steersman.steer(pipe, guide(), target=1):
        pipe.scheduler.set_timesteps(3)
        pipe.scheduler.step(embeds(2, 4, 8, 8), pipe.scheduler.timesteps[0], embeds(2, 4, 8, 8))
    pipe = make("DDIM", clip_sample=False)
    with pytest.raises(InputError, match="noise"), steersman.steer(pipe, guide(injection=Spherical()), target=1):
        draw(pipe, "DDIM", eta=0.0)
    through = guide(wrt="x_t")
    with pytest.raises(InputError, match="does not come from the sample"), steersman.steer(pipe, through, target=1):
        output = pipe.unet(torch.randn(2, 3, 16, 16), 0).sample
        pipe.scheduler.step(output, pipe.scheduler.timesteps[0], torch.zeros(2, 3, 16, 16))
    hidden = Hidden(pipe.unet, pipe.scheduler)
    with pytest.raises(InputError, match="does not come from the sample"), steersman.steer(hidden, through, target=1):
        hidden()
    with pytest.raises(InputError, match="replaced while steering"), steersman.steer(pipe, guide(), target=1):
        pipe.scheduler = diffusers.DDIMScheduler()
    with steersman.steer(pipe, guide(), target=1):
        with pytest.raises(InputError, match="all guides to one"), steersman.steer(pipe, guide(), target=1):
            pass
        draw(pipe, "DDIM")
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "steer needs a guide or a classifier, got neither"),
        ({"guide": True, "classifier": "zoo:mnist-lenet"}, "steer needs a guide or a classifier, got both"),
        ({"guide": True, "scale": 3}, "steer takes recipe and scale with a classifier alone"),
        ({"guide": True, "recipe": "nrcg"}, "steer takes recipe and scale with a classifier alone"),
    ],
)
def test_what_would_be_dropped_is_refused(given, said, guide):
    pipe = make("DDPM")
    given = {**given, "guide": guide()} if "guide" in given else given
    with pytest.raises(InputError, match=said), steersman.steer(pipe, target=1, **given):
        pass
