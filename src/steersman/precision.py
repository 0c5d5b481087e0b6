"""What float32 means while images are drawn or measured, and how a gradient survives float16.

**float32** is IEEE arithmetic, and rounds the same way every time.

Left alone, torch lets cuDNN convolve float32 in TF32, which keeps 10 of the 23 bits of a mantissa, and a program may
ask for TF32 or bfloat16 in matrix products, on a CPU too. cuDNN may also choose an algorithm by a race between several,
and take one that adds in no fixed order. Guidance amplifies rounding, so that two runs would then draw other images.

Within `ieee` none of that happens. The settings are those of the process, so they are put back when the last thread
leaves; a program that uses the library finds them as it left them.

**float16** has no value between 0 and 6e-8. The gradient of a classifier that is sure is smaller, and a network that
computes in float16 would return zeros. So the gradient v of each image at the network's output is multiplied by a power
of two on its way in, and divided by it when it has left the network, at the input x:

    J^T v = J^T (c v) / c,    c = 2^(8 - floor(log2 max |v|))

Powers of two round nothing, and each image has its own, so that it depends on no other image. ``max |c v|`` lies
between 256 and 512, which leaves a factor of 128 before float16 overflows, and one of 2^22 before values lose digits. A
gradient that does overflow is not finite, and is dropped and counted as any other (`steersman.guidance.steering`).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LossScale", "ieee", "loss_scaled"]

EXPONENT = 0x7F800000  # the bits of a float32 that are its exponent
LARGEST = 2.0**8  # the power of two below an image's largest value at the output of a network in float16
FURTHEST = 2.0**100  # within its inverse and it the scale and its inverse are float32 numbers

_lock = threading.Lock()
_inside = 0
_back: list[Callable[[], object]] = []


@contextmanager
def ieee() -> Iterator[None]:
    """Has float32 computed in IEEE arithmetic, by algorithms that round alike every time; also usable as a decorator.

    It concerns cuBLAS, cuDNN and oneDNN: products and convolutions in float32, and cuDNN's choice of an algorithm in
    any type.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _back[:] = _set()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                while _back:
                    _back.pop()()


def _set() -> list[Callable[[], object]]:
    """Sets what is needed, and returns what puts each setting back, to be called last first."""
    cudnn, cublas, onednn = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn
    owners = [cublas, *(getattr(cudnn, each, None) for each in ("conv", "rnn"))]
    owners += [getattr(onednn, each, None) for each in ("matmul", "conv", "rnn")]
    back: list[Callable[[], object]] = []

    def put(held: object, wanted: object, setting: Callable[[Any], object]) -> None:
        back.append(partial(setting, held))
        setting(wanted)

    for name, wanted in (("deterministic", True), ("benchmark", False)):
        put(getattr(cudnn, name), wanted, partial(setattr, cudnn, name))
    # Since 2.9 torch has a second name for each of the settings below. Where a caller has set the newer names apart
    # from the older ones, reading an older one is an error, and then the newer ones are set alone.
    newer = [owner for owner in owners if hasattr(owner, "fp32_precision")]
    held = [owner.fp32_precision for owner in newer]
    for owner, value in zip(newer, held, strict=True):
        back.append(partial(setattr, owner, "fp32_precision", value))
    with suppress(RuntimeError):
        put(torch.get_float32_matmul_precision(), "highest", torch.set_float32_matmul_precision)
    with suppress(RuntimeError):
        put(cudnn.allow_tf32, False, partial(setattr, cudnn, "allow_tf32"))
    for owner in newer:
        owner.fp32_precision = "ieee"
    return back


class LossScale:
    """The powers of two that scale the gradients of a batch on their way through a network in float16.

    Both ends are in float32 or float64; the casts to float16 and back belong between them.
    """

    def __init__(self) -> None:
        self._scale: Tensor | None = None

    def enter(self, x: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *shape"]:
        """Returns the network's input; its gradient is divided by each image's scale."""
        return _Pulled.apply(x, self.give_back)  # pyright: ignore[reportReturnType]

    def leave(self, output: Float[Tensor, "B *out"]) -> Float[Tensor, "B *out"]:
        """Returns the network's output; its gradient is multiplied by each image's scale, which is taken from it."""
        return _Pulled.apply(output, self.take)  # pyright: ignore[reportReturnType]

    def take(self, g: Float[Tensor, "B *out"]) -> Float[Tensor, "B *out"]:
        """Returns a gradient at the output times the scale that it has from now on; no device is waited for."""
        most = g.detach().abs().reshape(len(g), -1).amax(1).float()
        power = (most.view(torch.int32) & EXPONENT).view(torch.float32)  # 2^floor(log2 most), exactly
        self._scale = LARGEST / power.clamp(1 / FURTHEST, FURTHEST)
        return g * self._like(g)

    def give_back(self, g: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *shape"]:
        """Returns a gradient at the input without the scale."""
        return g / self._like(g)

    def _like(self, g: Tensor) -> Tensor:
        assert self._scale is not None, "a gradient reaches the output of a network before its input"
        return self._scale.to(g.dtype).reshape(-1, *[1] * (g.ndim - 1))


class _Pulled(torch.autograd.Function):
    """A value as it is, whose gradient is changed on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        ctx.pull = pull
        return x.view_as(x)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        g: Tensor,
    ) -> tuple[Tensor, None]:
        return ctx.pull(g), None


def loss_scaled(network: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """Returns a network whose gradient does not vanish where it computes in float16; as it is in any other type.

    Args:
        network: Maps a batch in float32 or float64, and more that no gradient passes, to outputs in such a type.
        dtype: What it computes in.
    """
    if dtype != torch.float16:
        return network

    def scaled(x: Tensor, *others: Tensor) -> Tensor:
        if x.dtype == torch.float16:  # then the scale has no room either
            return network(x, *others)
        scale = LossScale()
        return scale.leave(network(scale.enter(x), *others))

    return scaled
