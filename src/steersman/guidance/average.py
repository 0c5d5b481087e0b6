"""Averages: an objective shown several versions of each image, so that one pixel's whim counts less.

    augmented     (1 / n) sum_k log p(y | T_k view)             T_k a random turn, zoom and shift     (Shen et al. 2024)
    montecarlo    log (1 / n) sum_k p(y | view + r sigma_t z_k)                         (LGD-MC, Song et al. 2023)

The draws follow from the level's time alone and are shared by the batch: an image sees the same ones whatever its
neighbours are.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import logsumexp, send, total
from steersman.errors import InputError
from steersman.guidance.objective import Objective
from steersman.schedule import Level, broadcast
from steersman.typed import finite

__all__ = ["Augmented", "MonteCarlo"]


def _generator(level: Level) -> torch.Generator:
    """Returns a generator that depends on the level's time, to a thousandth."""
    return torch.Generator().manual_seed(round(1000 * float(level.time.max())))


@dataclass(frozen=True, kw_only=True)
@finite
class Augmented:
    """The mean log-likelihood over random similarity transforms of the image.

    Attributes:
        objective: What is averaged.
        copies: How many transforms; the first shows the image as it is.
        zoom: The largest share by which a copy is drawn larger or smaller, in [0, 1).
        shift: The largest shift, as a share of the image's side, in [0, 1].
        turn: The largest angle, in degrees.
    """

    objective: Objective
    copies: int = 4
    zoom: float = 0.3
    shift: float = 0.1
    turn: float = 180.0

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise InputError(f"smoothing.copies must be at least 1, got {self.copies}")
        if not (0 <= self.zoom < 1 and 0 <= self.shift <= 1 and 0 <= self.turn <= 180):
            raise InputError(
                "smoothing.zoom must be at least 0 and below 1, smoothing.shift between 0 and 1 and smoothing.turn "
                f"between 0 and 180, got {self.zoom}, {self.shift} and {self.turn}"
            )

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the mean."""
        unit = torch.rand(self.copies - 1, 4, generator=_generator(level), dtype=torch.float64) * 2 - 1
        size, angle = (1 + self.zoom) ** unit[:, 0], unit[:, 1] * math.radians(self.turn)
        cos, sin = size * angle.cos(), size * angle.sin()
        x, y = 2 * self.shift * unit[:, 2], 2 * self.shift * unit[:, 3]
        maps = torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)
        shown = [image, *(_transformed(image, each) for each in send(maps.to(image.dtype), image.device))]
        return total(torch.stack([self.objective(each, target, level) for each in shown], 1)) / self.copies


def _transformed(image: Float[Tensor, "B C H W"], map: Float[Tensor, "2 3"]) -> Float[Tensor, "B C H W"]:
    # One grid for all images: it is a product of matrices, rounded by how many there are.
    grid = torch.nn.functional.affine_grid(map[None], [1, *image.shape[1:]], align_corners=False)
    grid = grid.expand(len(image), *grid.shape[1:])
    return torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True, kw_only=True)
@finite
class MonteCarlo:
    """The log of the mean likelihood over noisy copies of the image (LGD-MC).

    Attributes:
        objective: A log-likelihood.
        copies: How many.
        radius: ``r``: the noise's deviation is ``r sigma_t``.
    """

    objective: Objective
    copies: int = 4
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.copies < 1 or self.radius < 0:
            raise InputError(
                "smoothing.copies must be at least 1 and smoothing.radius at least 0, got "
                f"{self.copies} and {self.radius}"
            )

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the log of the mean."""
        noise = torch.randn(self.copies, *image.shape[1:], generator=_generator(level)).to(image.dtype)
        deviation = self.radius * broadcast(level.sigma, image)
        copies = (image + deviation * z for z in send(noise, image.device))
        values = torch.stack([self.objective(each, target, level) for each in copies], 1)
        return logsumexp(values) - math.log(self.copies)
