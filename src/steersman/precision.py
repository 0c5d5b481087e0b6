"""The precision of networks: IEEE float32, and gradients that survive float16.

**float32.** torch lets cuDNN convolve in TF32 and choose its algorithm by a race, and a program may allow TF32 or
bfloat16 in matrix products. Guidance amplifies rounding, so that two runs would draw different images. Within `ieee`,
float32 is IEEE arithmetic by deterministic algorithms; the program's own settings come back after it.

**float16** rounds the small gradients of a confident classifier to zero. So the gradient v of each image at the
network's output is multiplied by a power of two, which rounds nothing, and the one at its input is divided by it:

    J^T v = J^T (c v) / c,    c = 2^(8 - floor(log2 max |v|))

``max |c v|`` is in [256, 512): a factor of 128 from overflow, and 2^22 above the values that lose digits.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steersman.batching import broadcast

__all__ = ["ieee", "loss_scaled"]

EXPONENT = 0x7F800000  # the bits of a float32 that are its exponent
LARGEST = 2.0**8  # the power of two below an image's largest scaled gradient
FURTHEST = 2.0**100  # a bound within which the scale and its inverse are float32 numbers

_lock = threading.Lock()
_inside = 0
_restore: list[Callable[[], object]] = []


@contextmanager
def ieee() -> Iterator[None]:
    """Computes float32 in IEEE arithmetic by deterministic algorithms; also a decorator.

    The settings are those of the process: the last thread that leaves restores them.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _restore[:] = _set_ieee()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                while _restore:
                    _restore.pop()()


def _set_ieee() -> list[Callable[[], object]]:
    """Sets the process's precision, and returns the calls that restore it, to be made last first."""
    cudnn, cublas, onednn = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn
    owners = [cublas, *(getattr(cudnn, name, None) for name in ("conv", "rnn"))]
    owners += [getattr(onednn, name, None) for name in ("matmul", "conv", "rnn")]
    restore: list[Callable[[], object]] = []

    def change(old: object, new: object, setter: Callable[[Any], object]) -> None:
        restore.append(partial(setter, old))
        setter(new)

    for name, value in (("deterministic", True), ("benchmark", False)):
        change(getattr(cudnn, name), value, partial(setattr, cudnn, name))
    # Since 2.9 torch has a second name for each of the settings below. Where a caller has set the newer names apart
    # from the older ones, reading an older one is an error, and then the newer ones are set alone.
    newer = [owner for owner in owners if hasattr(owner, "fp32_precision")]
    restore += [partial(setattr, owner, "fp32_precision", owner.fp32_precision) for owner in newer]
    with suppress(RuntimeError):
        change(torch.get_float32_matmul_precision(), "highest", torch.set_float32_matmul_precision)
    with suppress(RuntimeError):
        change(cudnn.allow_tf32, False, partial(setattr, cudnn, "allow_tf32"))
    for owner in newer:
        owner.fp32_precision = "ieee"
    return restore


def loss_scaled(network: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """Returns a network whose gradients do not vanish in float16; in any other type, the network itself.

    The network maps a batch in float32 or float64, and inputs without a gradient, to outputs in such a type.
    """
    if dtype != torch.float16:
        return network

    def scaled(x: Tensor, *others: Tensor) -> Tensor:
        if x.dtype == torch.float16:  # which has no room for a scale
            return network(x, *others)
        scale = x.new_ones(())

        def multiply(v: Tensor) -> Tensor:
            nonlocal scale
            largest = v.detach().abs().reshape(len(v), -1).amax(1).float()
            power = (largest.view(torch.int32) & EXPONENT).view(torch.float32)  # 2^floor(log2), without waiting
            scale = LARGEST / power.clamp(1 / FURTHEST, FURTHEST)
            return v * broadcast(scale, v)

        x = x.view_as(x)  # a node of its own, whose gradient is the network's alone
        output = network(x, *others)
        output = output.view_as(output)
        if output.requires_grad:
            output.register_hook(multiply)
        if x.requires_grad:
            x.register_hook(lambda g: g / broadcast(scale, g))
        return output

    return scaled
