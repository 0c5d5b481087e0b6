"""Rows of a batch: taken, sent to a device, and summed so that a row's sum does not depend on the other rows.

A sum of floats depends on the order of its additions, and `torch.sum` takes that order from the shape of the whole
batch: on a CPU one row is shared out among threads and several rows are not; on CUDA the number of rows decides how
many threads add up one of them (ATen's ``Reduce.cuh``). Guidance amplifies such a difference, so an image would change
with its batch. Here the two halves of a row are added to each other until one value is left:

    y_i = x_i + x_(i + h),   h = ceil(n / 2),   and again with the h values y

Each of these additions is elementwise, which IEEE arithmetic rounds in one way only. So the sum depends on the row
alone: on no batch, thread count or device. It is also more accurate than adding one value after the other, and waits
for no device.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["cosine", "each_tensor", "logsumexp", "norm", "repeat", "rms", "send", "take", "total"]


def send(rows: Tensor, device: torch.device | str) -> Tensor:
    """Returns a tensor of the host on a device, without waiting for what the device is doing."""
    if torch.device(device).type == "cuda" and rows.device.type == "cpu":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


def take(held: Any, rows: Int[Tensor, " N"]) -> Any:  # noqa: ANN401
    """Returns the same with those rows of every tensor in it, in that order and as often as they are named.

    Args:
        held: Tensors, whatever `each_tensor` finds them in, or anything else; what has no rows stays as it is, numbers
            and tensors without dimensions among it.
        rows: Their numbers.
    """
    return each_tensor(held, lambda x: x[rows] if x.ndim else x)


def each_tensor(held: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """Returns the same with every tensor in it changed; it is held by (named) tuples, lists and dictionaries."""
    if isinstance(held, Tensor):
        return change(held)
    if isinstance(held, tuple | list):
        parts = [each_tensor(part, change) for part in held]
        return type(held)(*parts) if hasattr(held, "_fields") else type(held)(parts)
    if isinstance(held, dict):
        return {key: each_tensor(part, change) for key, part in held.items()}
    return held


class _Sum(torch.autograd.Function):
    """The sum over one dimension, which stays with size 1, by halves; its gradient is `_Repeat`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:  # noqa: ANN401
        ctx.dim, ctx.count = dim, x.shape[dim]
        if ctx.count == 0:
            return x.sum(dim, keepdim=True)
        while (count := x.shape[dim]) > 1:
            half = (count + 1) // 2
            added = x.narrow(dim, 0, count - half) + x.narrow(dim, half, count - half)
            x = torch.cat([added, x.narrow(dim, half - 1, 1)], dim) if count % 2 else added
        return x.clone()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        g: Tensor,
    ) -> tuple[Tensor, None]:
        return repeat(g, ctx.dim, ctx.count), None


class _Repeat(torch.autograd.Function):
    """A dimension of size 1 repeated; its gradient is `_Sum`, where broadcasting would use `torch.sum`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, count: int) -> Tensor:  # noqa: ANN401
        ctx.dim = dim
        return x.expand(*x.shape[:dim], count, *x.shape[dim + 1 :]).contiguous()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        g: Tensor,
    ) -> tuple[Tensor, None, None]:
        return _Sum.apply(g, ctx.dim), None, None  # pyright: ignore[reportReturnType]


def repeat(x: Float[Tensor, "..."], dim: int, count: int) -> Float[Tensor, "..."]:
    """Returns a tensor whose dimension of size 1 is repeated; use it before arithmetic that has a gradient."""
    return _Repeat.apply(x, dim, count)  # pyright: ignore[reportReturnType]


def total(x: Float[Tensor, "B *shape"]) -> Float[Tensor, " B"]:
    """Returns the sum of each row's values."""
    return _Sum.apply(x.reshape(len(x), -1), 1)[:, 0]  # pyright: ignore[reportOptionalSubscript]


def norm(x: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *ones"]:
    """Returns each row's length ``|x|``, in a shape that broadcasts; squares neither overflow nor vanish."""
    return _root(x, 1)


def rms(x: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *ones"]:
    """Returns each row's root mean square, in a shape that broadcasts; squares neither overflow nor vanish."""
    return _root(x, x[0].numel())


def _root(x: Tensor, count: int) -> Tensor:
    """Returns the root of each row's summed squares over a count.

    Rows whose largest value is far from 1 are scaled by a power of two before they are squared, which rounds nothing.
    """
    rows = x.reshape(len(x), -1)
    exponents = {torch.float64: 1023}.get(x.dtype, 127)
    large, factor = 2.0 ** (3 * exponents // 8), 2.0 ** (3 * exponents // 4)
    most = rows.detach().abs().amax(1)
    scale = torch.where(most > large, 1 / factor, torch.where(most < 1 / large, factor, torch.ones_like(most)))
    root = (total((rows * scale[:, None]).square()) / count).sqrt() / scale
    return root.reshape(-1, *[1] * (x.ndim - 1))


def logsumexp(x: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Returns ``log sum_k exp(x_k)`` of each row."""
    most = x.detach().amax(1, keepdim=True)
    most = torch.where(most.isfinite(), most, 0)
    return total((x - most).exp()).log() + most[:, 0]


def cosine(x: Float[Tensor, "B D"], y: Float[Tensor, "K D"]) -> Float[Tensor, "B K"]:
    """Returns the cosine of each row of one with each row of the other; 0 where a row is zero."""
    x, y = (each / repeat(torch.where((size := norm(each)) > 0, size, 1), 1, each.shape[1]) for each in (x, y))
    pairs = repeat(x[:, None], 1, len(y)) * y
    return total(pairs.flatten(0, 1)).reshape(len(x), len(y))
