"""Whether networks give in a narrower type what they give in float32, on inputs of the run itself.

A few images are drawn without guidance. At each noise level on their way, an image's cosine

    cos(a, b) = <a, b> / (|a| |b|)

compares what a network gives in float32 and in the other type:

    classifier    v, the gradient of the guide's objective with respect to the image that the classifier sees
    denoiser      x0_hat; and J^T v, where the gradient passes the denoiser or its decoder, with J the derivative of
                  that image with respect to x_t, or to the latents that the guide sees

Image and v are those of float32 in both, so that each network is compared by itself.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.batching import Batches, memory_permitting
from steersman.denoise import Conditioned
from steersman.guidance.guide import Guide, after_decoding
from steersman.guidance.step import Step
from steersman.lab.session import Session, Target
from steersman.sampling import Report
from steersman.sampling.noise import SeededNoise

__all__ = ["Reference"]

IMAGES, STEPS = 4, 8  # how many are drawn, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class _Gradient:
    """What a guide sees, the image it is decoded to, the gradient ``v`` there, and ``J^T v`` if that is another."""

    input: Float[Tensor, "B *shape"]
    image: Float[Tensor, "B *image"]
    v: Float[Tensor, "B *image"]
    pulled: Float[Tensor, "B *shape"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """A batch at a level, its prediction, and the gradients of guides by their index."""

    targets: Sequence[Target]
    x_t: Float[Tensor, "B *shape"]
    step: Step
    x0_hat: Float[Tensor, "B *shape"]
    gradients: dict[int, _Gradient] = field(default_factory=dict)


class Reference:
    """The outputs of a run's networks in float32; none where the memory does not hold one image."""

    def __init__(self, session: Session) -> None:
        run = session.run
        seeds = range(run.seed, run.seed + min(run.num, IMAGES))
        jobs = [(target, seed) for seed in seeds for target in session.targets][:IMAGES]
        self.states: list[_State] = []
        outputs = _Outputs(session)
        with memory_permitting():
            batches = Batches(len(jobs), tell=lambda _: None)
            self.states = list(chain.from_iterable(batches.map(outputs.states, jobs)))

    def cosines(self, session: Session, parts: Collection[str]) -> Mapping[str, float]:
        """Returns the least cosine of each of these parts that can be compared, given the run in another type."""
        cosines: dict[str, list[float]] = {"denoiser": [], "classifier": []}
        outputs = _Outputs(session)
        with memory_permitting():
            for state in self.states if parts else ():
                cosines["denoiser"].append(_cosine(outputs.x0_hat(state.targets, state.x_t, state.step), state.x0_hat))
                for index, reference in state.gradients.items():
                    gradient = outputs.gradient(index, state, reference)
                    if gradient is not None:
                        cosines["classifier"].append(_cosine(gradient.v, reference.v))
                        if gradient.pulled is not None and reference.pulled is not None:
                            cosines["denoiser"].append(_cosine(gradient.pulled, reference.pulled))
            return {part: round(min(cosines[part]), 4) for part in parts if cosines[part]}
        return {}


class _Outputs:
    """What the networks of a session give, asked about whole batches."""

    def __init__(self, session: Session) -> None:
        self.session, self.clip = session, session.run.recipe.sampling()["clip"]
        for network in (session.denoiser, *session.classifiers):
            network.block = None
        latent = getattr(session.denoiser, "latent", False)
        self.guides: list[Guide] = [after_decoding(guide) if latent else guide for guide in session.guides]

    @torch.no_grad()
    def states(self, jobs: Sequence[tuple[Target, int]]) -> list[_State]:
        """Returns the states of a batch after each step but the last; of a single step, that before it."""
        session, reports = self.session, list[Report]()
        steps = min(STEPS, session.run.recipe.sampling()["steps"])
        session.samples(jobs, [reports.append], guided=False, steps=steps, recurrence=None)
        first, targets = reports[0].step, [target for target, _ in jobs]
        noise = SeededNoise([seed for _, seed in jobs], session.denoiser.shape, session.run.device, torch.float32)
        start = noise("start") * session.denoiser.schedule.start(first.level)
        passed = [(before.x, after.step) for before, after in zip(reports, reports[1:], strict=False)]
        states = [
            _State(targets=targets, x_t=x_t, step=step, x0_hat=self.x0_hat(targets, x_t, step))
            for x_t, step in passed or [(start, first)]
        ]
        for index, guide in enumerate(self.guides):
            active = [state for state in states if guide.active(state.step)]
            for state in active or (states if guide.scale else ()):
                if (gradient := self.gradient(index, state)) is not None:
                    state.gradients[index] = gradient
        return states

    @torch.no_grad()
    def x0_hat(self, targets: Sequence[Target], x_t: Tensor, step: Step) -> Tensor:
        """Returns the prediction as a sampling step uses it."""
        denoiser = self._denoiser(targets)
        x0_hat = denoiser(x_t, step.level).x0_hat
        return x0_hat.clamp(-1, 1) if self.clip and not denoiser.latent else x0_hat

    def gradient(self, index: int, state: _State, reference: _Gradient | None = None) -> _Gradient | None:
        """Returns a guide's gradient, on input, image and v of the reference if given; None without any gradient."""
        guide, denoiser, level = self.guides[index], self._denoiser(state.targets), state.step.level
        through = guide.wrt == "x_t"
        leaf = state.x_t.detach().requires_grad_(through)
        if through or reference is None:
            with torch.set_grad_enabled(guide.differentiates_denoiser):
                prediction = denoiser(leaf, level) if guide.input.needs_denoiser else None
            with torch.set_grad_enabled(through):
                input = guide.input(leaf, prediction, level, denoiser)
        else:
            input = reference.input
        if not through:
            leaf = input = input.detach().requires_grad_()
        with torch.enable_grad():
            decoded = denoiser.decode(input)
            image = (reference.image if reference else decoded).detach().requires_grad_()
            indices = torch.tensor([target.guide for target in state.targets], device=image.device)
            log_likelihood = guide.objective(image, indices, level)
            if not log_likelihood.requires_grad:
                return None
            v = torch.autograd.grad(log_likelihood.sum(), image)[0]
        passes = guide.differentiates_denoiser or denoiser.latent
        pulled = torch.autograd.grad(decoded, leaf, reference.v if reference else v)[0] if passes else None
        return _Gradient(input=input.detach(), image=image.detach(), v=v, pulled=pulled)

    def _denoiser(self, targets: Sequence[Target]) -> Conditioned:
        return Conditioned(self.session.denoiser, self.session.conditioning(targets))


def _cosine(a: Float[Tensor, "B *shape"], b: Float[Tensor, "B *shape"]) -> float:
    """Returns the least cosine of two values of each image; 1 where they are equal, 0 where one is not finite."""
    a, b = (value.detach().cpu().double().flatten(1) for value in (a, b))
    cosine = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).nan_to_num(0, 0, 0)
    return float(torch.where((a == b).all(1), 1, cosine).min())
