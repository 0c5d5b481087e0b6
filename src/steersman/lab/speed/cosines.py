"""Whether networks give in a narrower type what they give in float32, on inputs of the run itself.

A few images are drawn without guidance, in a few steps. At each noise level that they pass, an image's cosine

    cos(a, b) = <a, b> / (|a| |b|)

is taken of what a network gives in float32 and in the other type:

    classifier    v, the gradient of the guide's objective with respect to the image that the classifier sees
    denoiser      x0_hat; and J^T v, where the gradient passes the denoiser or its decoder, with J the derivative of
                  that image with respect to x_t, or to the latents that the guide sees

Image and v are float32's in both, so that each network answers for itself alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import halving, is_out_of_memory
from steersman.denoise import Conditioned
from steersman.guidance.guide import Guide, after_decoding
from steersman.guidance.step import Step
from steersman.lab.session import Session, Target
from steersman.sampling import Report
from steersman.sampling.noise import SeededNoise

__all__ = ["Given"]

IMAGES, STEPS = 4, 8  # how many are drawn, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """What a guide's classifier was shown at a level, and what came back.

    Attributes:
        place: Which of the session's guides it is.
        input: The sample that it saw, latent or image.
        image: The image that it is decoded to.
        v: The objective's gradient with respect to the image.
        pulled: ``J^T v``; None where the image is what the gradient is with respect to.
    """

    place: int
    input: Float[Tensor, "B *shape"]
    image: Float[Tensor, "B *image"]
    v: Float[Tensor, "B *image"]
    pulled: Float[Tensor, "B *shape"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """Images on their way at a level.

    Attributes:
        targets: Their targets.
        x_t: Their noisy samples.
        step: The step from there.
        x0_hat: What the denoiser predicts.
        asked: What the guides' classifiers were shown.
    """

    targets: Sequence[Target]
    x_t: Float[Tensor, "B *shape"]
    step: Step
    x0_hat: Float[Tensor, "B *shape"]
    asked: list[_Asked] = field(default_factory=list)


class Given:
    """What a run's networks give in float32 on inputs of its own.

    Args:
        session: The run with its networks in float32.

    Attributes:
        states: The inputs, and what was given; None where the memory does not hold one image.
    """

    def __init__(self, session: Session) -> None:
        run = session.run
        seeds = range(run.seed, run.seed + min(run.num, IMAGES))
        jobs = [(target, seed) for seed in seeds for target in session.targets][:IMAGES]
        self.states: list[_State] | None = None
        for each in (session.denoiser, *session.classifiers):
            each.block = None
        try:
            self.states, _ = halving(partial(_states, session, jobs), len(jobs), tell=lambda _: None)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise

    def cosines(self, session: Session, parts: Collection[str]) -> Mapping[str, float]:
        """Returns the least cosine of each part; none of a part of which nothing can be compared.

        Args:
            session: The same run with its networks in another type.
            parts: Which parts, of ``denoiser`` and ``classifier``.
        """
        for each in (session.denoiser, *session.classifiers):
            each.block = None
        found: dict[str, list[float]] = {part: [] for part in parts}
        try:
            for state in self.states or ():
                if "denoiser" in parts:
                    found["denoiser"] += _of_denoiser(session, state)
                if "classifier" in parts:
                    found["classifier"] += _of_classifiers(session, state)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return {}
        return {part: round(min(each), 4) for part, each in found.items() if each}


def _states(session: Session, jobs: Sequence[tuple[Target, int]], size: int) -> list[_State]:
    """Returns the states of some images, so many at a time."""
    return [each for first in range(0, len(jobs), size) for each in _passed(session, jobs[first : first + size])]


@torch.no_grad()
def _passed(session: Session, jobs: Sequence[tuple[Target, int]]) -> list[_State]:
    """Returns the states that a batch passes on its way to clean images, after the noise that it begins from."""
    reports: list[Report] = []
    steps = min(STEPS, session.run.recipe.sampling()["steps"])
    session.samples(jobs, [reports.append], guided=False, steps=steps, recurrence=None)
    first, targets = reports[0].step, [target for target, _ in jobs]
    noise = SeededNoise([seed for _, seed in jobs], session.denoiser.shape, session.run.device, torch.float32)
    start = noise("start") * session.denoiser.schedule.start(first.level)
    passed = [(before.x, after.step) for before, after in zip(reports, reports[1:], strict=False)]
    denoiser = _told(session, targets)
    states = [
        _State(targets=targets, x_t=x_t, step=step, x0_hat=_x0_hat(session, denoiser, x_t, step))
        for x_t, step in passed or [(start, first)]
    ]
    for place, guide in enumerate(_guides(session)):
        active = [state for state in states if guide.active(state.step)]
        for state in active or (states if guide.scale else ()):
            leaf, input, image = _image(guide, denoiser, state.x_t, state.step)
            v = _gradient(guide, image, _indices(session, targets), state.step)
            if v is None:
                continue
            passes = guide.differentiates_denoiser or denoiser.latent
            pulled = torch.autograd.grad(image, leaf, v)[0] if passes else None
            state.asked.append(_Asked(place=place, input=input.detach(), image=image.detach(), v=v, pulled=pulled))
    return states


@torch.no_grad()
def _of_denoiser(session: Session, state: _State) -> list[float]:
    """Returns the least cosine of the prediction, and of each gradient that passes the denoiser or its decoder."""
    denoiser, guides = _told(session, state.targets), _guides(session)
    found = [_cosine(_x0_hat(session, denoiser, state.x_t, state.step), state.x0_hat)]
    for asked in state.asked:
        if asked.pulled is not None:
            leaf, _, image = _image(guides[asked.place], denoiser, state.x_t, state.step, asked.input)
            found.append(_cosine(torch.autograd.grad(image, leaf, asked.v)[0], asked.pulled))
    return found


def _of_classifiers(session: Session, state: _State) -> list[float]:
    """Returns the least cosine of each guide's gradient."""
    targets, guides = _indices(session, state.targets), _guides(session)
    given = [(each.v, _gradient(guides[each.place], each.image, targets, state.step)) for each in state.asked]
    return [_cosine(v, other) for v, other in given if other is not None]


