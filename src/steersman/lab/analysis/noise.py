"""Noise of the forward process: each image has draws of its own at each time.

    x_t = alpha x_0 + sigma eps,    eps ~ N(0, I) of (seed, image, time)

So a figure of one image at one time depends on neither the batch nor the other times that are looked at.
"""

import struct
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steersman.schedule import Level, broadcast

__all__ = ["forward_noise", "noised"]


def forward_noise(images: Sequence[int], like: Float[Tensor, "B C H W"], level: Level, seed: int) -> Tensor:
    """Returns each image's ``eps`` at a time, drawn on the CPU in the images' type.

    Args:
        images: Their numbers, 0 and more.
        like: They.
        level: Whose time.
        seed: Of all the noise, 0 and more.
    """
    (time,) = struct.unpack("<Q", struct.pack("<d", float(level.time)))  # its bits, as times need not be whole
    draws = []
    for image in images:
        (state,) = np.random.SeedSequence((seed, image, time)).generate_state(1)
        generator = torch.Generator().manual_seed(int(state))
        draws.append(torch.randn(like.shape[1:], generator=generator, dtype=like.dtype))
    return torch.stack(draws).to(like.device)


def noised(x_0: Float[Tensor, "B C H W"], eps: Float[Tensor, "B C H W"], level: Level) -> Float[Tensor, "B C H W"]:
    """Returns ``x_t = alpha x_0 + sigma eps``."""
    return broadcast(level.alpha, x_0) * x_0 + broadcast(level.sigma, x_0) * eps
