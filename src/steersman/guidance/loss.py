"""Losses: a function F of the log-likelihood l that rises below zero and above it; its gradient is ``F'(l) grad l``.

    none     l
    root     sign(l) sqrt(|l|)      F' = 1 / (2 sqrt(|l|)); where ``l = -|r|^2``, the norm of the residual r instead of
                                    its square                                              (DPS, Chung et al. 2023)
    log      sign(l) log(|l|)       F' = 1 / |l|                              (DPS in TFG's code, Ye et al. 2024)

Neither changes where the gradient points: both make it grow, against that of the log-likelihood, as the target nears.
Where ``l = 0``, they leave the gradient as it is.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.guidance.objective import Objective
from steersman.schedule import Level

__all__ = ["Log", "Root"]


@dataclass(frozen=True, kw_only=True)
class _OfSize(ABC):
    """``sign(l) F(|l|)``.

    Attributes:
        objective: It gives l.
    """

    objective: Objective

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns it; l itself where that is zero, since F has no slope there."""
        value = self.objective(image, target, level)
        size = torch.where(value == 0, 1, value.abs())
        return torch.where(value == 0, value, value.sign() * self._rise(size))

    @abstractmethod
    def _rise(self, size: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Returns ``F(|l|)``."""


@dataclass(frozen=True, kw_only=True)
class Root(_OfSize):
    """``sign(l) sqrt(|l|)``: the norm of a residual, where the log-likelihood l is minus its square."""

    def _rise(self, size: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        return size.sqrt()


@dataclass(frozen=True, kw_only=True)
class Log(_OfSize):
    """``sign(l) log(|l|)``: a gradient relative to the log-likelihood l, as in the code of TFG for DPS."""

    def _rise(self, size: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        return size.log()
