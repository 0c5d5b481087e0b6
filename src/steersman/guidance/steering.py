"""Guides at work during one walk.

Each gradient g is stabilised, weighed, and the update ``p = s w_t g`` enters the step. Ascents take it again and
again, each at the view moved by the updates before:

    p = sum_k p_k,  p_k = s w_t g_k,  g_k = d/d view at view + p_1 + .. + p_(k-1)      (Bansal et al. 2023; TFG, 2024)

How far an update moves the image is reported in the units of the image, whatever the injection. If it changes the
sample at a level by d, the image that the sample lets one expect moves, for data of unit variance, by

    alpha / (alpha^2 + sigma^2) d

At the level t of the step, d is p for the injection sample. At the next level s, it is p for the mean, the change of
the noise for spherical, and what a deterministic step makes of the change of the estimate for noise and denoised:
``alpha_s dx0 + sigma_s deps``. The last step leads to ``alpha = 1, sigma = 0``: there it is the change of the image.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.batching import take, total
from steersman.denoise import Denoiser, Prediction
from steersman.errors import InputError
from steersman.guidance.guide import Guide
from steersman.guidance.injection import Estimate
from steersman.guidance.stabilizer import State
from steersman.guidance.step import Step
from steersman.schedule import Level, broadcast

__all__ = ["Update", "Steering"]

LARGEST = 2.0**50  # of what enters a step; networks sum the squares of what they are given, in float32 up to 2^128


class Update(NamedTuple):
    """What one guide made of one step.

    Attributes:
        value: ``p = s w_t g``, zero where the gradient or what was made of it was not finite.
        gradient: The gradient as it came from the classifier; of several ascents, the first one's.
        stabilized: What the stabilizer made of it.
        log_likelihood: The objective's value; of several ascents, before the first.
        finite: Whether the image's gradients were finite, and what stabilizer, weight and injection made of them.
        moved: How far the image was moved, in its own units; zero until the update enters the step.
    """

    value: Float[Tensor, "B C H W"]
    gradient: Float[Tensor, "B C H W"]
    stabilized: Float[Tensor, "B C H W"]
    log_likelihood: Float[Tensor, " B"]
    finite: Bool[Tensor, " B"]
    moved: Float[Tensor, "B C H W"]


class Steering:
    """Guides at work in one walk of a batch: their stabilizers' states, and what they update.

    Args:
        guides: The guides.
        target: A class each.
        denoiser: The denoiser, which needs no more conditions.

    Attributes:
        rests: Whether none of them updates for now.
        step: The step whose updates were taken last.
    """

    def __init__(self, guides: Sequence[Guide], target: Int[Tensor, " B"] | None, denoiser: Denoiser) -> None:
        self.guides, self.target, self.denoiser = tuple(guides), target, denoiser
        self.rests = False
        self.step: Step | None = None
        self.states: list[State] | None = None
        self.found: list[State] = []
        self.taken: list[Update | None] = [None] * len(self.guides)

    @property
    def updates(self) -> tuple[Update | None, ...]:
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
        updates: Sequence[Update | None] = (),
    ) -> Float[Tensor, " B"]:
        """Returns the sum over the guides.

        Args:
            x_t: Noisy images.
            prediction: What the denoiser made of them.
            level: Their level.
            updates: What the guides made of this level already; those at this very sample tell their likelihood.
        """
        assert self.target is not None, "the loop refuses particles without guides, and guides without targets"
        found = [
            guide.log_likelihood(x_t, prediction, level, self.target, self.denoiser)
            if update is None or guide.injection.moment == "sample"
            else update.log_likelihood
            for guide, update in zip_longest(self.guides, updates)
        ]
        return total(torch.stack(found, 1))

    def _asked(self, step: Step, *, before: bool) -> list[int]:
        """Returns which guides act now: before the step's evaluations of the denoiser, or at one of them."""
        moments = ("sample",) if before else ("estimate",) if step.stage else ("estimate", "mean", "deviation")
        return [
            place
            for place, guide in enumerate(self.guides)
            if guide.injection.moment in moments and guide.active(step) and not self.rests
        ]

    def needs_denoiser(self, step: Step) -> bool:
        """Whether the denoiser must be asked before the step, for updates that enter there."""
        return any(self.guides[place].needs_denoiser for place in self._asked(step, before=True))

    def differentiates_denoiser(self, step: Step, *, before: bool = False) -> bool:
        """Whether the denoiser must be asked with gradients at this step, or before it."""
        return any(self.guides[place].differentiates_denoiser for place in self._asked(step, before=before))

    @property
    def differentiates_sample(self) -> bool:
        """Whether a guide takes its gradient with respect to the noisy sample."""
        return any(guide.wrt == "x_t" for guide in self.guides)

    def sample(
        self, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, step: Step
    ) -> Float[Tensor, "B C H W"]:
        """Returns the sample to step from, with the updates that enter before the denoiser is asked."""
        moved = x_t.detach()
        for place, last in self._turns(x_t, step, before=True):
            update = self._push(place, x_t, prediction, step, retain_graph=not last)
            after = self.guides[place].injection.sample(moved, update.value)
            moved = self._entered(place, moved, after, step, step.level)
        return moved

    def estimate(
        self, x_t: Float[Tensor, "B C H W"], prediction: Prediction, estimate: Estimate, step: Step
    ) -> Estimate:
        """Takes each active guide's update at a level, and returns the estimate with those that enter there.

        The stabilizers' states move on in the first stage of a step; its second sees them as the step found them.
        """
        found = estimate.x0
        for place, last in self._turns(x_t, step, before=False):
            guide = self.guides[place]
            moved = estimate.x0 - found if guide.sees_guided else None
            update = self._push(place, x_t, prediction, step, moved=moved, retain_graph=not last)
            after = guide.injection.estimate(estimate, update.value, step.level)
            estimate = self._estimated(place, estimate, after, step)
        return estimate

    def mean(self, mean: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the step's mean with the updates that enter there."""
        for place, update in enumerate(self.taken):
            if update is not None and self.step is not None:
                after = self.guides[place].injection.mean(mean, update.value)
                mean = self._entered(place, mean, after, self.step, self.step.next)
        return mean

    def check(self, *, noisy: bool | None) -> None:
        """Refuses guides that a sampler cannot follow.

        Args:
            noisy: Whether its steps end with noise, or None if that is not known.

        Raises:
            InputError: A update would turn that noise, but there is none.
        """
        if noisy is False and any(guide.injection.moment == "deviation" for guide in self.guides):
            raise InputError(
                "injection must not be spherical with a sampler whose steps end without noise, which spherical turns; "
                "use a sampler with noise, such as ddpm, or ddim with eta above 0"
            )

    def deviation(
        self, deviation: Float[Tensor, "B C H W"] | None, variance: Float[Tensor, "..."] | None, step: Step
    ) -> Float[Tensor, "B C H W"] | None:
        """Returns the step's own noise with the updates that enter there; None into a clean image.

        Raises:
            InputError: A update enters there, but the sampler draws no noise after its mean.
        """
        if deviation is None or variance is None:
            self.check(noisy=not step.next.sigma > 0)
            return deviation
        for place, update in enumerate(self.taken):
            if update is not None:
                after = self.guides[place].injection.deviation(deviation, update.value, variance)
                deviation = self._entered(place, deviation, after, step, step.next)
        return deviation

    def _entered(
        self,
        place: int,
        before: Float[Tensor, "B C H W"],
        after: Float[Tensor, "B C H W"],
        step: Step,
        level: Level,
    ) -> Float[Tensor, "B C H W"]:
        """Returns what a guide's update made of a sample, mean or noise; for images where that overflows, what was.

        Args:
            place: The guide's place.
            before: The sample, mean or noise without the update.
            after: The same with it.
            step: The step.
            level: The level of what was changed.
        """
        if after is before:
            return before
        finite = _usable(after)
        after = torch.where(_lead(finite, after), after, before)
        self._keep_record(place, finite, after - before, step, level)
        return after

    def _estimated(self, place: int, before: Estimate, after: Estimate, step: Step) -> Estimate:
        """Returns the same of an estimate, whose change moves what a deterministic step would lead to."""
        if after is before:
            return before
        finite = _usable(after.x0) & _usable(after.eps)
        x0, eps = (torch.where(_lead(finite, new), new, old) for new, old in zip(after[:2], before[:2], strict=True))
        alpha, sigma = (broadcast(value, x0) for value in step.next[:2])
        self._keep_record(place, finite, alpha * (x0 - before.x0) + sigma * (eps - before.eps), step, step.next)
        return after._replace(x0=x0, eps=eps)

    def _keep_record(
        self, place: int, finite: Bool[Tensor, " B"], change: Float[Tensor, "B C H W"], step: Step, level: Level
    ) -> None:
        """Writes down how far a sample's change moves the images, and whose update was dropped; of a first stage."""
        update = self.taken[place]
        if step.stage == 0 and update is not None:
            alpha, sigma = (broadcast(value, change) for value in level[:2])
            value = torch.where(_lead(finite, update.value), update.value, 0)
            moved = alpha / (alpha**2 + sigma**2) * change
            self.taken[place] = update._replace(value=value, finite=update.finite & finite, moved=moved)

    def _turns(self, x_t: Float[Tensor, "B C H W"], step: Step, *, before: bool) -> Iterator[tuple[int, bool]]:
        """Yields the guides' places that act now, and of each whether none after it differentiates the denoiser."""
        if self.states is None:
            self.states = [guide.stabilizer.init(x_t) for guide in self.guides]
        if step.stage == 0:
            self.step, self.found = step, list(self.states)
            for place, guide in enumerate(self.guides):
                if (guide.injection.moment == "sample") == before:
                    self.taken[place] = None
        asked = self._asked(step, before=before)
        through = sum(self.guides[place].differentiates_denoiser for place in asked)
        for place in asked:
            through -= self.guides[place].differentiates_denoiser
            yield place, through == 0

    def _push(
        self,
        place: int,
        x_t: Float[Tensor, "B C H W"],
        prediction: Prediction | None,
        step: Step,
        *,
        moved: Float[Tensor, "B C H W"] | None = None,
        retain_graph: bool,
    ) -> Update:
        """Takes a guide's update, and keeps it and the stabilizer's state, but for the second stage of a step."""
        guide, state = self.guides[place], self.found[place]
        first, state = self._ascend(guide, x_t, prediction, step, state, moved, retain_graph=retain_graph)
        value, finite = first.value, first.finite
        for _ in range(guide.ascents - 1):
            at = value if moved is None else moved + value
            more, state = self._ascend(guide, x_t, prediction, step, state, at, retain_graph=retain_graph)
            value, finite = value + more.value, finite & more.finite
        update = first._replace(value=value, finite=finite)
        if step.stage == 0:
            assert self.states is not None, "the guides' turns began with them"
            self.states[place], self.taken[place] = state, update
        return update

    def _ascend(
        self,
        guide: Guide,
        x_t: Float[Tensor, "B C H W"],
        prediction: Prediction | None,
        step: Step,
        state: State,
        moved: Float[Tensor, "B C H W"] | None,
        *,
        retain_graph: bool,
    ) -> tuple[Update, State]:
        """Returns the update of one gradient at the moved classifier input, and the stabilizer's next state."""
        assert self.target is not None, "the loop refuses guides without targets"
        g, log_likelihood = guide.gradient(
            x_t, prediction, step, self.target, self.denoiser, moved=moved, retain_graph=retain_graph
        )
        finite = g.isfinite().flatten(1).all(1)
        safe = torch.where(_lead(finite, g), g, 0)
        with torch.no_grad():
            stable, after = guide.stabilizer.update(safe, state)
            weight = guide.weight(step, x_t, prediction, stable)
            value = (guide.scale * weight * stable).to(g.dtype)
            # An update or a state may overflow although the gradient did not: both are dropped as a gradient is.
            finite = finite & _all_finite((value, after))
            value = torch.where(_lead(finite, g), value, 0)
        return Update(value, g, stable.to(g.dtype), log_likelihood, finite, torch.zeros_like(value)), _keep(
            finite, after, state
        )


def _lead(mask: Bool[Tensor, " B"], like: Tensor) -> Bool[Tensor, "B ..."]:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def _usable(x: Float[Tensor, "B C H W"]) -> Bool[Tensor, " B"]:
    """Returns of each image whether all of its values are finite, and no larger than a network can take."""
    return (x.abs() <= LARGEST).flatten(1).all(1)


def _all_finite(held: Tensor | tuple) -> Bool[Tensor, " B"] | bool:
    """Returns of each image whether all of its values are finite; true for an empty state."""
    if isinstance(held, Tensor):
        return held.isfinite().flatten(1).all(1)
    found: Bool[Tensor, " B"] | bool = True
    for each in held:
        found = _all_finite(each) & found
    return found


def _keep(finite: Bool[Tensor, " B"], new: State, old: State) -> State:
    """Returns the new state, and the old one for images whose gradient was dropped."""
    return tuple(
        _keep(finite, n, o) if isinstance(n, tuple) else torch.where(_lead(finite, n), n, o)
        for n, o in zip(new, old, strict=True)
    )
