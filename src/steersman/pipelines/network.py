"""A pipeline's network, listened to: what enters it, and the gradient that comes back out.

On the route ``through``, every tensor that enters is made a leaf, and gradients stay on until the scheduler's step. A
leaf's rows are copies of ``x_t``, one for each part of classifier-free guidance; so with u what the pipeline made of
the outputs, the gradient in ``x_t`` is the sum over the leaves and their rows,

    J^T g = sum_leaves sum_copies d<g, u> / d leaf.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.errors import InputError
from steersman.pipelines.layout import Layout
from steersman.pipelines.told import by_name

__all__ = ["Network", "linked"]


class _Pull(torch.autograd.Function):
    """A value whose gradient is pulled back by hand: from the network's output to the sample, past the pipeline."""

    @staticmethod
    def forward(ctx: Any, x_t: Tensor, value: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        ctx.pull = pull
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # noqa: ANN401
        return ctx.pull(grad_outputs[0]), None, None


class Network:
    """A pipeline's network.

    Args:
        module: The network; compiled by ``torch.compile`` or not.

    Attributes:
        told: What it was told at last, by its parameters' names.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own: nn.Module = getattr(module, "_orig_mod", module)
        self.name = type(self.own).__name__
        self.forget()

    @property
    def compiled_in_place(self) -> bool:
        """Whether ``module.compile`` replaced its call, past which nothing can be listened to."""
        return getattr(self.module, "_compiled_call_impl", None) is not None

    def forget(self) -> None:
        """Forgets what it was told, as a new walk begins."""
        self.told: Mapping[str, Any] = {}
        self.leaves: list[Tensor] = []
        self.grad_was: bool | None = None

    @contextmanager
    def listened(self, due: Callable[[], bool]) -> Iterator[None]:
        """Listens to what enters.

        Args:
            due: Whether the coming step differentiates the network; then what enters becomes a leaf, and gradients are
                on until `take_leaves`.
        """

        def listen(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            self.told = by_name(self.own.forward, args, kwargs)
            if not due():
                return args, kwargs
            self.grad_was = torch.is_grad_enabled() if self.grad_was is None else self.grad_was
            torch.set_grad_enabled(True)
            first = next(iter(inspect.signature(self.own.forward).parameters))
            leaf = self.told[first].detach().requires_grad_()
            self.leaves.append(leaf)
            return ((leaf, *args[1:]), kwargs) if args else (args, {**kwargs, first: leaf})

        listener = self.module.register_forward_pre_hook(listen, with_kwargs=True)
        try:
            yield
        finally:
            listener.remove()

    def take_leaves(self) -> list[Tensor]:
        """Returns the leaves since the last time, and turns gradients back to what they were."""
        if self.grad_was is not None:
            torch.set_grad_enabled(self.grad_was)
            self.grad_was = None
        leaves, self.leaves = self.leaves, []
        return leaves


def linked(
    x_t: Float[Tensor, "B C H W"],
    output: Float[Tensor, "B C H W"],
    leaves: list[Tensor],
    layout: Layout,
    sample: Tensor,
) -> Float[Tensor, "B C H W"]:
    """Returns the output as a function of ``x_t``, by the graph from the leaves that entered the network.

    Args:
        x_t: The noisy images, which require a gradient.
        output: What the pipeline made of the network's outputs.
        leaves: What entered the network.
        layout: How a sample holds the images.
        sample: The scheduler's, one copy.

    Raises:
        InputError: No graph leads from the output to the leaves, or these are not the sample's copies.
    """
    if not leaves or not output.requires_grad:
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
        found = torch.autograd.grad(output, leaves, g, retain_graph=True, allow_unused=True)
        return sum((layout.unpack(fold(each).sum(0)).to(g) for each in found if each is not None), torch.zeros_like(g))

    return _Pull.apply(x_t, output.detach(), pull)  # pyright: ignore[reportReturnType]
