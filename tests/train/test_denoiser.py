"""The denoising loss: what the network is shown, told and asked for."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steersman.errors import InputError
from steersman.schedule import VP
from steersman.train.denoiser import DenoisingLoss
from steersman.train.loop import Batch

COUNT = 4096
SCHEDULE = VP.cosine()


class Spy(nn.Module):
    """Puts out zeros, and remembers what it was asked."""

    def forward(self, x_t, times, class_labels):
        self.x_t, self.times, self.labels = x_t, times, class_labels
        return SimpleNamespace(sample=torch.zeros_like(x_t))


def shown(**settings):
    """The spy after one batch of half-grey images with label 2, and the loss."""
    spy, generator = Spy(), torch.Generator().manual_seed(0)
    images, labels = torch.full((COUNT, 3, 4, 4), 0.5), torch.full((COUNT,), 2)
    loss = DenoisingLoss(schedule=SCHEDULE, null=4, **settings)(spy, Batch(images, labels, generator))
    return spy, float(loss)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_times_follow_the_shifted_law(shift):
    """P(t / T < q) = q / (k - (k - 1) q), from ``t / T = k u / (1 + (k - 1) u)`` with u uniform."""
    spy, _ = shown(shift=shift)
    for q in (0.25, 0.5, 0.9):
        expected = q / (shift - (shift - 1) * q)
        share = float((spy.times < 1000 * q).double().mean())
        assert abs(share - expected) < 4 * (expected * (1 - expected) / COUNT) ** 0.5
    assert 0 <= int(spy.times.min()) and int(spy.times.max()) <= 999


def test_images_are_noised_to_the_level_of_their_time_and_the_loss_is_that_of_v():
    spy, loss = shown()
    level = SCHEDULE.at_time(spy.times)
    eps = (spy.x_t.double() - 0.5 * level.alpha.reshape(-1, 1, 1, 1)) / level.sigma.reshape(-1, 1, 1, 1)
    assert abs(float(eps.mean())) < 0.02 and abs(float(eps.std()) - 1) < 0.02
    v = level.alpha.reshape(-1, 1, 1, 1) * eps - 0.5 * level.sigma.reshape(-1, 1, 1, 1)
    assert loss == pytest.approx(float(v.square().mean()), rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.15, 1.0])
def test_a_share_of_the_labels_becomes_the_null_label(dropout):
    spy, _ = shown(dropout=dropout)
    assert set(spy.labels.tolist()) <= {2, 4}
    assert float((spy.labels == 4).double().mean()) == pytest.approx(dropout, abs=0.03)


@pytest.mark.parametrize("wrong", [{"dropout": 1.5}, {"shift": 0.0}, {"shift": float("nan")}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="given; allowed"):
        DenoisingLoss(schedule=SCHEDULE, **wrong)
