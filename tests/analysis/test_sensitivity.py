"""Sensitivity where it is known: of linear classifiers and quadratic likelihoods."""

from dataclasses import dataclass

import pytest
import torch

from steersman.denoise import Prediction
from steersman.guidance import Adam, Denoised, Ema, Identity, Noisy
from steersman.lab.analysis.forward import GRADIENTS, LOGITS, Batch, sensitivities
from steersman.schedule import VP

SCHEDULE = VP.cosine()
PAIRS = [(SCHEDULE.at_time(time), SCHEDULE.at_time(time - 1)) for time in (900.0, 500.0, 20.0)]
W = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]], dtype=torch.float64)
A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
PLAIN = {"none": Identity()}


class Shrinking:
    """``x0_hat = k x_t``, where k is the level's alpha."""

    schedule, shape, classes = SCHEDULE, (2, 1, 1), ()

    def __call__(self, x_t, level, **condition):
        return Prediction(level.alpha * x_t)

    def decode(self, x0):
        return x0


@dataclass(frozen=True)
class Quadratic:
    """``log p = -x A x / 2``, and logits ``W x``."""

    classifier: object

    def __call__(self, image, target, level):
        self.classifier(image, level)
        x = image[:, :, 0, 0]
        return -(x @ A * x).sum(1) / 2


def linear(image, level=None):
    return image[:, :, 0, 0] @ W.T


def identity(image, level=None):
    return image.flatten(1)


@pytest.fixture
def measure(draw):
    images, noise = draw(5, 2, 1, 1), {float(level.time): draw(5, 2, 1, 1) for level, _ in PAIRS}

    def run(classifier=linear, input=None, stabilizers=PLAIN, shared=False, rows=slice(None)):
        """Returns what was measured, and both noisy images at each pair."""
        batch = Batch(
            denoiser=Shrinking(),
            images=images[rows],
            targets={"f": torch.zeros(len(images[rows]), dtype=torch.int64)},
            eps=lambda level: noise[float(level.time)][rows],
        )
        found = sensitivities(
            batch,
            {"f": classifier},
            PAIRS,
            objective=Quadratic,
            inputs={"v": input or Noisy()},
            stabilizers=stabilizers,
            shared=shared,
        )
        both = [
            tuple((level.alpha * images + level.sigma * noise[float(pair[0].time)])[:, :, 0, 0] for level in pair)
            for pair in PAIRS
        ]
        return found, both

    return run


def ratio(first, second, both):
    return (first - second).norm(dim=1) / (both[0] - both[1]).norm(dim=1)


def test_logits_of_a_linear_classifier(measure):
    found, both = measure()
    for place, (x, y) in enumerate(both):
        torch.testing.assert_close(found[LOGITS, "f", "v"][:, place], ratio(x @ W.T, y @ W.T, (x, y)))
    torch.testing.assert_close(measure(identity)[0][LOGITS, "f", "v"], torch.ones(5, 3, dtype=torch.float64))


def test_gradients_of_a_quadratic(measure):
    found, both = measure()
    for place, (x, y) in enumerate(both):
        torch.testing.assert_close(found[GRADIENTS, "f", "v", "none"][:, place], ratio(x @ A, y @ A, (x, y)))


@pytest.mark.parametrize("shared", [False, True])
def test_the_denoiser_is_asked_at_each_images_own_time_unless_told_otherwise(measure, shared):
    found, both = measure(input=Denoised(clip=False), shared=shared)
    for place, ((level, next), (x, y)) in enumerate(zip(PAIRS, both, strict=True)):
        k, own = level.alpha, level.alpha if shared else next.alpha
        logits = ratio(k * x @ W.T, own * y @ W.T, (x, y))  # over the distance of the noisy images, not of the inputs
        gradients = ratio(k**2 * x @ A, own**2 * y @ A, (x, y))  # through the denoiser
        torch.testing.assert_close(found[LOGITS, "f", "v"][:, place], logits)
        torch.testing.assert_close(found[GRADIENTS, "f", "v", "none"][:, place], gradients)


def test_either_sequence_has_a_state_of_its_own(measure):
    found, both = measure(stabilizers={"ema": Ema(beta=0.9), "adam": Adam()})
    averages, states = [torch.zeros(5, 2).double()] * 2, [(torch.zeros(5, 2).double(),) * 2] * 2
    for place, pair in enumerate(both):
        averages = [0.9 * m + 0.1 * -x @ A for m, x in zip(averages, pair, strict=True)]
        torch.testing.assert_close(found[GRADIENTS, "f", "v", "ema"][:, place], ratio(*averages, pair))
        states = [
            (0.9 * m + 0.1 * -x @ A, 0.999 * v + 0.001 * (x @ A) ** 2) for (m, v), x in zip(states, pair, strict=True)
        ]
        steady = [m / (v.sqrt() + 1e-4) for m, v in states]
        torch.testing.assert_close(found[GRADIENTS, "f", "v", "adam"][:, place], ratio(*steady, pair))


def test_an_image_is_measured_the_same_in_any_batch(measure):
    found, _ = measure(stabilizers={"ema": Ema()})
    alone, _ = measure(stabilizers={"ema": Ema()}, rows=slice(2, 3))
    for key, values in found.items():
        torch.testing.assert_close(alone[key], values[2:3])
