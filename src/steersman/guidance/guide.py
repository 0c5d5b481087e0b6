"""A guide: one choice on each axis, frozen; and guides at work during one walk.

At a level, a guide takes the gradient g of ``log p(y | view)`` by one of two routes:

    direct     g = d/d view, the view detached: the denoiser is never differentiated
    through    g = d/d x_t, back through the denoiser where the view depends on it

stabilises it, weighs it, and lets the push ``p = s w_t g`` into the step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.denoise import Denoiser, Prediction
from steersman.errors import InputError, unknown
from steersman.guidance.injection import Estimate, Injection, Mean
from steersman.guidance.objective import Objective
from steersman.guidance.stabilizer import Identity, Stabilizer, State
from steersman.guidance.step import Step
from steersman.guidance.strength import Strength, Variance
from steersman.guidance.view import Denoised, View
from steersman.rows import take
from steersman.schedule import Level

__all__ = ["Guide", "Push", "Route", "Steering"]

Route = Literal["direct", "through"]


class Push(NamedTuple):
    """What one guide made of one step.

    Attributes:
        value: ``p = s w_t g``, zero where the gradient was not finite.
        gradient: The gradient as it came from the classifier.
        log_likelihood: The objective's value.
        finite: Whether the image's gradient was finite.
    """

    value: Float[Tensor, "B C H W"]
    gradient: Float[Tensor, "B C H W"]
    log_likelihood: Float[Tensor, " B"]
    finite: Bool[Tensor, " B"]


@dataclass(frozen=True, kw_only=True)
class Guide:
    """One choice on each axis of the design space.

    Attributes:
        objective: What it makes larger; holds the classifier.
        scale: ``s``; comparable only among guides with the same route and injection. At 0 it takes no gradient.
        view: What the classifier sees.
        route: What the gradient is taken with respect to.
        stabilizer: What is done to the gradient from step to step.
        strength: Its weight over time.
        injection: Where it enters the step.
    """

    objective: Objective
    scale: float = 1.0
    view: View = field(default_factory=Denoised)
    route: Route = "direct"
    stabilizer: Stabilizer = field(default_factory=Identity)
    strength: Strength = field(default_factory=Variance)
    injection: Injection = field(default_factory=Mean)

    def __post_init__(self) -> None:
        if self.route not in get_args(Route):
            raise unknown("route", self.route, get_args(Route))

    @property
    def needs_denoiser(self) -> bool:
        """Whether its push depends on the prediction."""
        return self.view.needs_denoiser or self.strength.needs_denoiser

    @property
    def differentiates_denoiser(self) -> bool:
        """Whether its gradient flows back through the denoiser."""
        return self.route == "through" and self.view.needs_denoiser

    @torch.enable_grad()
    def gradient(
        self,
        x_t: Float[Tensor, "B C H W"],
        prediction: Prediction | None,
        step: Step,
        target: Int[Tensor, " B"],
        denoiser: Denoiser,
        *,
        retain_graph: bool = False,
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, " B"]]:
        """Returns the gradient by the guide's route, and the log-likelihood.

        Args:
            x_t: The noisy images; on the route ``through``, the leaf from which the prediction was computed.
            prediction: What the denoiser made of them, where the view needs it.
            step: Where in the walk.
            target: A class each.
            denoiser: Turns the view into the image that the classifier sees; a view may ask it for more.
            retain_graph: Whether another guide differentiates the same prediction after this one.
        """
        with torch.set_grad_enabled(self.route == "through"):
            view = self.view(x_t, prediction, step.level, denoiser)
        if self.route == "direct":
            view = view.detach().requires_grad_()
        log_likelihood = self.objective(denoiser.decode(view), target, step.level)
        leaf = view if self.route == "direct" else x_t
        (g,) = torch.autograd.grad(log_likelihood.sum(), leaf, retain_graph=retain_graph)
        return g, log_likelihood.detach()

    @torch.no_grad()
    def log_likelihood(
        self,
        x_t: Float[Tensor, "B C H W"],
        prediction: Prediction,
        level: Level,
        target: Int[Tensor, " B"],
        denoiser: Denoiser,
    ) -> Float[Tensor, " B"]:
        """Returns what the gradient is taken of, alone; the arguments are `gradient`'s."""
        return self.objective(denoiser.decode(self.view(x_t, prediction, level, denoiser)), target, level)


