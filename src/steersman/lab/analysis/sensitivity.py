"""Sensitivity: by how much what a classifier says changes from one time to the next, with the same noise in both.

    x_t = alpha_t x_0 + sigma_t eps,    x_{t-1} = alpha_{t-1} x_0 + sigma_{t-1} eps,    fresh eps at each t

    logits       S_l(t) = |f(x_t) - f(x_{t-1})| / |x_t - x_{t-1}|                                 (nrCG eq. 3, fig. 2)
    gradients    S_g(t) = |g(x_t) - g(x_{t-1})| / |x_t - x_{t-1}|,  g = d/dx log p(y | view(x))   (eq. 4, 6, fig. 3)
    stabilised   the same of what a stabilizer makes of either sequence of gradients, t falling   (eq. 7, 8, fig. 4)

Each of the two sequences has a stabilizer's state of its own. The denoiser is asked about either image at that image's
own time; nrCG's released code asks it about ``x_{t-1}`` at time t too (``shared``), and has one class as the target of
all images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import norm
from steersman.denoise import Denoiser, Prediction
from steersman.guidance.guide import Guide
from steersman.guidance.input import ClassifierInput
from steersman.guidance.objective import Logits, Objective
from steersman.guidance.stabilizer import Stabilizer, State
from steersman.guidance.step import Step, reverse_variance
from steersman.lab.analysis.forward import noised
from steersman.lab.analysis.parts import Key
from steersman.precision import ieee
from steersman.schedule import Level

__all__ = ["GRADIENTS", "LOGITS", "sensitivities"]

LOGITS, GRADIENTS = "logits", "gradients"


@dataclass
class _Heard:
    """A classifier whose last logits are kept, so that a gradient need not be followed by another look."""

    classifier: Logits
    logits: Tensor = field(init=False)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.classifier, name)  # such as what its head is

    def __call__(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B K"]:
        logits = self.classifier(image, level)
        self.logits = logits.detach()
        return logits


@ieee()
def sensitivities(
    denoiser: Denoiser,
    classifiers: Mapping[str, Logits],
    images: Float[Tensor, "B C H W"],
    targets: Mapping[str, Int[Tensor, " B"]],
    pairs: Sequence[tuple[Level, Level]],
    *,
    objective: Callable[[Logits], Objective],
    eps: Callable[[Level], Float[Tensor, "B C H W"]],
    views: Mapping[str, ClassifierInput],
    stabilizers: Mapping[str, Stabilizer],
    shared: bool = False,
    on_step: Callable[[], None] = lambda: None,
) -> dict[Key, Float[Tensor, "B T"]]:
    """Returns ``S_l`` by (`LOGITS`, classifier, view), and ``S_g`` by (`GRADIENTS`, classifier, view, stabilizer)."""
    heard = {name: _Heard(classifier) for name, classifier in classifiers.items()}
    guides = {
        (name, shown): Guide(objective=objective(classifier), input=input, wrt="x_t")
        for name, classifier in heard.items()
        for shown, input in views.items()
    }
    states = {
        (*key, name): [stabilizer.init(images), stabilizer.init(images)]
        for key in guides
        for name, stabilizer in stabilizers.items()
    }
    found: dict[Key, list[Tensor]] = {}
    for level, next in pairs:
        noise = eps(level)
        both = [(noised(images, noise, level), level), (noised(images, noise, next), level if shared else next)]
        distance = norm(both[0][0] - both[1][0])
        said = [_said(x, at, next, guides, heard, targets, denoiser) for x, at in both]
        for key in guides:
            logits, gradients = zip(*(each[key] for each in said), strict=True)
            found.setdefault((LOGITS, *key), []).append(_change(logits[0] - logits[1], distance))
            for name, stabilizer in stabilizers.items():
                steady = _stabilised(stabilizer, gradients, states[*key, name])
                found.setdefault((GRADIENTS, *key, name), []).append(_change(steady[0] - steady[1], distance))
        on_step()
    return {key: torch.stack(columns, 1) for key, columns in found.items()}


def _said(
    x: Float[Tensor, "B C H W"],
    level: Level,
    next: Level,
    guides: Mapping[Key, Guide],
    heard: Mapping[str, _Heard],
    targets: Mapping[str, Int[Tensor, " B"]],
    denoiser: Denoiser,
) -> dict[Key, tuple[Tensor, Tensor]]:
    """Returns logits and gradient of each guide at noisy images; the denoiser is asked once."""
    x = x.detach().requires_grad_()
    asked = any(guide.input.needs_denoiser for guide in guides.values())
    with torch.enable_grad():
        prediction: Prediction | None = denoiser(x, level) if asked else None
    variance = reverse_variance(level, next)
    step = Step(0, 1, 0, 0, level, next, variance, variance)
    said = {}
    for key, guide in guides.items():
        name = key[0]
        g, _ = guide.gradient(x, prediction, step, targets[name], denoiser, retain_graph=True)
        said[key] = heard[name].logits, g
    return said


def _stabilised(stabilizer: Stabilizer, gradients: Sequence[Tensor], states: list[State]) -> list[Tensor]:
    """Returns both sequences' next gradients, stabilised; moves the two states on."""
    steady = []
    for place, g in enumerate(gradients):
        g, states[place] = stabilizer.update(g, states[place])
        steady.append(g)
    return steady


def _change(difference: Tensor, distance: Float[Tensor, "B 1 1 1"]) -> Float[Tensor, " B"]:
    return norm(difference).flatten() / distance.flatten()
