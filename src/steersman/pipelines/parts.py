"""A pipeline's parts while guides differentiate them: without gradients of their own, and with little memory."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from steersman.errors import InputError
from steersman.pipelines.layout import PACKED

__all__ = ["Parts", "exact", "frozen", "original", "recomputed"]

NETWORKS = ("unet", "transformer")
VAES = ("vae", "vqvae", "movq")
SOUNDS = ("vocoder", "audio_vae")


class Parts(NamedTuple):
    """What a pipeline consists of.

    Attributes:
        networks: The networks that predict the noise; the first one's class tells the family.
        vae: What decodes its latents, or None where it draws images.
        others: All other modules that it calls.
    """

    networks: tuple[nn.Module, ...]
    vae: Any
    others: tuple[nn.Module, ...]

    @classmethod
    def of(cls, pipe: Any) -> "Parts":  # noqa: ANN401
        """Returns a pipeline's parts.

        Raises:
            InputError: It has no network that denoises, or makes sounds.
        """
        found = getattr(pipe, "components", None)
        named: Mapping[str, Any] = found if isinstance(found, Mapping) else vars(pipe)
        modules = {key: part for key, part in named.items() if isinstance(part, nn.Module)}
        networks = tuple(modules[key] for key in sorted(modules) if key.startswith(NETWORKS))
        if not networks or getattr(pipe, "scheduler", None) is None:
            raise InputError(
                f"pipe must be a pipeline with a scheduler and a unet or transformer, got {type(pipe).__name__}"
            )
        if sounds := [key for key in SOUNDS if key in modules]:
            raise InputError(
                f"pipe must draw images or videos, got {type(pipe).__name__}, which makes sounds by its {sounds[0]}"
            )
        vae = next((modules[key] for key in VAES if key in modules), None)
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
        """What the first network computes in."""
        floating = (each.dtype for each in self.networks[0].parameters() if each.is_floating_point())
        return next(floating, torch.float32)

    def check(self, pipe: Any, *, through: bool, asks: bool) -> None:  # noqa: ANN401
        """Refuses a pipeline whose parts cannot be used as guides need.

        Args:
            pipe: The pipeline.
            through: Whether the networks are differentiated.
            asks: Whether they are asked again.

        Raises:
            InputError: A network compiled in place, weights that a gradient does not find again or cannot pass, latents
                packed in an unknown way, or a VAE that decodes by more than the latents.
        """
        if (through or asks) and any(map(_compiled_in_place, self.networks)):
            raise InputError(
                "pipe: its network is compiled in place, so that what enters it is not seen here; use "
                "torch.compile(network) instead, or the gradient with respect to x0_hat (wrt x0_hat) without "
                "lookahead, recurrence and particles"
            )
        differentiated = [*(self.networks if through else ()), *([] if self.vae is None else [self.vae])]
        if through and any(_moves(each) for part in differentiated for each in part.modules()):
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
        if any("unpack_latents" in each for each in dir(type(pipe))) and not any(each in takes for each in PACKED):
            raise InputError(
                f"pipe: {type(pipe).__name__} packs its latents in a way that is not known here; use a pipeline of "
                "docs/models.md"
            )
        if self.vae is not None:
            needed = _required(self.vae.decode)
            if not needed:  # older versions of diffusers hide it behind a wrapper of any arguments
                needed = _required(self.vae.decoder.forward)
            if len(needed) > 1:
                raise InputError(
                    f"pipe: its {type(self.vae).__name__} must decode by the latents alone, but needs "
                    f"{', '.join(needed[1:])} too; use a pipeline of docs/models.md"
                )


def _required(call: Callable[..., object]) -> list[str]:
    """Returns the names of the arguments without which a function cannot be called."""
    return [
        key
        for key, each in inspect.signature(call).parameters.items()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]


def original(module: nn.Module) -> nn.Module:
    """Returns the module that `torch.compile` has wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _compiled_in_place(module: nn.Module) -> bool:
    """Whether ``module.compile`` replaced its call, past which nothing can be seen of it."""
    return getattr(module, "_compiled_call_impl", None) is not None


def _moves(module: nn.Module) -> bool:
    """Whether accelerate or diffusers does something to a module's weights or values between its calls."""
    return hasattr(module, "_hf_hook") or bool(getattr(getattr(module, "_diffusers_hook", None), "hooks", None))


def exact(vae: Any) -> Any:  # noqa: ANN401
    """Returns the VAE; a copy in float32 where it overflows in half precision.

    Raises:
        InputError: It overflows, and its weights are elsewhere.
    """
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        return vae
    if any(hasattr(each, "_hf_hook") for each in vae.modules()):
        raise InputError("pipe: its VAE is offloaded, and overflows in float16; use a VAE in float32 or bfloat16")
    return copy.deepcopy(vae).float()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
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
def recomputed(vae: Any) -> Iterator[None]:  # noqa: ANN401
    """Lets the VAE's blocks forget what they computed, and do it again for the gradient, where it can."""
    if getattr(vae, "is_gradient_checkpointing", True):
        yield
        return
    try:
        vae.enable_gradient_checkpointing()
    except ValueError:  # it cannot
        yield
        return
    try:
        yield
    finally:
        vae.disable_gradient_checkpointing()
