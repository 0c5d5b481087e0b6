"""Accuracy against noise, where it is known."""

import math
from functools import partial
from statistics import NormalDist

import torch

from steersman.guidance import Denoised, Noisy
from steersman.lab.analysis.forward import Batch, accuracies, forward_noise
from steersman.schedule import VP

COUNT = 4000


class Linear:
    """A denoiser that halves, and counts how often it is asked."""

    schedule, shape, classes, asked = VP.cosine(), (2, 1, 1), (), 0

    def __call__(self, x_t, level, **condition):
        from steersman.denoise import Prediction

        self.asked += 1
        return Prediction(x_t / 2)

    def decode(self, x0):
        return x0


def side(image, level=None):
    """The log-odds of lying to the right of 0.2."""
    return 3 * (image[:, :1, 0, 0] - 0.2)


def test_a_linear_classifier_errs_as_often_as_the_noise_crosses_its_border():
    denoiser, levels = Linear(), [VP.cosine().at_time(time) for time in (900, 400, 50)]
    images = torch.tensor([0.3, -0.1], dtype=torch.float64).reshape(1, 2, 1, 1).expand(COUNT, -1, -1, -1)
    eps = partial(forward_noise, range(COUNT), images, seed=0)
    target = {"side": torch.ones(COUNT, dtype=torch.int64)}
    inputs = {"noisy": Noisy(), "denoised": Denoised(clip=False)}
    batch = Batch(denoiser=denoiser, images=images, targets=target, eps=lambda level: eps(level=level))
    found = accuracies(batch, {"side": side}, levels, inputs=inputs)
    assert denoiser.asked == len(levels)
    for input, border in (("noisy", 0.2), ("denoised", 0.4)):
        for place, level in enumerate(levels):
            share = NormalDist().cdf((float(level.alpha) * 0.3 - border) / float(level.sigma))
            deviation = math.sqrt(share * (1 - share) / COUNT)
            assert abs(float(found["side", input][:, place].double().mean()) - share) < 4 * deviation + 1e-9


def test_the_mixture_is_seen_as_its_exact_posterior_says(mixture, posterior, draw):
    levels = [mixture.schedule.at_time(time) for time in (800.0, 200.0)]
    images, noise = mixture.sample(50, torch.Generator().manual_seed(0)), draw(2, 50, 2, 1, 1)
    held = dict(zip((float(level.time) for level in levels), noise, strict=True))
    targets = {"exact": torch.arange(50) % 3}
    steps = []
    batch = Batch(denoiser=mixture, images=images, targets=targets, eps=lambda level: held[float(level.time)])
    inputs = {"noisy": Noisy()}
    found = accuracies(batch, {"exact": posterior}, levels, inputs=inputs, on_step=lambda: steps.append(0))
    for place, level in enumerate(levels):
        x_t = level.alpha * images + level.sigma * noise[place]
        right = mixture.log_posterior(x_t, level).argmax(1) == targets["exact"]
        assert torch.equal(found["exact", "noisy"][:, place], right)
    assert len(steps) == 2


def test_a_denoiser_that_no_view_needs_is_not_asked():
    denoiser, x = Linear(), torch.zeros(1, 2, 1, 1)
    level = VP.cosine().at_time(5)
    batch = Batch(denoiser=denoiser, images=x, targets={"a": torch.ones(1).long()}, eps=lambda _: x)
    accuracies(batch, {"a": side}, [level], inputs={"noisy": Noisy()})
    assert denoiser.asked == 0
