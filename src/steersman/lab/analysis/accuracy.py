"""Accuracy against noise: how often a classifier sees an image's own class, on what the view shows of ``x_t``.

acc(t) = (1/n) sum_k 1[argmax_i f_i(view(x_t^k)) = y_k],    x_t = alpha x_0 + sigma eps       (nrCG 2.1, fig. 1)
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.denoise import Denoiser
from steersman.guidance.input import ClassifierInput
from steersman.guidance.objective import Logits
from steersman.lab.analysis.noise import noised
from steersman.lab.analysis.parts import Key
from steersman.lab.metrics import correct
from steersman.precision import ieee
from steersman.schedule import Level

__all__ = ["seen"]


@torch.no_grad()
@ieee()
def seen(
    denoiser: Denoiser,
    classifiers: Mapping[str, Logits],
    images: Float[Tensor, "B C H W"],
    targets: Mapping[str, Int[Tensor, " B"]],
    levels: Sequence[Level],
    *,
    eps: Callable[[Level], Float[Tensor, "B C H W"]],
    views: Mapping[str, ClassifierInput],
    on_step: Callable[[], None] = lambda: None,
) -> dict[Key, Bool[Tensor, "B T"]]:
    """Returns, by classifier and view, at which levels each image is given its class.

    The denoiser is asked once a level, whatever the number of classifiers, and not at all where no view needs it.

    Args:
        denoiser: Makes ``x0_hat``; needs no more conditions.
        classifiers: They, by name.
        images: ``x_0``, in [-1, 1].
        targets: Each image's class, in each classifier's own numbers.
        levels: Which.
        eps: The noise at each.
        views: What the classifiers are shown, by name.
        on_step: Called after each level.
    """
    found: dict[Key, list[Tensor]] = {(name, input): [] for name in classifiers for input in views}
    asked = any(input.needs_denoiser for input in views.values())
    for level in levels:
        x_t = noised(images, eps(level), level)
        prediction = denoiser(x_t, level) if asked else None
        for shown, input in views.items():
            image = denoiser.decode(input(x_t, prediction, level, denoiser))
            for name, classifier in classifiers.items():
                multilabel = getattr(classifier, "multilabel", False)
                found[name, shown].append(correct(classifier(image, level), targets[name], multilabel=multilabel))
        on_step()
    return {key: torch.stack(columns, 1) for key, columns in found.items()}
