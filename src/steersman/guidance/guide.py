"""A guide: one choice on each axis, frozen.

At a level, a guide takes the gradient g of ``log p(y | view)`` by one of two routes:

    direct     g = d/d view, the view detached: the denoiser is never differentiated
    through    g = d/d x_t, back through the denoiser where the view depends on it

What becomes of it in a walk is `Steering`'s.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.denoise import Denoiser, Prediction
from steersman.errors import InputError, unknown
from steersman.guidance.injection import DenoisedImage, Injection, Mean
from steersman.guidance.input import ClassifierInput, Denoised
from steersman.guidance.objective import Objective
from steersman.guidance.stabilizer import Identity, Stabilizer
from steersman.guidance.step import Step
from steersman.guidance.weight import Variance, Weight
from steersman.schedule import Level
from steersman.typed import brief, finite

__all__ = ["Guide", "Wrt"]

Wrt = Literal["x0_hat", "x_t"]


@dataclass(frozen=True, kw_only=True)
@finite
class Guide:
    """One choice on each axis of the design space.

    Attributes:
        objective: The log-likelihood that guidance maximises; it holds the classifier.
        scale: The guidance scale ``s``, comparable only among guides with the same route and injection. At 0 no
            gradient is taken.
        input: The classifier input: the noisy, denoised, lookahead or rescaled image.
        wrt: ``x0_hat`` for the gradient with respect to the classifier input, which never differentiates the
            denoiser; ``through`` for the gradient with respect to ``x_t``.
        ascents: The number of gradients in a step, at least 1. More than one needs the route ``direct``, a classifier
            input of the denoised image and the injection `DenoisedImage`.
        stabilizer: How the gradients of successive steps are combined.
        weight: The guidance weight ``w_t`` over time.
        injection: Where the guidance update enters the step.

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

    def __repr__(self) -> str:
        return brief(self)

    def __post_init__(self) -> None:
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
    def sees_guided(self) -> bool:
        """Whether its view is the denoised image as the guides before it left it."""
        return isinstance(self.input, Denoised) and self.input.guided

    @property
    def needs_denoiser(self) -> bool:
        """Whether its update depends on the prediction."""
        return self.input.needs_denoiser or self.weight.needs_denoiser

    @property
    def differentiates_denoiser(self) -> bool:
        """Whether its gradient flows back through the denoiser."""
        return self.wrt == "x_t" and self.input.needs_denoiser

    def active(self, step: Step) -> bool:
        """Whether it can update at a step; told before anything is computed."""
        return bool(self.scale) and self.injection.defined(step.level) and self.weight.active(step)

    @torch.enable_grad()
    def gradient(
        self,
        x_t: Float[Tensor, "B C H W"],
        prediction: Prediction | None,
        step: Step,
        target: Int[Tensor, " B"],
        denoiser: Denoiser,
        *,
        moved: Float[Tensor, "B C H W"] | None = None,
        retain_graph: bool = False,
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, " B"]]:
        """Returns the gradient by the guide's route, and the log-likelihood.

        Args:
            x_t: The noisy images; on the route ``through``, the leaf from which the prediction was computed.
            prediction: What the denoiser made of them, where the view needs it.
            step: Where in the walk.
            target: A class each.
            denoiser: Turns the view into the image that the classifier sees; a view may ask it for more.
            moved: By how much the view has been moved in this step already.
            retain_graph: Whether another guide differentiates the same prediction after this one.

        Raises:
            InputError: The objective has no gradient.
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
        self,
        x_t: Float[Tensor, "B C H W"],
        prediction: Prediction,
        level: Level,
        target: Int[Tensor, " B"],
        denoiser: Denoiser,
    ) -> Float[Tensor, " B"]:
        """Returns what the gradient is taken of, alone; the arguments are `gradient`'s."""
        return self.objective(denoiser.decode(self.input(x_t, prediction, level, denoiser)), target, level)
