"""Guides at work in a diffusers pipeline, which stays as it is.

A pipeline asks its network, makes one output of what it says (classifier-free guidance, for one), and hands that to
its scheduler, whose ``step`` leads to the next sample. There lies the seam. From output u, sample and levels

    x_t = h sample,   x0_hat = x0(u, x_t),   h = alpha where the scheduler holds x / alpha, else 1

the guides make their pushes, and these enter the step through what goes into ``step`` and what comes out of it:

    estimate     (x0, eps) moved by (d0, de):   u += output(d0, de),   sample += (alpha d0 + sigma de) / h
    mean         the next sample += p / h_s
    deviation    the next sample, less the mean that it was drawn around

Which output belongs to ``(d0, de)`` is linear in them, so that a push of zero changes no bit. DDPM's step is made from
``x_t`` and ``x0``, and keeps the sample: its ``de`` is ``-alpha d0 / sigma``.

On the route ``through``, every tensor that enters the network is made a leaf, and gradients stay on until the step; the
gradient in ``x_t`` is the sum over the leaves' rows, which are all copies of it.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steersman.denoise import Parameterization, Prediction, eps_from_x0, output_for, to_x0
from steersman.errors import InputError
from steersman.guidance.combine import Toward, Translated
from steersman.guidance.guide import Guide, Steering
from steersman.guidance.injection import Estimate, Moment, NoisePrediction
from steersman.guidance.step import FixedVariance, Step, posterior_mean, reverse_variance
from steersman.guidance.view import Ahead
from steersman.pipelines.levels import KEEPS_SAMPLE, PLACES, Place, by_ratio, name_of, number, start_of, time_at
from steersman.pipelines.samples import LAYOUTS, Decoder, Layout, after_decoding, as_images
from steersman.schedule import VP, Flow, Level, Schedule, broadcast

__all__ = ["steer"]

Target = int | str


@contextmanager
def steer(
    pipe: Any,  # noqa: ANN401
    guide: Guide | Sequence[Guide],
    target: Target | Sequence[Target] | None = None,
) -> Iterator[None]:
    """Steers whatever a diffusers pipeline draws inside the ``with`` block.

    Pipeline, scheduler and arguments are used as they are, any number of times; every call is a walk of its own. On
    leaving the block, also by an exception, the pipeline is as it was before. Where no guide is active, its images are
    the same bit for bit.

    The samples are images in [-1, 1], or latents that the pipeline's VAE decodes, one at a time and with its blocks
    recomputed for the gradient, to save memory; then a view that clips does so after decoding. What a pipeline computes
    from the sample beside its network, such as a ControlNet's residuals, counts as given on the route ``through``.

    The route ``direct`` leaves the network alone: it may be offloaded, quantised or compiled. The route ``through``
    needs one whose weights stay where they are, and that has a gradient.

    The pipeline's scheduler clips as it is set to, also what guides made of the denoised image.

    Args:
        pipe: The pipeline; its scheduler is chosen before.
        guide: The guide, or several.
        target: The class to steer to, as index or as a name that the guide's classifier knows: one for all images, or
            one each, in the order in which the pipeline returns them.

    Raises:
        InputError: A pipeline or scheduler that is not known here, a guide that needs what a pipeline does not have
            (samples moved before the network is asked, a view that asks it again, gradients through a network that is
            offloaded or compiled in place), or targets that are not one or one an image. What depends on the images
            themselves is refused at the first step.
    """
    guides = (guide,) if isinstance(guide, Guide) else tuple(guide)
    walk = _Walk(pipe, guides, target)
    with ExitStack() as stack:
        walk.attach(stack)
        yield
        if pipe.scheduler is not walk.scheduler:
            raise InputError("pipe.scheduler: replaced while steering, so that nothing was steered; set it before")


def _vocabularies(part: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yields the classifiers in an objective that resolve a target's name, but those with targets of their own."""
    if callable(getattr(part, "resolve", None)):
        yield part
    elif isinstance(part, list | tuple):
        for each in part:
            yield from _vocabularies(each)
    elif is_dataclass(part) and not isinstance(part, Toward | Translated):
        for each in fields(part):
            yield from _vocabularies(getattr(part, each.name))


def _resolve(guides: Sequence[Guide], target: Target) -> int:
    """Returns a target's index, which must be the same for all guides."""
    found = {each.resolve(target) for guide in guides for each in _vocabularies(guide.objective)}
    if len(found) > 1:
        raise InputError(
            f"target: {target!r} is class {' and '.join(map(str, sorted(found)))} of the classifiers given; "
            "allowed: the same for all, by objectives that are Translated"
        )
    if found:
        return found.pop()
    if isinstance(target, str) or target < 0:
        raise InputError(f"target: {target!r} given, and no classifier of the guides has names; allowed: 0 and more")
    return int(target)


