"""A pipeline's networks while guides differentiate them: without gradients of their own, and with little memory."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from steersman.errors import InputError

__all__ = ["exact", "first", "frozen", "moves", "recomputed"]


def first(pipe: Any, *names: str) -> Any:  # noqa: ANN401
    """Returns the first of a pipeline's parts that it has."""
    return next((part for name in names if (part := getattr(pipe, name, None)) is not None), None)


def moves(module: nn.Module) -> bool:
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
        raise InputError("pipe: its VAE is offloaded, and overflows in float16; allowed: a VAE in float32 or bfloat16")
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
