"""Calibration: whether a classifier is as often right as it is sure, at each step of the reverse process.

Samples are drawn unguided, each for a class, which is what the classifier should see. With the confidence
``conf = max_i softmax(tau f)_i`` in M bins, or where the classifier tells several labels apart, that of the label or of
its absence, ``max(sigmoid(tau f_y), sigmoid(-tau f_y))``,

    ECE_t = sum_m |B_m| / n |acc(B_m) - conf(B_m)|                                (EluCD 4.1; Naeini et al. 2015)
    ICE   = (1 / T) integral of ECE_t dt                                          (EluCD eq. 1), by trapezoids

The temperature tau multiplies the logits. The error of one step is `steersman.lab.metrics.classification`'s.

Two classifiers that guide in turn, one where sigma / alpha is above a value and the other below (EluCD Table 2), are
measured as one: at each level by the one that is asked there.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.denoise import Conditioned, Denoiser, Prediction
from steersman.errors import InputError
from steersman.guidance.input import ClassifierInput
from steersman.guidance.objective import Logits
from steersman.lab.analysis.parts import Key
from steersman.lab.metrics.classification import confidence, correct
from steersman.precision import ieee
from steersman.sampling import Report, Sampler, sample
from steersman.schedule import Level

__all__ = ["CONFIDENCE", "CORRECT", "Turns", "in_turn", "integral", "trusted"]

CONFIDENCE, CORRECT = "confidence", "correct"


class _Overheard:
    """A denoiser whose last answers are kept."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.decode = denoiser, denoiser.decode
        self.schedule, self.shape, self.classes = denoiser.schedule, denoiser.shape, denoiser.classes
        self.latent: bool = getattr(denoiser, "latent", False)
        self.answers: list[tuple[Tensor, Level, Prediction]] = []

    def __call__(self, x_t: Float[Tensor, "B C H W"], level: Level, **condition: Any) -> Prediction:  # noqa: ANN401
        prediction = self.denoiser(x_t, level, **condition)
        self.answers.append((x_t, level, prediction))
        return prediction


@ieee()
def trusted(
    denoiser: Denoiser,
    sampler: Sampler,
    classifiers: Mapping[Key, Logits],
    targets: Mapping[Key, Int[Tensor, " B"]],
    seeds: Sequence[int],
    *,
    views: Mapping[str, ClassifierInput],
    temperatures: Sequence[float] = (1.0,),
    at: Collection[int] | None = None,
    condition: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[], None] = lambda: None,
    **walk: Any,  # noqa: ANN401
) -> dict[Key, Tensor]:
    """Returns confidence and correctness of each image at each step, (B, T).

    They are of what the denoiser is asked about first in a step, and of its answer.
    """
    for temperature in temperatures:
        if not temperature > 0:
            raise InputError(f"temperature must be above 0, got {temperature:g}")
    overheard, told = _Overheard(denoiser), Conditioned(denoiser, condition or {})
    found: dict[Key, list[Tensor]] = {}

    def look(report: Report) -> None:
        x_t, level, prediction = overheard.answers[0]
        overheard.answers.clear()
        if at is None or report.step.index in at:
            for shown, input in views.items():
                image = denoiser.decode(input(x_t, prediction, level, told))
                for key, classifier in classifiers.items():
                    logits, target = classifier(image, level), targets[key]
                    head = {"multilabel": getattr(classifier, "multilabel", False)}
                    right = correct(logits, target, **head)
                    for temperature in temperatures:
                        name = (*key, shown, f"τ {temperature:g}")
                        sure = confidence(temperature * logits, target, **head)
                        found.setdefault((CONFIDENCE, *name), []).append(sure)
                        found.setdefault((CORRECT, *name), []).append(right)
        on_step()

    sample(overheard, sampler, seeds=seeds, condition=condition, device=device, callbacks=[look], **walk)
    return {key: torch.stack(columns, 1) for key, columns in found.items()}


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Two classifiers that guide in turn, as `steersman.guidance.Switch` has it.

    Attributes:
        name: What the two are called.
        above: The classifier where ``sigma / alpha > at``.
        below: The other one.
        at: Where they change.
    """

    name: str
    above: str
    below: str
    at: float


def in_turn(values: Mapping[Key, np.ndarray], turns: Turns, levels: Sequence[Level]) -> dict[Key, np.ndarray]:
    """Returns what was measured of two classifiers as of one, by its name."""
    first = np.array([float(level.sigma / level.alpha) > turns.at for level in levels])
    return {
        (key[0], turns.name, *key[2:]): np.where(first, values[key], values[key[0], turns.below, *key[2:]])
        for key in values
        if key[1] == turns.above
    }


def integral(errors: Sequence[float], times: Sequence[float]) -> float:
    """Returns the mean of the errors over time, by trapezoids: ``(1 / T) integral ECE_t dt``."""
    if len(errors) == 1:
        return errors[0]
    values, places = (torch.tensor(each, dtype=torch.float64) for each in (errors, times))
    return float(torch.trapezoid(values, places) / (places[-1] - places[0]))