class _Pull(torch.autograd.Function):
    """A value whose gradient is pulled back by hand: from the network's output to the sample, past the pipeline."""

    @staticmethod
    def forward(ctx: Any, x_t: Tensor, value: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        ctx.pull = pull
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # noqa: ANN401
        return ctx.pull(grad_outputs[0]), None, None


class _Walk:
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
        self.network = _first(pipe, "unet", "transformer")
        if self.scheduler is None or self.network is None:
            raise InputError(
                f"pipe: {type(pipe).__name__} given; allowed: a pipeline with a scheduler and a unet or transformer"
            )
        self.name = name_of(self.scheduler)
        self.vae = _first(pipe, "vae", "vqvae")
        self.guides = guides if self.vae is None else tuple(map(after_decoding, guides))
        self.through = any(guide.scale and guide.differentiates_denoiser for guide in guides)
        self.network_name = type(getattr(self.network, "_orig_mod", self.network)).__name__
        self.layout = LAYOUTS.get(self.network_name, as_images)
        self._check()
        self.targets = self._targets(target)
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
        if self.listens and getattr(self.network, "_compiled_call_impl", None) is not None:
            raise InputError(
                "pipe: its network is compiled in place, and what enters it must be known here; allowed: "
                "torch.compile(network), or the route direct on samples that are not packed"
            )
        if self.network_name == "DiTTransformer2DModel" and PLACES[self.name] is by_ratio:
            raise InputError(
                f"scheduler: {self.name} given, whose step DiTPipeline hands a sample that is scaled already; allowed: "
                "one that does not scale, such as DDIMScheduler"
            )
        if self.through and any(map(_moves, self._parts())):
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
        return ("estimate",) if self.name in KEEPS_SAMPLE else ("estimate", "mean")

    def _parts(self) -> Iterator[nn.Module]:
        for each in (self.network, self.vae):
            yield from () if each is None else each.modules()

    def _targets(self, target: Target | Sequence[Target] | None) -> Int[Tensor, " N"]:
        if target is None:
            if self.guides:
                raise InputError("target: none given, but there are guides; allowed: one for all images, or one each")
            return torch.zeros(1, dtype=torch.int64)
        single = isinstance(target, int | str)
        return torch.tensor([_resolve(self.guides, each) for each in ([target] if single else target)])

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
            listener = self.network.register_forward_pre_hook(self._listen, with_kwargs=True)
            stack.callback(listener.remove)
        if self.through:
            stack.enter_context(_frozen(self.network))
        if self.vae is not None:
            stack.enter_context(_frozen(self.vae))
            stack.enter_context(_recomputed(self.vae))
        self.decoder = Decoder(self._exact_vae(), self._schedule())

    def _exact_vae(self) -> Any:  # noqa: ANN401
        """Returns the VAE; a copy in float32 where it overflows in half precision."""
        if self.vae is None or self.vae.dtype != torch.float16 or not self.vae.config.get("force_upcast"):
            return self.vae
        if any(hasattr(each, "_hf_hook") for each in self.vae.modules()):
            raise InputError(
                "pipe: its VAE is offloaded, and overflows in float16; allowed: a VAE in float32 or bfloat16"
            )
        return copy.deepcopy(self.vae).float()

    def _schedule(self) -> Schedule:
        if (alpha_bar := getattr(self.scheduler, "alphas_cumprod", None)) is None:
            return Flow()
        return VP(alpha_bar=alpha_bar.detach().to("cpu", torch.float64))

    def _begin(self) -> None:
        """A new walk: nothing is known of it yet."""
        self.steering: Steering | None = None
        self.start, self.calls, self.index = 0, 0, -1
        self.step: Step | None = None
        self.told: Mapping[str, Any] = {}
        self.leaves: list[Tensor] = []
        self.grad_was: bool | None = None

    def _set_timesteps(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self._begin()
        return own(*args, **kwargs)

    def _listen(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Sees what enters the network; on the route through, makes it a leaf and turns gradients on."""
        names = list(inspect.signature(getattr(network, "_orig_mod", network).forward).parameters)
        self.told = {**dict(zip(names, args, strict=False)), **kwargs}
        if not self._due():
            return args, kwargs
        self.grad_was = torch.is_grad_enabled() if self.grad_was is None else self.grad_was
        torch.set_grad_enabled(True)
        leaf = self.told[names[0]].detach().requires_grad_()
        self.leaves.append(leaf)
        return ((leaf, *args[1:]), kwargs) if args else (args, {**kwargs, names[0]: leaf})

    def _due(self) -> bool:
        """Whether the coming step differentiates the network; of the first, little is known before it comes."""
        if not self.through or self.steering is None or self.step is None:
            return self.through
        if (position := self.start + self.calls) >= len(self.scheduler.timesteps):
            return True
        place = PLACES[self.name](self.scheduler, time_at(self.scheduler, position), position)
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
        return Step(index, count, 0, 0, place.level, place.next, variance, torch.maximum(peak, variance.to(peak)))

    def _step(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The scheduler's step, with the guides' pushes."""
        if self.grad_was is not None:
            torch.set_grad_enabled(self.grad_was)
            self.grad_was = None
        leaves, self.leaves = self.leaves, []
        call = inspect.signature(own).bind(*args, **kwargs)
        # A pipeline may run in inference mode, whose tensors take part in no gradient: here they are copied.
        with torch.inference_mode(False), torch.no_grad():
            asked = self._ask(call.arguments, leaves)
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
        position = self.start + self.calls
        place = PLACES[self.name](self.scheduler, number(given["timestep"]), position)
        layout = self.layout(sample, self.told)
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
            raw = self._linked(x_t, raw, leaves, layout, sample[:rows]) if through else raw.detach()
            prediction = Prediction(to_x0(self.kind, x_t, raw, place.level), fraction)
        x0_hat = prediction.x0_hat.detach()
        estimate = Estimate(x0_hat, eps_from_x0(x_t.detach(), x0_hat, place.level), self.step.variance)
        guided = self.steering.estimate(x_t, prediction, estimate, self.step)
        if guided is not estimate and self._defined(place.level):
            self._change(given, layout, place, estimate, guided)
        return _Asked(place, layout, x_t.detach(), x0_hat)

    def _each(self, rows: int, device: torch.device) -> Int[Tensor, " B"]:
        """Returns one target an image."""
        if len(self.targets) not in (1, rows):
            raise InputError(f"target: {len(self.targets)} given for {rows} images; allowed: one, or one an image")
        return self.targets.to(device).expand(rows)

    def _defined(self, level: Level) -> bool:
        """Whether the pushes into the estimate have a value; the noise injection has none where there is no signal."""
        return bool(level.alpha > 0) or not any(isinstance(guide.injection, NoisePrediction) for guide in self.guides)

    def _linked(
        self, x_t: Tensor, raw: Tensor, leaves: list[Tensor], layout: Layout, sample: Tensor
    ) -> Float[Tensor, "B C H W"]:
        """Returns the output as a function of ``x_t``, by the graph from the leaves that entered the network."""
        if not leaves or not raw.requires_grad:
            raise InputError(
                "route: through given, but no gradient leads from the scheduler's step to the network's input (it is "
                "quantised without one, or another network was asked); allowed: direct"
            )
        inside = tuple(slice(0, size) for size in sample.shape[1:])

        def fold(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (-1, len(sample)))[(slice(None), slice(None), *inside)]

        def copies(leaf: Tensor) -> bool:
            seen = layout.pack(x_t.detach())
            if leaf.ndim != seen.ndim or len(leaf) % len(seen):
                return False
            first = fold(leaf.detach())[0].to(seen)
            return first.shape == seen.shape and torch.allclose(first, seen, rtol=1e-2, atol=1e-2)  # in half precision

        if not all(map(copies, leaves)):
            raise InputError("route: through given, but the network is fed another than the sample; allowed: direct")

        def pull(g: Tensor) -> Tensor:
            found = torch.autograd.grad(raw, leaves, g, retain_graph=True, allow_unused=True)
            return sum(
                (layout.unpack(fold(each).sum(0)).to(g) for each in found if each is not None), torch.zeros_like(g)
            )

        return _Pull.apply(x_t, raw.detach(), pull)  # pyright: ignore[reportReturnType]

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
        outcome.replace(held + _repeated(more, asked.layout.copies))

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


def _first(pipe: Any, *names: str) -> Any:  # noqa: ANN401
    """Returns the first of a pipeline's parts that it has."""
    return next((part for name in names if (part := getattr(pipe, name, None)) is not None), None)


def _repeated(rows: Tensor, copies: int) -> Tensor:
    return rows if copies == 1 else torch.cat([rows] * copies)


def _moves(module: nn.Module) -> bool:
    """Whether accelerate or diffusers does something to a module's weights or values between its calls."""
    return hasattr(module, "_hf_hook") or bool(getattr(getattr(module, "_diffusers_hook", None), "hooks", None))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Leaves the weights without gradients."""
    asking = [name for name, weight in module.named_parameters() if weight.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        weights = dict(module.named_parameters())  # by name: offloading puts others in their place
        for name in asking:
            weights[name].requires_grad_(True)


@contextmanager
def _recomputed(vae: Any) -> Iterator[None]:  # noqa: ANN401
    """Lets the VAE's blocks forget what they computed, and do it again for the gradient."""
    if not getattr(vae, "_supports_gradient_checkpointing", False) or vae.is_gradient_checkpointing:
        yield
        return
    keys = ("gradient_checkpointing", "_gradient_checkpointing_func")
    parts = [each for each in vae.modules() if hasattr(each, keys[0])]
    before = [{key: vars(each)[key] for key in keys if key in vars(each)} for each in parts]
    vae.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for each, known in zip(parts, before, strict=True):
            for key in keys:
                vars(each).pop(key, None)
            vars(each).update(known)
