"""What guides make gradients of: along guided trajectories, and in the plane, where all directions are known.

**Along a trajectory** (EluCD 4.4, fig. 4, B.1). The conditional gradient ``grad [f_y - log sum_i exp f_i]`` fades as
the image becomes its class, since the softmax saturates; with a marginal temperature ``tau2 < tau1`` the joint
direction stays.

**On a Gaussian mixture** (EluCD, Proposition 4.2):

    joint          grad log p(x_t, y)
    marginal       grad log p(x_t)
    conditional    grad log p(y | x_t) = joint - marginal
    on x0_hat      grad log p(y | x0 = x0_hat(x_t)), through the denoiser: what a classifier of clean images gives

The joint one leads to the class; the conditional one away from the others, where there may be nothing. The last one is
the conditional one where there is no noise; what it is off at noise is the price of the denoised image.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.batching import norm
from steersman.denoise import Denoiser
from steersman.errors import InputError
from steersman.files import writing_to
from steersman.guidance.guide import Guide
from steersman.guidance.objective import ClassProbability
from steersman.guidance.step import Denoised, Step
from steersman.guidance.target import Target
from steersman.lab.analysis.figures import draw_fields
from steersman.lab.analysis.parts import Key, stacked
from steersman.lab.report.tables import write_rows
from steersman.mixture import Mixture
from steersman.sampling import Callback, Report, Sampler, sample
from steersman.schedule import CLEAN, Level

__all__ = ["FIELDS", "GRADIENT", "IMAGE", "NORM", "example", "fields", "guided_gradients", "lattice", "write_fields"]

IMAGE, GRADIENT, NORM = "image", "gradient", "norm"
FIELDS = ("joint", "marginal", "conditional", "on x0_hat")
LAST, FINE = 999, 200  # the last time of the mixture's schedule, and pixels along an edge of its density


def guided_gradients(
    denoiser: Denoiser,
    sampler: Sampler,
    guides: Sequence[Guide],
    target: Sequence[Target],
    seeds: Sequence[int],
    *,
    at: Collection[int],
    callbacks: Sequence[Callback] = (),
    **sampling: Any,  # noqa: ANN401
) -> dict[Key, Tensor]:
    """Returns a guided trajectory: at every step the gradient's norm, at some of them the image and the gradient."""
    if not guides:
        raise InputError("guides must have at least 1 guide, got none")
    found = defaultdict(list)

    def look(report: Report) -> None:
        if report.step.repeat:
            return
        update = report.updates[0]
        g = torch.full_like(report.x, float("nan")) if update is None else update.gradient
        found[NORM,].append(norm(g).flatten())
        if report.step.index in at:
            found[IMAGE,].append(denoiser.decode(report.x0).float())
            found[GRADIENT,].append(g.float())

    sample(denoiser, sampler, guides=guides, target=target, seeds=seeds, callbacks=[look, *callbacks], **sampling)
    if not any(bool(norms.isfinite().any()) for norms in found[NORM,]):
        raise InputError("the guide has no gradient at any step; give it a scale other than 0 and a weight above 0")
    return stacked(found)


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
    g, _ = guide.gradient(leaf, mixture(leaf, level), step, targets, mixture)  # pyright: ignore[reportArgumentType]
    return dict(zip(FIELDS, (joint, joint - conditional, conditional, g), strict=True))


def write_fields(out: Path, times: Sequence[float], *, target: int, side: int) -> None:
    """Writes the fields of the example at some times as ``directions.csv``, and draws them over its density."""
    mixture, points, fine = example(), lattice(side), lattice(FINE)
    for time in times:
        if not 0 <= time <= LAST:
            raise InputError(f"times must be 0 to {LAST}, got {time:g}")
    rows, panels, density, means = [], {}, {}, {}
    for level in map(mixture.schedule.at_time, times):
        name = f"t = {float(level.time):g}"
        for field, arrows in fields(mixture, points, level, target).items():
            panels[name, field] = arrows[:, :, 0, 0]
            for point, arrow in zip(points[:, :, 0, 0].tolist(), panels[name, field].tolist(), strict=True):
                rows.append((float(level.time), field, *point, *arrow))
        density[name] = mixture.log_joint(fine, level).logsumexp(1).exp().reshape(FINE, FINE)
        means[name] = level.alpha * mixture.means
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "directions.csv", ("time", "field", "x", "y", "u", "v"), rows)
    draw_fields(out / "directions.png", points[:, :, 0, 0], panels, density, means, target)
