"""Rows of a batch, computed so that none depends on the others: sums, network evaluations, and smaller batches.

The order of additions in `torch.sum`, and with it the rounding, depends on the shape of the whole batch, and guidance
amplifies rounding. Here the two halves of a row are added until one value is left:

    y_i = x_i + x_(i + h),   h = ceil(n / 2),   and again with the h values y

Each addition is elementwise, so a row's sum depends on the row alone, on no batch, thread count or device. So that a
network's output is the same for an image in any batch, it sees blocks of one fixed size (`in_blocks`).
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steersman.errors import InputError, notice

__all__ = [
    "Batches",
    "block_size",
    "broadcast",
    "cosine",
    "counting",
    "each_tensor",
    "evaluations",
    "expand",
    "in_blocks",
    "is_out_of_memory",
    "logsumexp",
    "memory_permitting",
    "metered",
    "norm",
    "put",
    "repeat",
    "rms",
    "row_count",
    "send",
    "take",
    "tensors",
    "total",
]

CPU_BLOCK = 4  # images; more at a time are no faster on a CPU

OUT_OF_MEMORY = (
    *("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory", "Cannot allocate memory"),
)
"""Messages of CUDA, MPS, cuDNN, cuBLAS, the CPU's allocator and the system."""

Made = TypeVar("Made")

_thread = threading.local()


def send(rows: Tensor, device: torch.device | str) -> Tensor:
    """Returns a tensor of the host on a device, without waiting for the device."""
    if torch.device(device).type == "cuda" and rows.device.type == "cpu":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


def broadcast(value: Float[Tensor, "*batch"], like: Tensor) -> Tensor:
    """Casts a number of each row to a batch's dtype, and shapes (B,) to (B, 1, 1, 1); a scalar stays on the CPU."""
    if value.ndim == 0:
        return value.to(dtype=like.dtype)
    return value.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def take(content: Any, rows: Int[Tensor, " N"]) -> Any:  # noqa: ANN401
    """Returns nested content with these rows of every tensor in it; scalars and other values stay as they are."""
    return each_tensor(content, lambda x: x[rows] if x.ndim else x)


def put(content: Any, rows: Int[Tensor, " N"], new: Any) -> Any:  # noqa: ANN401
    """Returns nested content with these rows of every tensor in it replaced by those of content of the same form."""
    parts = iter(tensors(new))

    def replaced(x: Tensor) -> Tensor:
        part = next(parts)
        return x.index_copy(0, rows, part) if x.ndim else x

    return each_tensor(content, replaced)


def row_count(content: Any) -> int:  # noqa: ANN401
    """Returns the number of rows of nested content, that of the first tensor in it."""
    return len(tensors(content)[0])


def expand(content: Any, count: int, device: torch.device | str) -> Any:  # noqa: ANN401
    """Returns nested content of one row, or of ``count``, with ``count`` rows on a device, without waiting for it."""
    return each_tensor(content, lambda x: send(x, device).expand(count, *x.shape[1:]))


def each_tensor(content: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """Returns nested (named) tuples, lists and dictionaries with every tensor changed."""
    if isinstance(content, Tensor):
        return change(content)
    if isinstance(content, tuple | list):
        parts = [each_tensor(part, change) for part in content]
        return type(content)(*parts) if hasattr(content, "_fields") else type(content)(parts)
    if type(content) is dict:  # other mappings are outputs of networks, with attributes
        return {key: each_tensor(part, change) for key, part in content.items()}
    return content


def tensors(content: Any) -> list[Tensor]:  # noqa: ANN401
    """Returns the tensors in nested tuples, lists and mappings, diffusers' outputs among them."""
    if isinstance(content, Tensor):
        return [content]
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, tuple | list) else ()
    return [x for part in parts for x in tensors(part)]


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
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        return _Repeat.apply(g, ctx.dim, ctx.count), None  # pyright: ignore[reportReturnType]


