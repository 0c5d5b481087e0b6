"""Joint, marginal and conditional directions where all are known: on a Gaussian mixture (EluCD, Proposition 4.2).

    joint          grad log p(x_t, y)
    marginal       grad log p(x_t)
    conditional    grad log p(y | x_t) = joint - marginal
    on x0_hat      grad log p(y | x0 = x0_hat(x_t)), through the denoiser: what a classifier of clean images gives

The joint one leads to the class; the conditional one away from the others, where there may be nothing. The last one is
the conditional one where there is no noise; what it is off at noise is the price of the denoised image.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import InputError
from steersman.guidance.guide import Guide
from steersman.guidance.input import Denoised
from steersman.guidance.objective import ClassProbability
from steersman.guidance.step import Step
from steersman.mixture import Mixture
from steersman.schedule import CLEAN, Level

__all__ = ["FIELDS", "example", "fields", "lattice"]

FIELDS = ("joint", "marginal", "conditional", "on x0_hat")


def example() -> Mixture:
    """Returns three classes of unit shape in the plane, the corners of a triangle."""
    means = [[-0.6, -0.4], [0.6, -0.4], [0.0, 0.6]]
    return Mixture(
        weights=torch.full((3,), 1 / 3, dtype=torch.float64),
        means=torch.tensor(means, dtype=torch.float64),
        covariances=0.04 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2),
    )


def lattice(side: int, reach: float = 1.4) -> Float[Tensor, "P 2 1 1"]:
    """Returns the points of a square lattice, row by row from below."""
    if side < 2:
        raise InputError(f"side must be at least 2, got {side}")
    along = torch.linspace(-reach, reach, side, dtype=torch.float64)
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)[..., None, None]


def fields(mixture: Mixture, x_t: Float[Tensor, "P 2 1 1"], level: Level, target: int) -> dict[str, Tensor]:
    """Returns each of `FIELDS` at some points, of their shape."""
    if not 0 <= target < len(mixture.classes):
        raise InputError(f"target must be 0 to {len(mixture.classes) - 1}, got {target}")
    joint = mixture.joint_direction(x_t, level, target)
    conditional = mixture.conditional_direction(x_t, level, target)

    def of_clean(image: Float[Tensor, "B D 1 1"], level: Level | None = None) -> Float[Tensor, "B K"]:
        return mixture.log_posterior(image, CLEAN)

    guide = Guide(objective=ClassProbability(classifier=of_clean), input=Denoised(clip=False), wrt="x_t")
    leaf, zero = x_t.detach().requires_grad_(), torch.zeros(())
    step = Step(0, 1, 0, 0, level, CLEAN, zero, zero)
    targets = torch.full((len(x_t),), target)
    seen, _ = guide.gradient(leaf, mixture(leaf, level), step, targets, mixture)  # pyright: ignore[reportArgumentType]
    return dict(zip(FIELDS, (joint, joint - conditional, conditional, seen), strict=True))
