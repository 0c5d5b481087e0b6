"""What a guide sees and how hard it pulls, along its own walk (EluCD 4.4, fig. 4, B.1).

The conditional gradient ``grad [f_y - log sum_i exp f_i]`` fades as the image becomes its class, since the softmax
saturates; with a marginal temperature ``tau2 < tau1`` the joint direction stays.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.batching import norm
from steersman.denoise import Denoiser
from steersman.errors import InputError
from steersman.guidance.guide import Guide
from steersman.lab.analysis.parts import Key
from steersman.sampling import Callback, Report, Sampler, sample

__all__ = ["GRADIENT", "IMAGE", "NORM", "followed"]

IMAGE, GRADIENT, NORM = "image", "gradient", "norm"


def followed(
    denoiser: Denoiser,
    sampler: Sampler,
    guides: Sequence[Guide],
    target: Sequence[int],
    seeds: Sequence[int],
    *,
    at: Collection[int],
    condition: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    callbacks: Sequence[Callback] = (),
    **walk: Any,  # noqa: ANN401
) -> dict[Key, Tensor]:
    """Returns a guided walk: at every step the gradient's norm, at some of them the image and the gradient."""
    if not guides:
        raise InputError("guides must have at least 1 guide, got none")
    norms: list[Float[Tensor, " B"]] = []
    images: list[Tensor] = []
    gradients: list[Tensor] = []

    def look(report: Report) -> None:
        if report.step.repeat:
            return
        update = report.updates[0]
        g = torch.full_like(report.x, float("nan")) if update is None else update.gradient
        norms.append(norm(g).flatten())
        if report.step.index in at:
            images.append(denoiser.decode(report.x0))
            gradients.append(g)

    sample(
        denoiser,
        sampler,
        guides=guides,
        target=target,
        seeds=seeds,
        condition=condition,
        device=device,
        callbacks=[look, *callbacks],
        **walk,
    )
    if not any(bool(norm.isfinite().any()) for norm in norms):
        raise InputError("the guide has no gradient at any step; give it a scale other than 0 and a weight above 0")
    return {
        (NORM,): torch.stack(norms, 1),
        (IMAGE,): torch.stack(images, 1).float(),
        (GRADIENT,): torch.stack(gradients, 1).float(),
    }
