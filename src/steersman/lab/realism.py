"""Whether finished images are of the kind that their denoiser draws.

A denoiser tells noise from image where the image is like those it was trained on, and cannot where the image is itself
noise, or burnt by too strong a guidance. So a little noise is added to a finished image ``x_0``, and the error of the
denoiser's noise prediction says how much of it was recognised:

    x_t = alpha x_0 + sigma eps        at sigma / alpha = 0.1
    e   = rms(eps_hat - eps) = rms(x0_hat - x_0) alpha / sigma

A denoiser that takes all of ``x_t`` for the image has ``e = 1``; on images like those it was trained on, ``e`` is well
below (the bundled one: .17 to .26 on its data, 1.6 on static). How far below depends on the texture of the data, so
images are compared with some that the same denoiser draws without guidance.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.batching import rms
from steersman.denoise import Denoiser
from steersman.precision import ieee
from steersman.sampling.noise import SeededNoise
from steersman.schedule import broadcast

__all__ = ["CLEAR", "USELESS", "limit", "noise_error"]

RATIO = 0.1  # sigma / alpha of the noise that is added: about 13 of 255 grey levels
USELESS = 0.8  # an error that no texture explains: the denoiser recognises next to nothing of the noise
BURNT = 1.25  # times the largest error on some unguided images, above which an image is not like them
CLEAR = 0.3  # an error up to which an image is whole, whatever the unguided ones have


@torch.no_grad()
@ieee()
def noise_error(
    denoiser: Denoiser,
    x0: Float[Tensor, "B *shape"],
    seeds: Sequence[int],
    **condition: Any,  # noqa: ANN401
) -> Float[Tensor, " B"]:
    """Returns the error ``e`` of the denoiser's noise prediction on each finished sample.

    Args:
        denoiser: The denoiser, asked once.
        x0: Finished samples ``x_0``, in the denoiser's space.
        seeds: One for each sample; the noise follows from it.
        **condition: The denoiser's conditioning, a row for each sample.
    """
    level = denoiser.schedule.at_ratio(RATIO)
    eps = SeededNoise(seeds, tuple(x0.shape[1:]), x0.device, x0.dtype)("check")
    x_t = broadcast(level.alpha, x0) * x0 + broadcast(level.sigma, x0) * eps
    return rms(denoiser(x_t, level, **condition).x0_hat - x0).flatten() / RATIO


def limit(unguided: Sequence[float]) -> float:
    """Returns the noise error above which an image is not like those that the denoiser draws.

    Args:
        unguided: The noise errors of images that it drew without guidance; none where they are not known.
    """
    return max(CLEAR, min(USELESS, BURNT * max(unguided, default=USELESS)))
