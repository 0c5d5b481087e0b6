"""Guides: one choice on each axis, and their work during sampling.

At a level, a guide takes the gradient g of ``log p(y | input)`` with respect to ``x0_hat``, that is, to the classifier
input, detached, so that the denoiser is never differentiated; or with respect to ``x_t``, back through the denoiser
where the input depends on it. Each gradient is stabilised and weighed, and the update ``p = s w_t g`` enters the step.
With several ascents each gradient is taken at the input moved by the updates before it:

    p = sum_k p_k,  p_k = s w_t g_k,  g_k = d/d input at input + p_1 + .. + p_(k-1)    (Bansal et al. 2023; TFG, 2024)

How far an update moves the image is reported in the units of the image, whatever the injection. If it changes the
sample at a level by d, the expected image moves, for data of unit variance, by

    alpha / (alpha^2 + sigma^2) d

At the level t of the step, d is p for the injection sample. At the next level s, it is p for the mean, the change of
the noise for spherical, and what a deterministic step makes of the change of the estimate for noise and denoised:
``alpha_s dx0 + sigma_s deps``. The last step leads to ``alpha = 1, sigma = 0``: there it is the change of the image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from itertools import zip_longest
from numbers import Real
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.batching import broadcast, take, total
from steersman.denoise import Denoiser, Prediction
from steersman.errors import InputError, shown, unknown
from steersman.guidance.objective import Objective
from steersman.guidance.stabilizer import Identity, Stabilizer, State
from steersman.guidance.step import (
    Batch,
    ClassifierInput,
    Denoised,
    DenoisedImage,
    Estimate,
    Injection,
    Mean,
    PerImage,
    Step,
    Targets,
)
from steersman.guidance.weight import Variance, Weight
from steersman.schedule import Level
from steersman.typed import brief, finite

__all__ = ["Guide", "Steering", "Update", "Wrt", "after_decoding"]

Wrt = Literal["x0_hat", "x_t"]

PARTS = {
    "objective": "ClassProbability(classifier=...)",
    "input": "Denoised()",
    "stabilizer": "Ema()",
    "weight": "Variance()",
    "injection": "Mean()",
}
"""The parts of a guide, each with an example."""

LARGEST = 2.0**50  # of what enters a step; networks sum squares of their input, in float32 up to 2^128


@dataclass(frozen=True, kw_only=True)
@finite
class Guide:
    """One choice on each axis of the design space.

    Attributes:
        objective: The log-likelihood that guidance maximises; it holds the classifier.
        scale: The guidance scale ``s``, comparable only among guides with the same weight, injection and ``wrt``. At 0
            no gradient is taken.
        input: The classifier input: the noisy, denoised, lookahead or rescaled image.
        wrt: ``x0_hat`` for the gradient with respect to the classifier input, which never differentiates the
            denoiser; ``x_t`` for the gradient with respect to the noisy sample.
        ascents: The number of gradients in a step, at least 1. More than one needs the gradient with respect to
            ``x0_hat``, a classifier input of the denoised image and the injection `DenoisedImage`.
        stabilizer: How the gradients of successive steps are combined.
        weight: The guidance weight ``w_t`` over time.
        injection: Where the guidance update enters the step.
        weighs: Whether its log-likelihood weighs particles.

    The repr shows the settings that differ from their defaults.

    Example:
        >>> import steersman as sm
        >>> from steersman.sampling import sample
        >>> objective = sm.ClassProbability(classifier=sm.load_classifier("zoo:mnist-lenet"))
        >>> guide = sm.Guide(objective=objective, scale=20.0, stabilizer=sm.Ema(beta=0.9))
        >>> guide
        Guide(objective=ClassProbability(classifier=Classifier(Sequential, 10 classes: 0 - zero, 1 - one, 2 - two, …)),
              scale=20.0, stabilizer=Ema(beta=0.9))
        >>> sample(sm.load_denoiser("zoo:mnist"), sm.DDPM(), guides=[guide], target="7", seeds=[0, 1], steps=2).shape
        torch.Size([2, 1, 28, 28])
    """

    objective: Objective
    scale: float = 1.0
    input: ClassifierInput = field(default_factory=Denoised)
    wrt: Wrt = "x0_hat"
    ascents: int = 1
    stabilizer: Stabilizer = field(default_factory=Identity)
    weight: Weight = field(default_factory=Variance)
    injection: Injection = field(default_factory=Mean)
    weighs: bool = True

    def __repr__(self) -> str:
        return brief(self)

    def __post_init__(self) -> None:
        for axis, example in PARTS.items():
            part = getattr(self, axis)
            if isinstance(part, str) or hasattr(part, "preprocess"):  # a name, or the classifier itself
                raise InputError(f"{axis} of a guide must be an object such as steersman.{example}, got {shown(part)}")
        if not isinstance(self.scale, Real):
            raise InputError(f"scale of a guide must be a number, got {shown(self.scale)}")
        if self.wrt not in get_args(Wrt):
            raise unknown("wrt", self.wrt, get_args(Wrt))
        if self.ascents < 1:
            raise InputError(f"wrt.ascents must be at least 1, got {self.ascents}")
        again = self.wrt == "x0_hat" and self.input.needs_denoiser and isinstance(self.injection, DenoisedImage)
        if self.ascents > 1 and not again:
            raise InputError(
                "wrt.ascents must be 1 unless wrt is x0_hat, the input is the denoised image and the "
                f"injection is denoised, got {self.ascents}"
            )

    @property
    def needs_denoiser(self) -> bool:
        """Whether its update depends on the prediction."""
        return self.input.needs_denoiser or self.weight.needs_denoiser

    @property
    def differentiates_denoiser(self) -> bool:
        """Whether its gradient flows back through the denoiser."""
        return self.wrt == "x_t" and self.input.needs_denoiser

    def active(self, step: Step) -> bool:
        """Whether it can change a step; asked before anything is computed."""
        if not self.scale or (self.injection.needs_signal and not bool((step.level.alpha > 0).all())):
            return False
        return self.weight.active(step)

    @torch.enable_grad()
    def gradient(
        self,
        x_t: Batch,
        prediction: Prediction | None,
        step: Step,
        target: Targets,
        denoiser: Denoiser,
        *,
        moved: Batch | None = None,
        retain_graph: bool = False,
    ) -> tuple[Batch, PerImage]:
        """Returns the gradient and the log-likelihood.

        With ``wrt="x_t"``, ``x_t`` is the leaf from which the prediction was computed. ``moved`` is by how much the
        input was moved in this step already; ``retain_graph`` keeps the prediction's graph for another guide.
        """
        with torch.set_grad_enabled(self.wrt == "x_t"):
            input = self.input(x_t, prediction, step.level, denoiser)
            input = input if moved is None else input + moved
        if self.wrt == "x0_hat":
            input = input.detach().requires_grad_()
        log_likelihood = self.objective(denoiser.decode(input), target, step.level)
        if not log_likelihood.requires_grad:
            raise InputError(
                "objective must be differentiable, got one without a gradient; set scale 0 if it is only to weigh "
                "particles"
            )
        leaf = input if self.wrt == "x0_hat" else x_t
        (g,) = torch.autograd.grad(log_likelihood.sum(), leaf, retain_graph=retain_graph)
        return g, log_likelihood.detach()

    @torch.no_grad()
    def log_likelihood(
        self, x_t: Batch, prediction: Prediction, level: Level, target: Targets, denoiser: Denoiser
    ) -> PerImage:
        """Returns the log-likelihood alone; the arguments are those of `gradient`."""
        return self.objective(denoiser.decode(self.input(x_t, prediction, level, denoiser)), target, level)


@dataclass(frozen=True, kw_only=True)
class _Clipped:
    """An objective of the image clipped to [-1, 1]."""

    objective: Objective

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        return self.objective(image.clamp(-1, 1), target, level)


def after_decoding(guide: Guide) -> Guide:
    """Returns the same guide for latents z: it clips the image ``Dec(z)`` in place of z, which has no range."""
    if not getattr(guide.input, "clip", False) or not is_dataclass(guide.input):
        return guide
    return replace(guide, input=replace(guide.input, clip=False), objective=_Clipped(objective=guide.objective))


class Update(NamedTuple):
    """The update of one guide in one step.

    Attributes:
        value: ``p = s w_t g``, zero where it was not finite.
        gradient: The gradient of the classifier; of several ascents, the first one's.
        stabilized: The gradient after the stabilizer.
        log_likelihood: The objective's value; of several ascents, before the first.
        finite: Whether the image's gradients were finite, and the update after stabilizer, weight and injection.
        moved: How far the image was moved, in its own units; zero until the update enters the step.
    """

    value: Batch
    gradient: Batch
    stabilized: Batch
    log_likelihood: PerImage
    finite: Bool[Tensor, " B"]
    moved: Batch


class Steering:
    """Guides at work while a batch is sampled: their stabilizers' states, and their updates.

    Attributes:
        paused: Whether no guide acts for now.
        differentiates_sample: Whether a guide takes its gradient with respect to the noisy sample.
        updates: The update of each guide in the last step, None where it was not active.
        states: The states of the guides' stabilizers, None before the first step.
    """

    def __init__(self, guides: Sequence[Guide], target: Targets | None, denoiser: Denoiser) -> None:
        self.guides, self.target, self.denoiser = tuple(guides), target, denoiser
        self.paused, self.differentiates_sample = False, any(guide.wrt == "x_t" for guide in guides)
        self.updates: tuple[Update | None, ...] = (None,) * len(self.guides)
        self.states: list[State] | None = None
        self._states_before: list[State] = []
        self._step: Step | None = None

    def take(self, rows: Int[Tensor, " N"]) -> None:
        """Continues with these rows of the batch."""
        kept = (self.states, self._states_before, self.updates, self.target)
        self.states, self._states_before, self.updates, self.target = (take(part, rows) for part in kept)

    def undo(self) -> None:
        """Returns the stabilizers' states to those before the step."""
        self.states = list(self._states_before)

    def log_likelihood(
        self, x_t: Batch, prediction: Prediction, level: Level, updates: Sequence[Update | None] = ()
    ) -> PerImage:
        """Returns the sum over the guides that weigh; an update taken at this very sample knows its log-likelihood."""
        assert self.target is not None, "the loop refuses particles without guides, and guides without targets"
        values = [
            guide.log_likelihood(x_t, prediction, level, self.target, self.denoiser)
            if update is None or guide.injection.point == "sample"
            else update.log_likelihood
            for guide, update in zip_longest(self.guides, updates)
            if guide.weighs
        ]
        return total(torch.stack(values, 1))

    def _acting(self, step: Step, *, before: bool) -> list[int]:
        """Returns the guides that act now: before the step's evaluations of the denoiser, or at one of them."""
        points = ("sample",) if before else ("estimate",) if step.stage else ("estimate", "mean", "deviation")
        candidates = [index for index, guide in enumerate(self.guides) if guide.injection.point in points]
        return [] if self.paused else [index for index in candidates if self.guides[index].active(step)]

    def needs_denoiser(self, step: Step) -> bool:
        """Whether the updates that enter before the step need a prediction."""
        return any(self.guides[index].needs_denoiser for index in self._acting(step, before=True))

    def differentiates_denoiser(self, step: Step, *, before: bool = False) -> bool:
        """Whether the denoiser is evaluated with gradients at this step, or before it."""
        return any(self.guides[index].differentiates_denoiser for index in self._acting(step, before=before))

    def check(self, *, noisy: bool | None) -> None:
        """Refuses the injection `Spherical` where steps end without noise; None where that is not known."""
        if noisy is False and any(guide.injection.point == "deviation" for guide in self.guides):
            raise InputError(
                "injection must not be spherical with a sampler whose steps end without noise, which spherical turns; "
                "use a sampler with noise, such as ddpm, or ddim with eta above 0"
            )

    def sample(self, x_t: Batch, prediction: Prediction | None, step: Step) -> Batch:
        """Returns the sample to step from, with the updates that enter before the denoiser is evaluated."""
        moved = x_t.detach()
        for index, last in self._turns(x_t, step, before=True):
            update = self._update(index, x_t, prediction, step, retain_graph=not last)
            after = self.guides[index].injection.sample(moved, update.value)
            (moved,) = self._entered(index, (moved,), (after,), step, step.level)
        return moved

    def estimate(self, x_t: Batch, prediction: Prediction, estimate: Estimate, step: Step) -> Estimate:
        """Takes each acting guide's update at a level, and returns the estimate with those that enter there.

        The stabilizers' states advance in the first stage of a step; its second starts from the same states.
        """
        unguided = estimate.x0
        for index, last in self._turns(x_t, step, before=False):
            guide = self.guides[index]
            moved = estimate.x0 - unguided if getattr(guide.input, "guided", False) else None
            update = self._update(index, x_t, prediction, step, moved=moved, retain_graph=not last)
            if guide.injection.point == "estimate":
                after = guide.injection.estimate(estimate, update.value, step.level)
                x0, eps = self._entered(index, estimate[:2], after[:2], step, step.next)
                estimate = after._replace(x0=x0, eps=eps)
        return estimate

    def mean(self, mean: Batch) -> Batch:
        """Returns the step's mean with the updates that enter there."""
        for index, update in enumerate(self.updates):
            injection = self.guides[index].injection
            if update is not None and injection.point == "mean" and self._step is not None:
                after = injection.mean(mean, update.value)
                (mean,) = self._entered(index, (mean,), (after,), self._step, self._step.next)
        return mean

    def deviation(self, deviation: Batch | None, variance: Float[Tensor, "..."] | None, step: Step) -> Batch | None:
        """Returns the step's noise with the updates that enter there; None into a clean image."""
        if deviation is None or variance is None:
            self.check(noisy=not step.next.sigma > 0)
            return deviation
        for index, update in enumerate(self.updates):
            injection = self.guides[index].injection
            if update is not None and injection.point == "deviation":
                after = injection.deviation(deviation, update.value, variance)
                (deviation,) = self._entered(index, (deviation,), (after,), step, step.next)
        return deviation

    def _turns(self, x_t: Batch, step: Step, *, before: bool) -> Iterator[tuple[int, bool]]:
        """Yields the acting guides, and of each whether no later one differentiates the denoiser."""
        if self.states is None:
            self.states = [guide.stabilizer.init(x_t) for guide in self.guides]
        if step.stage == 0:
            self._step, self._states_before = step, list(self.states)
            self.updates = tuple(
                None if (guide.injection.point == "sample") == before else update
                for guide, update in zip(self.guides, self.updates, strict=True)
            )
        acting = self._acting(step, before=before)
        for number, index in enumerate(acting, 1):
            yield index, not any(self.guides[later].differentiates_denoiser for later in acting[number:])

    def _update(
        self,
        index: int,
        x_t: Batch,
        prediction: Prediction | None,
        step: Step,
        *,
        moved: Batch | None = None,
        retain_graph: bool,
    ) -> Update:
        """Takes a guide's update; it and the stabilizer's state are kept in the first stage of a step."""
        guide, state, update, shift = self.guides[index], self._states_before[index], None, moved
        assert self.target is not None and self.states is not None, "the loop refuses guides without targets"
        for _ in range(guide.ascents):
            g, log_likelihood = guide.gradient(
                x_t, prediction, step, self.target, self.denoiser, moved=shift, retain_graph=retain_graph
            )
            finite = g.isfinite().flatten(1).all(1)
            with torch.no_grad():
                stable, after = guide.stabilizer.update(torch.where(_like(finite, g), g, 0), state)
                value = (guide.scale * guide.weight(step, x_t, prediction, stable) * stable).to(g.dtype)
                # An update or a state may overflow although the gradient did not: both are dropped as a gradient is.
                for tensor in (value, *(_tensors(after) if after else ())):
                    finite = finite & tensor.isfinite().flatten(1).all(1)
                value = torch.where(_like(finite, g), value, 0)
                state = _where(finite, after, state) if after else after
            if update is None:
                update = Update(value, g, stable.to(g.dtype), log_likelihood, finite, torch.zeros_like(value))
            else:
                update = update._replace(value=update.value + value, finite=update.finite & finite)
            shift = update.value if moved is None else moved + update.value
        assert update is not None, "there is at least one ascent"
        if step.stage == 0:
            self.states[index] = state
            self.updates = (*self.updates[:index], update, *self.updates[index + 1 :])
        return update

    def _entered(
        self, index: int, before: tuple[Batch, ...], after: tuple[Batch, ...], step: Step, level: Level
    ) -> tuple[Batch, ...]:
        """Returns a sample, mean or noise with an update, or ``x0`` and ``eps``; as before for images that overflow.

        In the first stage of a step the update keeps how far the images move, and which were dropped. The level is that
        of the sample, or the one to which a deterministic step takes the estimate.
        """
        finite = torch.stack([(part.abs() <= LARGEST).flatten(1).all(1) for part in after]).all(0)
        after = tuple(torch.where(_like(finite, new), new, old) for new, old in zip(after, before, strict=True))
        update = self.updates[index]
        if step.stage == 0 and update is not None:
            alpha, sigma = (broadcast(value, after[0]) for value in level[:2])
            change, *noise = (new - old for new, old in zip(after, before, strict=True))
            if noise:
                change = alpha * change + sigma * noise[0]
            update = update._replace(
                value=torch.where(_like(finite, update.value), update.value, 0),
                finite=update.finite & finite,
                moved=alpha / (alpha**2 + sigma**2) * change,
            )
            self.updates = (*self.updates[:index], update, *self.updates[index + 1 :])
        return after


def _like(mask: Bool[Tensor, " B"], x: Tensor) -> Bool[Tensor, "B ..."]:
    """Returns a mask of images in a shape that broadcasts."""
    return mask.reshape(-1, *[1] * (x.ndim - 1))


def _tensors(state: State) -> Iterator[Tensor]:
    for part in state:
        yield from _tensors(part) if isinstance(part, tuple) else (part,)


def _where(finite: Bool[Tensor, " B"], new: State, old: State) -> State:
    """Returns the new state, and the old one for images whose gradient was dropped."""
    return tuple(
        _where(finite, n, o) if isinstance(n, tuple) else torch.where(_like(finite, n), n, o)
        for n, o in zip(new, old, strict=True)
    )
