"""A pipeline's parts while guides differentiate them: without gradients of their own, and with little memory."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from steersman.errors import InputError
from steersman.pipelines.layout import PACKED

__all__ = ["Parts", "around_calls", "exact", "frozen", "original", "recomputed"]

_NETWORKS = ("unet", "transformer")
_VAES = ("vae", "vqvae", "movq")
_SOUNDS = ("vocoder", "audio_vae")


class Parts(NamedTuple):
    """What a pipeline consists of.

    Attributes:
        networks: The networks that predict the noise; the first one's class identifies the family.
        vae: The decoder of its latents, or None where it draws images.
        others: All other modules that it calls.
    """

    networks: tuple[nn.Module, ...]
    vae: Any
    others: tuple[nn.Module, ...]

    @classmethod
    def of(cls, pipe: Any) -> "Parts":  # noqa: ANN401
        """Returns a pipeline's parts; refuses one without a denoising network, or that makes sounds."""
        components = getattr(pipe, "components", None)
        named: Mapping[str, Any] = components if isinstance(components, Mapping) else vars(pipe)
        modules = {key: part for key, part in named.items() if isinstance(part, nn.Module)}
        networks = tuple(modules[key] for key in sorted(modules) if key.startswith(_NETWORKS))
        if not networks or getattr(pipe, "scheduler", None) is None:
            raise InputError(
                f"pipe must be a pipeline with a scheduler and a unet or transformer, got {type(pipe).__name__}"
            )
        if sounds := [key for key in _SOUNDS if key in modules]:
            raise InputError(
                f"pipe must draw images or videos, got {type(pipe).__name__}, which makes sounds by its {sounds[0]}"
            )
        vae = next((modules[key] for key in _VAES if key in modules), None)
        others = []
        for part in modules.values():
            if not any(part is network for network in networks):
                others += part.children() if hasattr(part, "decode") else [part]  # a VAE is not called itself
        return cls(networks, vae, tuple(others))

    @property
    def name(self) -> str:
        """The class of the first network."""
        return type(original(self.networks[0])).__name__

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the first network computes in."""
        floating = (weight.dtype for weight in self.networks[0].parameters() if weight.is_floating_point())
        return next(floating, torch.float32)

    def check(self, pipe: Any, *, through: bool, asks: bool) -> None:  # noqa: ANN401
        """Refuses parts that cannot be used as guides need: differentiated (through), or asked again (asks)."""
        if (through or asks) and any(
            getattr(network, "_compiled_call_impl", None) is not None for network in self.networks
        ):
            raise InputError(
                "pipe: its network is compiled in place, so that what enters it is not seen here; use "
                "torch.compile(network) instead, or the gradient with respect to x0_hat (wrt x0_hat) without "
                "lookahead, recurrence and particles"
            )
        differentiated = [*(self.networks if through else ()), *([] if self.vae is None else [self.vae])]
        if through and any(_moves(module) for part in differentiated for module in part.modules()):
            raise InputError(
                "gradient with respect to x_t: the pipeline's weights are offloaded, cast or cached between calls, and "
                "the gradient needs them as they were; take it with respect to x0_hat (wrt x0_hat), or keep the "
                "pipeline on one device"
            )
        if any(weight.is_inference() for part in differentiated for weight in part.parameters()):
            raise InputError(
                "pipe: its weights were made in torch.inference_mode(), so that no gradient can pass them; load the "
                "pipeline outside of it"
            )
        takes = inspect.signature(original(self.networks[0]).forward).parameters
        if any("unpack_latents" in name for name in dir(type(pipe))) and not any(name in takes for name in PACKED):
            raise InputError(
                f"pipe: {type(pipe).__name__} packs its latents in a way that is not known here; use a pipeline of "
                "docs/models.md"
            )
        if self.vae is not None:
            # Older versions of diffusers hide decode behind a wrapper of any arguments.
            needed = _required(self.vae.decode) or _required(self.vae.decoder.forward)
            if len(needed) > 1:
                raise InputError(
                    f"pipe: its {type(self.vae).__name__} must decode by the latents alone, but needs "
                    f"{', '.join(needed[1:])} too; use a pipeline of docs/models.md"
                )


def original(module: nn.Module) -> nn.Module:
    """Returns the module that `torch.compile` has wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _required(call: Callable[..., object]) -> list[str]:
    """Returns the names of the arguments without which a function cannot be called."""
    parameters = inspect.signature(call).parameters.items()
    return [key for key, each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]


def _moves(module: nn.Module) -> bool:
    """Whether accelerate or diffusers does something to a module's weights or values between its calls."""
    return hasattr(module, "_hf_hook") or bool(getattr(getattr(module, "_diffusers_hook", None), "hooks", None))


def exact(vae: Any) -> Any:  # noqa: ANN401
    """Returns the VAE, or a copy in float32 where it overflows in half precision."""
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        return vae
    if any(hasattr(module, "_hf_hook") for module in vae.modules()):
        raise InputError("pipe: its VAE is offloaded, and overflows in float16; use a VAE in float32 or bfloat16")
    return copy.deepcopy(vae).float()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Leaves the weights without gradients."""
    trained = [name for name, weight in module.named_parameters() if weight.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        weights = dict(module.named_parameters())  # by name: offloading puts others in their place
        for name in trained:
            weights[name].requires_grad_(True)


@contextmanager
def recomputed(vae: Any) -> Iterator[None]:  # noqa: ANN401
    """Recomputes the activations of the VAE's blocks in the backward pass, where it can."""
    supported = not getattr(vae, "is_gradient_checkpointing", True)
    try:
        if supported:
            vae.enable_gradient_checkpointing()
    except ValueError:
        supported = False
    try:
        yield
    finally:
        if supported:
            vae.disable_gradient_checkpointing()


@contextmanager
def around_calls(pipe: object, around: Callable[[Mapping[str, Any]], AbstractContextManager[None]]) -> Iterator[None]:
    """Runs each call of a pipeline inside the context that ``around`` returns for its arguments.

    Python looks ``pipe(...)`` up in the class; so the pipeline gets a class of its own for the while, which inherits
    from its class and has its name. A pipeline that cannot be called is left alone.
    """
    kind: Any = type(pipe)
    if not callable(pipe):
        yield
        return
    own = kind.__call__

    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if self is not pipe:  # a copy of it, which keeps the class
            return own(self, *args, **kwargs)
        with around(inspect.signature(own).bind_partial(self, *args, **kwargs).arguments):
            return own(self, *args, **kwargs)

    names = {key: getattr(kind, key) for key in ("__module__", "__qualname__", "__doc__")}
    steered: Any = pipe
    steered.__class__ = type(kind.__name__, (kind,), {"__call__": call, **names})
    try:
        yield
    finally:
        steered.__class__ = kind