class _Repeat(torch.autograd.Function):
    """A dimension of size 1 repeated; its gradient is `_Sum`, where broadcasting would use `torch.sum`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, count: int) -> Tensor:  # noqa: ANN401
        ctx.dim = dim
        return x.expand(*x.shape[:dim], count, *x.shape[dim + 1 :]).contiguous()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        return _Sum.apply(g, ctx.dim), None, None  # pyright: ignore[reportReturnType]


def repeat(x: Float[Tensor, "..."], dim: int, count: int) -> Float[Tensor, "..."]:
    """Returns a tensor with a dimension of size 1 repeated; for arithmetic that would broadcast and has a gradient."""
    return _Repeat.apply(x, dim, count)  # pyright: ignore[reportReturnType]


def total(x: Float[Tensor, "B *shape"]) -> Float[Tensor, " B"]:
    """Returns the sum of each row."""
    return _Sum.apply(x.reshape(len(x), -1), 1)[:, 0]  # pyright: ignore[reportOptionalSubscript]


def norm(x: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *ones"]:
    """Returns the length ``|x|`` of each row, in a shape that broadcasts; squares neither overflow nor vanish."""
    return _root(x, 1)


def rms(x: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *ones"]:
    """Returns the root mean square of each row, in a shape that broadcasts; squares neither overflow nor vanish."""
    return _root(x, x[0].numel())


def _root(x: Tensor, count: int) -> Tensor:
    """Returns the root of each row's summed squares over a count."""
    rows = x.reshape(len(x), -1)
    # Rows far from 1 are scaled by a power of two before they are squared, which rounds nothing.
    exponents = {torch.float64: 1023}.get(x.dtype, 127)
    large, factor = 2.0 ** (3 * exponents // 8), 2.0 ** (3 * exponents // 4)
    largest = rows.detach().abs().amax(1)
    scale = torch.where(largest > large, 1 / factor, torch.where(largest < 1 / large, factor, torch.ones_like(largest)))
    root = (total((rows * scale[:, None]).square()) / count).sqrt() / scale
    return root.reshape(-1, *[1] * (x.ndim - 1))


def logsumexp(x: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Returns ``log sum_k exp(x_k)`` of each row."""
    largest = x.detach().amax(1, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0)
    return total((x - largest).exp()).log() + largest[:, 0]


def cosine(x: Float[Tensor, "B D"], y: Float[Tensor, "K D"]) -> Float[Tensor, "B K"]:
    """Returns the cosine of each row of one with each row of the other; 0 where a row is zero."""
    x, y = (rows / repeat(torch.where((size := norm(rows)) > 0, size, 1), 1, rows.shape[1]) for rows in (x, y))
    pairs = repeat(x[:, None], 1, len(y)) * y
    return total(pairs.flatten(0, 1)).reshape(len(x), len(y))


def block_size(device: str, batch_size: int) -> int:
    """Returns how many images networks see at a time on a device, for batches of a size."""
    return CPU_BLOCK if device == "cpu" else batch_size


def in_blocks(network: Callable[..., Tensor], size: int | None, *inputs: Tensor) -> Tensor:
    """Returns a network's outputs, always ``size`` rows at a time, the last block padded; at once where it is None."""
    if size is None:
        return network(*inputs)
    count = len(inputs[0])
    if missing := -count % size:
        inputs = tuple(torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) for rows in inputs)
    outputs = []
    for index, block in enumerate(zip(*(rows.split(size) for rows in inputs), strict=True)):
        _thread.share = min(count - index * size, size) / size
        try:
            outputs.append(network(*block))
        finally:
            _thread.share = 1.0
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[:count]


def _without_filling(rows: int) -> int:
    """Returns how many rows of a network's input are no padding; asked inside the network, as it runs."""
    return round(rows * getattr(_thread, "share", 1.0))


def metered(networks: Iterable[nn.Module]) -> None:
    """Has networks counted from now on; calling it again changes nothing."""
    for network in networks:
        if not vars(network).get("metered"):  # on the network, so that a copy, which has the hook, has it too
            network.register_forward_pre_hook(_count)
            vars(network)["metered"] = True


@contextmanager
def counting() -> Iterator[Counter[nn.Module]]:
    """Yields how many images this thread evaluates each metered network for, without those that fill up a block."""
    _thread.counts = counts = Counter[nn.Module]()
    try:
        yield counts
    finally:
        _thread.counts = None


def _count(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if (counts := getattr(_thread, "counts", None)) is not None:
        counts[network] += _without_filling(len(inputs[0]))


def evaluations(
    counts: Counter[nn.Module], networks: Mapping[str, Iterable[nn.Module]], images: int
) -> dict[str, float]:
    """Returns how many evaluations of each group of networks an image needed.

    It needs one for each of its particles, and two where classifier-free guidance evaluates with and without the label.
    """
    return {name: sum(counts[network] for network in group) / images for name, group in networks.items()}


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory ran out, whichever library raised it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY)


@contextmanager
def memory_permitting() -> Iterator[None]:
    """Ends the ``with`` block early where the memory does not hold what it computes; any other error is raised."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise


class Batches:
    """Work in batches, whose size is halved when the memory does not hold one.

    Attributes:
        size: The number of items in a batch from now on.
    """

    def __init__(
        self,
        size: int,
        *,
        on_halved: Callable[[int], object] = lambda size: None,
        tell: Callable[[str], object] = notice,
        refusal: str | None = None,
    ) -> None:
        """``on_halved`` gets each smaller size before it is tried; a refusal replaces the error of a single item."""
        self.size, self.on_halved, self.tell, self.refusal = size, on_halved, tell, refusal

    def map(self, work: Callable[..., Made], *items: Any) -> Iterator[Made]:  # noqa: ANN401
        """Yields the result of ``work`` for each batch of the items: sequences or tensors of the same length."""
        begin = 0
        while begin < len(items[0]):
            made, size = self._largest(work, *(each[begin:] for each in items))
            yield made
            begin += size

    def _largest(self, work: Callable[..., Made], *items: Any) -> tuple[Made, int]:  # noqa: ANN401
        """Returns the result for the largest batch that the memory holds, and the size of that batch."""
        first = self.size
        while True:
            size = self.size
            try:
                made = work(*(each[:size] for each in items))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1 and self.refusal is not None:
                    raise InputError(self.refusal) from error
                if size == 1:
                    raise
            else:
                if size < first:
                    self.tell(
                        f"the device's memory does not hold {first} images at a time: {size} are taken from now on"
                    )
                return made, size
            # Only here is the error released, and with it what was computed. Another thread may have halved meanwhile.
            self.size = min(self.size, size // 2)
            self.on_halved(self.size)