class Steering:
    """Guides at work in one walk of a batch: their stabilizers' states, and what they push.

    Args:
        guides: The guides.
        target: A class each.
        denoiser: The denoiser, which needs no more conditions.
    """

    def __init__(self, guides: Sequence[Guide], target: Int[Tensor, " B"] | None, denoiser: Denoiser) -> None:
        self.guides, self.target, self.denoiser = tuple(guides), target, denoiser
        self.states: list[State] | None = None
        self.found: list[State] = []
        self.taken: list[Push | None] = [None] * len(self.guides)

    @property
    def pushes(self) -> tuple[Push | None, ...]:
        """What each guide made of the step, None where it was not active."""
        return tuple(self.taken)

    def take(self, rows: Int[Tensor, " N"]) -> None:
        """Goes on with those rows of the batch."""
        self.states, self.found, self.taken = (take(held, rows) for held in (self.states, self.found, self.taken))
        self.target = take(self.target, rows)

    def undo(self) -> None:
        """Takes the stabilizers' states back to where the step found them."""
        self.states = list(self.found)

    def log_likelihood(
        self,
        x_t: Float[Tensor, "B C H W"],
        prediction: Prediction,
        level: Level,
        pushes: Sequence[Push | None] = (),
    ) -> Float[Tensor, " B"]:
        """Returns the sum over the guides.

        Args:
            x_t: Noisy images.
            prediction: What the denoiser made of them.
            level: Their level.
            pushes: What the guides made of this level already; those at this very sample tell their likelihood.
        """
        assert self.target is not None, "the loop refuses particles without guides, and guides without targets"
        return torch.stack(
            [
                guide.log_likelihood(x_t, prediction, level, self.target, self.denoiser)
                if push is None or guide.injection.moment == "sample"
                else push.log_likelihood
                for guide, push in zip_longest(self.guides, pushes)
            ]
        ).sum(0)

    def _asked(self, step: Step, *, before: bool) -> list[int]:
        """Returns which guides act now: before the step's evaluations of the denoiser, or at one of them."""
        moments = ("sample",) if before else ("estimate",) if step.stage else ("estimate", "mean", "deviation")
        return [
            place
            for place, guide in enumerate(self.guides)
            if guide.scale and guide.injection.moment in moments and guide.strength.active(step)
        ]

    def needs_denoiser(self, step: Step) -> bool:
        """Whether the denoiser must be asked before the step, for pushes that enter there."""
        return any(self.guides[place].needs_denoiser for place in self._asked(step, before=True))

    def differentiates_denoiser(self, step: Step, *, before: bool = False) -> bool:
        """Whether the denoiser must be asked with gradients at this step, or before it."""
        return any(self.guides[place].differentiates_denoiser for place in self._asked(step, before=before))

    @property
    def differentiates_sample(self) -> bool:
        """Whether a guide takes its gradient with respect to the noisy sample."""
        return any(guide.route == "through" for guide in self.guides)

    def sample(
        self, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, step: Step
    ) -> Float[Tensor, "B C H W"]:
        """Returns the sample to step from, with the pushes that enter before the denoiser is asked."""
        moved = x_t.detach()
        for guide, push in self._take(x_t, prediction, step, before=True):
            moved = guide.injection.sample(moved, push.value)
        return moved

    def estimate(
        self, x_t: Float[Tensor, "B C H W"], prediction: Prediction, estimate: Estimate, step: Step
    ) -> Estimate:
        """Takes each active guide's push at a level, and returns the estimate with those that enter there.

        The stabilizers' states move on in the first stage of a step; its second sees them as the step found them.
        """
        for guide, push in self._take(x_t, prediction, step, before=False):
            estimate = guide.injection.estimate(estimate, push.value, step.level)
        return estimate

    def mean(self, mean: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the step's mean with the pushes that enter there."""
        for guide, push in zip(self.guides, self.taken, strict=True):
            if push is not None:
                mean = guide.injection.mean(mean, push.value)
        return mean

    def deviation(
        self, deviation: Float[Tensor, "B C H W"] | None, variance: Float[Tensor, "..."] | None, step: Step
    ) -> Float[Tensor, "B C H W"] | None:
        """Returns the step's own noise with the pushes that enter there; None into a clean image.

        Raises:
            InputError: A push enters there, but the sampler draws no noise after its mean.
        """
        if deviation is None or variance is None:
            if step.next.sigma > 0 and any(guide.injection.moment == "deviation" for guide in self.guides):
                raise InputError(
                    "injection: spherical turns the noise that a step ends with, but this sampler's steps end without; "
                    "allowed: a sampler with noise, such as ddpm, or ddim with eta above 0"
                )
            return deviation
        for guide, push in zip(self.guides, self.taken, strict=True):
            if push is not None:
                deviation = guide.injection.deviation(deviation, push.value, variance)
        return deviation

    def _take(
        self, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, step: Step, *, before: bool
    ) -> Iterator[tuple[Guide, Push]]:
        """Yields the guides that act now, each with its push."""
        if self.states is None:
            self.states = [guide.stabilizer.init(x_t) for guide in self.guides]
        if step.stage == 0:
            self.found = list(self.states)
            for place, guide in enumerate(self.guides):
                if (guide.injection.moment == "sample") == before:
                    self.taken[place] = None
        asked = self._asked(step, before=before)
        through = sum(self.guides[place].differentiates_denoiser for place in asked)
        for place in asked:
            guide = self.guides[place]
            through -= guide.differentiates_denoiser
            push, state = self._push(guide, x_t, prediction, step, self.found[place], retain_graph=through > 0)
            if step.stage == 0:
                self.states[place], self.taken[place] = state, push
            yield guide, push

    def _push(
        self,
        guide: Guide,
        x_t: Float[Tensor, "B C H W"],
        prediction: Prediction | None,
        step: Step,
        state: State,
        *,
        retain_graph: bool,
    ) -> tuple[Push, State]:
        assert self.target is not None, "the loop refuses guides without targets"
        g, log_likelihood = guide.gradient(x_t, prediction, step, self.target, self.denoiser, retain_graph=retain_graph)
        finite = g.isfinite().flatten(1).all(1)
        safe = torch.where(_lead(finite, g), g, 0)
        with torch.no_grad():
            stable, moved = guide.stabilizer.update(safe, state)
            weight = guide.strength(step, x_t, prediction, stable)
            value = torch.where(_lead(finite, g), guide.scale * weight * stable, 0)
        return Push(value.to(g.dtype), g, log_likelihood, finite), _keep(finite, moved, state)


def _lead(mask: Bool[Tensor, " B"], like: Tensor) -> Bool[Tensor, "B ..."]:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def _keep(finite: Bool[Tensor, " B"], new: State, old: State) -> State:
    """Returns the new state, and the old one for images whose gradient was dropped."""
    return tuple(
        _keep(finite, n, o) if isinstance(n, tuple) else torch.where(_lead(finite, n), n, o)
        for n, o in zip(new, old, strict=True)
    )
