"""The guides of one walk of a pipeline: what they make of the scheduler's steps (`steersman.pipelines.steer`).

From the output u that the scheduler is given, its sample and levels, with ``h = alpha`` where it holds ``x / alpha``,

    x_t = h sample,   x0_hat = x0(u, x_t),

the guides make their pushes, and these enter the step through what goes into ``step`` and what comes out of it:

    estimate     (x0, eps) moved by (d0, de):   u += output(d0, de),   sample += (alpha d0 + sigma de) / h
    mean         the next sample += p / h_s
    deviation    the next sample, less the mean that it was drawn around

Which output belongs to ``(d0, de)`` is linear in them, so that a push of zero changes no bit. DDPM's step is made from
``x_t`` and ``x0``, and keeps the sample: its ``de`` is ``-alpha d0 / sigma``. Where a scheduler goes on from a sample
that it kept (UniPC, singlestep methods), what moved the given one moves that one as well, divided by k (`levels.kept`).
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steersman.denoise import Parameterization, Prediction, eps_from_x0, output_for, to_x0
from steersman.errors import InputError
from steersman.guidance.decoded import after_decoding
from steersman.guidance.guide import Guide
from steersman.guidance.injection import Estimate, Moment
from steersman.guidance.steering import Steering
from steersman.guidance.step import FixedVariance, Step, posterior_mean, reverse_variance
from steersman.guidance.view import Ahead
from steersman.pipelines.layout import LAYOUTS, Layout, as_images
from steersman.pipelines.levels import Place, kept, name_of, number, place_of, start_of, time_at
from steersman.pipelines.network import Network, linked
from steersman.pipelines.parts import exact, first, frozen, moves, recomputed
from steersman.pipelines.samples import Decoder
from steersman.pipelines.targets import Target, resolved
from steersman.schedule import VP, Flow, Level, Schedule, broadcast
from steersman.schedulers import FAMILIES

__all__ = ["Walk"]


class Walk:
    """Guides at work in a pipeline's calls, and where the present one is.

    Args:
        pipe: The pipeline.
        guides: The guides.
        target: Their target, or one an image.
    """

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401
        guides: tuple[Guide, ...],
        target: Target | Sequence[Target] | None,
    ) -> None:
        self.scheduler: Any = getattr(pipe, "scheduler", None)
        network = first(pipe, "unet", "transformer")
        if self.scheduler is None or network is None:
            raise InputError(
                f"pipe: {type(pipe).__name__} given; allowed: a pipeline with a scheduler and a unet or transformer"
            )
        self.name = name_of(self.scheduler)
        self.network, self.vae = Network(network), first(pipe, "vae", "vqvae")
        self.guides = guides if self.vae is None else tuple(map(after_decoding, guides))
        self.through = any(guide.scale and guide.differentiates_denoiser for guide in guides)
        self.layout = LAYOUTS.get(self.network.name, as_images)
        self._check()
        self.targets = resolved(self.guides, target)
        self._begin()

    def _check(self) -> None:
        for guide in self.guides:
            if isinstance(guide.view, Ahead):
                raise InputError(
                    "view: ahead given, but only the pipeline can ask its network; allowed: denoised, noisy"
                )
            if (moment := guide.injection.moment) not in (allowed := self._moments()):
                raise InputError(
                    f"injection: {type(guide.injection).__name__} given, which enters at the {moment}; with a "
                    f"pipeline's {self.name} allowed: {', '.join(allowed)}"
                )
        if self.name == "PNDMScheduler" and not self.scheduler.config.skip_prk_steps:
            raise InputError("scheduler: PNDM with Runge-Kutta steps given; allowed: skip_prk_steps=True")
        if self.scheduler.config.get("invert_sigmas"):
            raise InputError("scheduler: invert_sigmas given; allowed: flow matching from noise to image")
        if self.kind not in ("epsilon", "sample", "v_prediction", "flow_prediction"):
            raise InputError(f"scheduler.prediction_type: {self.kind} given; allowed: epsilon, sample, v, flow")
        if "step" in vars(self.scheduler):
            raise InputError("pipe: its scheduler's step is replaced already; allowed: all guides in one steer")
        if self.listens and self.network.compiled_in_place:
            raise InputError(
                "pipe: its network is compiled in place, and what enters it must be known here; allowed: "
                "torch.compile(network), or the route direct on samples that are not packed"
            )
        if self.network.name == "DiTTransformer2DModel" and FAMILIES[self.name] == "ratio":
            raise InputError(
                f"scheduler: {self.name} given, whose step DiTPipeline hands a sample that is scaled already; allowed: "
                "one that does not scale, such as DDIMScheduler"
            )
        if self.through and any(map(moves, self._parts())):
            raise InputError(
                "route: through given, but the pipeline's weights are offloaded, cast or cached between calls, and a "
                "gradient needs them as they were; allowed: direct, or the pipeline on one device"
            )

    def _moments(self) -> tuple[Moment, ...]:
        match self.name:
            case "DDPMScheduler" if not self.scheduler.config.thresholding:
                return ("estimate", "mean", "deviation")
            case "DDIMScheduler":
                return ("estimate", "mean", "deviation")
        return ("estimate", "mean")

    def _parts(self) -> Iterator[nn.Module]:
        for each in (self.network.module, self.vae):
            yield from () if each is None else each.modules()

    @property
    def kind(self) -> Parameterization:
        """What the output means that the scheduler is given."""
        return "flow_prediction" if self.name.startswith("Flow") else self.scheduler.config.prediction_type

    @property
    def listens(self) -> bool:
        """Whether what enters the network must be known."""
        return self.through or self.layout is not as_images

    @property
    def fixed(self) -> FixedVariance:
        """The reverse variance where the network learned none."""
        given = self.scheduler.config.get("variance_type") or ""
        return "large" if self.name == "DDPMScheduler" and given.startswith("fixed_large") else "small"

    def attach(self, stack: ExitStack) -> None:
        """Joins the pipeline until the stack unwinds."""
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        for name, wrapper in (("step", self._step), ("set_timesteps", self._set_timesteps)):
            own = getattr(self.scheduler, name)
            setattr(self.scheduler, name, functools.wraps(own)(functools.partial(wrapper, own)))
            stack.callback(delattr, self.scheduler, name)
        if self.listens:
            stack.enter_context(self.network.listened(self._due))
        if self.through:
            stack.enter_context(frozen(self.network.module))
        if self.vae is not None:
            stack.enter_context(frozen(self.vae))
            stack.enter_context(recomputed(self.vae))
        self.decoder = Decoder(None if self.vae is None else exact(self.vae), self._schedule())

    def _schedule(self) -> Schedule:
        if (alpha_bar := getattr(self.scheduler, "alphas_cumprod", None)) is None:
            return Flow()
        alpha_bar = alpha_bar.detach().to("cpu", torch.float64, copy=True)
        if self.scheduler.config.get("rescale_betas_zero_snr"):
            alpha_bar[-1] = 0  # some schedulers have 2^-24 there, which may be above what comes before
        return VP(alpha_bar=alpha_bar)

    def _begin(self) -> None:
        """A new walk: nothing is known of it yet."""
        self.steering: Steering | None = None
        self.start, self.calls, self.index = 0, 0, -1
        self.step: Step | None = None
        self.levels: tuple[Level, ...] = ()
        self.pushed: Tensor | None = None
        self.network.forget()

    def _set_timesteps(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self._begin()
        return own(*args, **kwargs)

    def _due(self) -> bool:
        """Whether the coming step differentiates the network; of the first, little is known before it comes."""
        if not self.through or self.steering is None or self.step is None:
            return self.through
        if (position := self.start + self.calls) >= len(self.scheduler.timesteps):
            return True
        place = place_of(self.scheduler, time_at(self.scheduler, position), position)
        return self.steering.differentiates_denoiser(self._at(place, self.index + (place.stage == 0), self.step.peak))

    def _at(self, place: Place, index: int, peak: Tensor, fraction: Tensor | None = None) -> Step:
        """Returns where in the walk a place is."""
        if place.stage and self.step is not None:
            return self.step._replace(level=place.level, stage=place.stage)
        calls = len(self.scheduler.timesteps) - self.start
        if hasattr(self.scheduler, "state_in_first_order"):
            count = (calls + 1) // 2
        else:
            count = max(calls - (self.name == "PNDMScheduler"), 1)
        variance = reverse_variance(place.level, place.next, fraction, self.fixed)
        peak = torch.maximum(peak, variance.to(peak))
        return Step(index, count, 0, 0, place.level, place.next, variance, peak, self.levels)

    def _levels(self) -> tuple[Level, ...]:
        """Returns the levels of the walk that begins; one that the scheduler visits twice in turn, once."""
        positions = range(self.start, len(self.scheduler.timesteps))
        places = [place_of(self.scheduler, time_at(self.scheduler, each), each) for each in positions]
        levels = [place.level for place in places] + [places[-1].next]
        return (levels[0], *(now for before, now in pairwise(levels) if now.sigma != before.sigma))

    def _step(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The scheduler's step, with the guides' pushes."""
        leaves = self.network.take_leaves()
        call = inspect.signature(own).bind(*args, **kwargs)
        # A pipeline may run in inference mode, whose tensors take part in no gradient: here they are copied.
        with torch.inference_mode(False), torch.no_grad():
            sample = call.arguments["sample"]
            asked = self._ask(call.arguments, leaves)
            self._move_kept(asked.place, call.arguments["sample"] - sample)
        outcome = own(*call.args, **call.kwargs)
        with torch.inference_mode(False), torch.no_grad():
            self._add(asked, outcome_of := _Outcome(outcome), own, call)
        self.calls += 1
        return outcome_of.value

    def _ask(self, given: dict[str, Any], leaves: list[Tensor]) -> "_Asked":
        """Lets the guides take their pushes, and changes what the scheduler is given by those that enter there."""
        output, sample = given["model_output"], given["sample"]
        given["model_output"] = output.detach()
        if self.steering is None:
            self.start = start_of(self.scheduler, given["timestep"])
            self.levels = self._levels()
        position = self.start + self.calls
        place = place_of(self.scheduler, number(given["timestep"]), position)
        layout = self.layout(sample, self.network.told)
        rows = len(sample) // layout.copies
        exact = torch.promote_types(sample.dtype, torch.float32)
        x_t = (layout.unpack(sample[:rows].clone()).to(exact) * place.held[0].to(exact)).detach()
        with torch.set_grad_enabled(bool(leaves)):
            raw = layout.unpack(output[:rows].clone()).to(exact)
            raw, learned = raw.chunk(2, dim=1) if raw.shape[1] == 2 * x_t.shape[1] else (raw, None)
        if self.steering is None:
            self.steering = Steering(self.guides, self._each(rows, x_t.device), self.decoder)
            peak = torch.zeros((), dtype=exact, device=x_t.device)
        else:
            assert self.step is not None, "it is there since the first step"
            peak = self.step.peak
        self.index += place.stage == 0
        ranged = learned is not None and self.scheduler.config.get("variance_type") == "learned_range"
        fraction = (learned.detach() + 1) / 2 if learned is not None and ranged else None
        self.step = self._at(place, self.index, peak, fraction)
        through = self.steering.differentiates_denoiser(self.step)
        x_t.requires_grad_(through or self.steering.differentiates_sample)
        with torch.set_grad_enabled(through):
            raw = linked(x_t, raw, leaves, layout, sample[:rows]) if through else raw.detach()
            prediction = Prediction(to_x0(self.kind, x_t, raw, place.level), fraction)
        x0_hat = prediction.x0_hat.detach()
        estimate = Estimate(x0_hat, eps_from_x0(x_t.detach(), x0_hat, place.level), self.step.variance)
        guided = self.steering.estimate(x_t, prediction, estimate, self.step)
        if guided is not estimate:
            self._change(given, layout, place, estimate, guided)
        return _Asked(place, layout, x_t.detach(), x0_hat)

    def _move_kept(self, place: Place, moved: Tensor) -> None:
        """Moves the sample that the scheduler kept as far as guides moved the one that it is given."""
        moved, self.pushed = moved if self.pushed is None else moved + self.pushed, None
        found = kept(self.scheduler, place.level, self.start + self.calls)
        if found is not None and bool((moved != 0).any()):
            sample = getattr(self.scheduler, found.name)
            setattr(self.scheduler, found.name, sample + moved / found.ratio.to(moved.dtype))

    def _each(self, rows: int, device: torch.device) -> Int[Tensor, " B"]:
        """Returns one target an image."""
        if len(self.targets) not in (1, rows):
            raise InputError(f"target: {len(self.targets)} given for {rows} images; allowed: one, or one an image")
        return self.targets.to(device).expand(rows)

    def _change(self, given: dict[str, Any], layout: Layout, place: Place, before: Estimate, after: Estimate) -> None:
        """Moves output and sample by what guides made of the estimate."""
        x0, eps = after.x0 - before.x0, after.eps - before.eps
        alpha, sigma = (broadcast(value, x0) for value in (place.level.alpha, place.level.sigma))
        if self.name == "DDPMScheduler":
            eps = -alpha / sigma * x0
        output, sample = given["model_output"], given["sample"]
        more = layout.pack(output_for(self.kind, x0, eps, place.level)).to(output.dtype)
        if (rest := output.shape[1] - more.shape[1]) and output.ndim == 4:
            more = torch.cat([more, more.new_zeros(len(more), rest, *more.shape[2:])], dim=1)
        moved = layout.pack((alpha * x0 + sigma * eps) / place.held[0].to(x0.dtype)).to(sample.dtype)
        given["model_output"] = output + _repeated(more, layout.copies)
        given["sample"] = sample + _repeated(moved, layout.copies)

    def _add(self, asked: "_Asked", outcome: "_Outcome", own: Callable[..., Any], call: inspect.BoundArguments) -> None:
        """Moves the next sample by what enters the step at its end."""
        assert self.steering is not None and self.step is not None, "the guides were asked"
        moments = {
            guide.injection.moment
            for guide, push in zip(self.guides, self.steering.pushes, strict=True)
            if push is not None
        } & {"mean", "deviation"}
        if not moments or not asked.place.whole:
            return
        held, x_s = outcome.sample, self._read(outcome.sample, asked)
        deviation = variance = None
        if "deviation" in moments and self.step.next.sigma > 0:
            mean, variance = self._mean(asked, own, call)
            deviation = None if mean is None else x_s - mean
        turned = self.steering.deviation(deviation, variance, self.step)
        more = self.steering.mean(x_s) - x_s
        if turned is not None and deviation is not None:
            more = more + turned - deviation
        more = asked.layout.pack(more / asked.place.held[1].to(more.dtype)).to(held.dtype)
        self.pushed = _repeated(more, asked.layout.copies)
        outcome.replace(held + self.pushed)

    def _read(self, held: Tensor, asked: "_Asked") -> Float[Tensor, "B C H W"]:
        rows = len(held) // asked.layout.copies
        return asked.layout.unpack(held[:rows].clone()).to(asked.x_t.dtype) * asked.place.held[1].to(asked.x_t.dtype)

    def _mean(
        self, asked: "_Asked", own: Callable[..., Any], call: inspect.BoundArguments
    ) -> tuple[Float[Tensor, "B C H W"] | None, Float[Tensor, "..."] | None]:
        """Returns the mean that the scheduler drew the next sample around, and the variance of that draw."""
        assert self.step is not None, "the guides were asked"
        if self.name == "DDPMScheduler":
            settings, x0 = self.scheduler.config, asked.x0_hat
            if settings.clip_sample:
                x0 = x0.clamp(-settings.clip_sample_range, settings.clip_sample_range)
            return posterior_mean(asked.x_t, x0, asked.place.level, asked.place.next), self.step.variance
        eta = call.arguments.get("eta", 0.0)
        if not eta:
            return None, None
        still = {"generator": None, "variance_noise": torch.zeros_like(call.arguments["sample"])}
        settled = own(**{**call.arguments, **still})
        return self._read(_Outcome(settled).sample, asked), eta**2 * self.step.variance


class _Asked(NamedTuple):
    """What is known of a step before the scheduler makes it."""

    place: Place
    layout: Layout
    x_t: Float[Tensor, "B C H W"]
    x0_hat: Float[Tensor, "B C H W"]


class _Outcome:
    """What a scheduler's step returned: a tuple, or an output with names."""

    def __init__(self, value: Any) -> None:  # noqa: ANN401
        self.value = value

    @property
    def sample(self) -> Tensor:
        """The next sample."""
        return self.value[0] if isinstance(self.value, tuple) else self.value.prev_sample

    def replace(self, sample: Tensor) -> None:
        """Puts another in its place."""
        if isinstance(self.value, tuple):
            self.value = (sample, *self.value[1:])
        else:
            self.value.prev_sample = sample


def _repeated(rows: Tensor, copies: int) -> Tensor:
    return rows if copies == 1 else torch.cat([rows] * copies)
