"""The floor of a walk: the same calls of its networks in a bare loop, and nothing else.

While a walk is heard, each call of a network is kept with what entered it, and each time that a gradient went back
through one. Played again, in the same order, a call is the same network on the same values, with a graph where it had
one; a gradient goes back through that call alone, from ones. Between them nothing is computed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Call", "Calls"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a network.

    Attributes:
        network: The network.
        args: What entered it, those that a gradient reached as leaves.
        kwargs: The same, by name.
        graph: Whether gradients were on.
    """

    network: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    graph: bool

    @property
    def leaves(self) -> list[Tensor]:
        """What a gradient goes back to."""
        entered = (*self.args, *self.kwargs.values())
        return [each for each in entered if isinstance(each, Tensor) and each.requires_grad]


@dataclass
class Calls:
    """The calls of some networks, in their order.

    Attributes:
        heard: Calls, and the calls that a gradient went back through, with whether it is the last to do so.
    """

    heard: list[tuple[Call, bool]] = field(default_factory=list)

    @contextmanager
    def of(self, networks: Sequence[nn.Module]) -> Iterator[None]:
        """Hears what these networks are asked."""
        hooks = [each.register_forward_hook(self._hear, with_kwargs=True) for each in dict.fromkeys(networks)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hear(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ANN401
        graph = torch.is_grad_enabled()
        call = Call(
            network=network,
            args=tuple(map(_leaf, args)),
            kwargs={name: _leaf(value) for name, value in kwargs.items()},
            graph=graph,
        )
        self.heard.append((call, False))
        entered = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.requires_grad]
        if graph and entered:
            entered[0].register_hook(lambda _: self.heard.append((call, True)))

    def play(self) -> None:
        """Makes the calls again."""
        last = {call: place for place, (call, back) in enumerate(self.heard) if back}
        open_: dict[Call, Tensor] = {}
        for place, (call, back) in enumerate(self.heard):
            if back:
                output = open_[call] if place < last[call] else open_.pop(call)
                torch.autograd.grad(output, call.leaves, torch.ones_like(output), retain_graph=place < last[call])
                del output
            else:
                with torch.set_grad_enabled(call.graph):
                    output = _first(call.network(*call.args, **call.kwargs))
                if call in last:
                    open_[call] = output
                del output

    def count(self) -> int:
        """Returns how many calls there are, forward."""
        return sum(not back for _, back in self.heard)


def _leaf(value: Any) -> Any:  # noqa: ANN401
    """Returns a copy of a tensor, which asks for a gradient where that did; anything else as it is."""
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _first(output: Any) -> Tensor:  # noqa: ANN401
    """Returns the first of a network's outputs, which is a tensor or holds some by number."""
    return output if isinstance(output, Tensor) else _first(output[0])