def _told(session: Session, targets: Sequence[Target]) -> Conditioned:
    return Conditioned(session.denoiser, session.told(targets))


def _indices(session: Session, targets: Sequence[Target]) -> Int[Tensor, " B"]:
    return torch.tensor([each.guide for each in targets], device=session.run.device)


def _guides(session: Session) -> list[Guide]:
    """Returns a session's guides as they act in sampling."""
    latent = getattr(session.denoiser, "latent", False)
    return [after_decoding(guide) if latent else guide for guide in session.guides]


def _x0_hat(session: Session, denoiser: Conditioned, x_t: Tensor, step: Step) -> Tensor:
    """Returns the prediction as a step uses it."""
    x0_hat = denoiser(x_t, step.level).x0_hat
    return x0_hat.clamp(-1, 1) if session.run.recipe.sampling()["clip"] and not denoiser.latent else x0_hat


def _image(
    guide: Guide, denoiser: Conditioned, x_t: Tensor, step: Step, input: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what a guide's gradient is with respect to, what the guide sees, and the image of it, with a graph.

    Args:
        guide: The guide.
        denoiser: The denoiser.
        x_t: Noisy samples.
        step: The step from there.
        input: What it sees, where its gradient is with respect to that and it is known.
    """
    through = guide.wrt == "x_t"
    leaf = x_t.detach().requires_grad_(through)
    if through or input is None:
        with torch.set_grad_enabled(guide.differentiates_denoiser):
            prediction = denoiser(leaf, step.level) if guide.input.needs_denoiser else None
        with torch.set_grad_enabled(through):
            input = guide.input(leaf, prediction, step.level, denoiser)
    if not through:
        leaf = input = input.detach().requires_grad_()
    with torch.enable_grad():
        return leaf, input, denoiser.decode(input)


@torch.enable_grad()
def _gradient(guide: Guide, image: Tensor, targets: Int[Tensor, " B"], step: Step) -> Tensor | None:
    """Returns the gradient of a guide's objective with respect to an image; None for one that has none."""
    image = image.detach().requires_grad_()
    log_likelihood = guide.objective(image, targets, step.level)
    return torch.autograd.grad(log_likelihood.sum(), image)[0] if log_likelihood.requires_grad else None


def _cosine(a: Float[Tensor, "B *shape"], b: Float[Tensor, "B *shape"]) -> float:
    """Returns the least cosine of an image's two values; 1 where they are equal, 0 where one is zero or not finite."""
    a, b = (each.detach().cpu().double().flatten(1) for each in (a, b))
    cosine = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).nan_to_num(0, 0, 0)
    return float(torch.where((a == b).all(1), 1, cosine).min())
