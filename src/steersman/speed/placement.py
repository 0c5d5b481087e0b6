"""How a network lies on a device: in which type, in which memory layout, and how many images it sees at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steersman.errors import InputError, unknown

__all__ = ["AUTO", "DTYPES", "LAYOUTS", "Placement", "laid_out", "prepare"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = {"auto": ("float32", "bfloat16"), "auto-float32": ("float32",)}
"""Settings of ``dtype`` that have it measured which is fastest, of these and of the layouts and blocks."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a network is placed.

    Attributes:
        dtype: The type of its weights, and of what it computes.
        layout: The order of its weights in memory, which decides what its convolutions compute in: ``contiguous``, or
            ``channels_last``.
        block: How many images it sees at a time (`steersman.blocks`).
    """

    dtype: str = "float32"
    layout: str = "contiguous"
    block: int

    def __post_init__(self) -> None:
        for name, given, allowed in (("dtype", self.dtype, DTYPES), ("layout", self.layout, LAYOUTS)):
            if given not in allowed:
                raise unknown(name, given, allowed)
        if self.block < 1:
            raise InputError(f"block: {self.block} given; allowed: 1 and more")


def laid_out(network: nn.Module, layout: str) -> None:
    """Brings a network's weights into an order, in place."""
    nn.Module.to(network, memory_format=LAYOUTS[layout])


def prepare(load: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a loader of denoisers or classifiers that takes some settings more.

    Args:
        load: What loads one, with a ``network``.

    The settings are ``layout``; ``checkpoint``, whether the network computes its blocks again for a gradient, in place
    of keeping them; and ``compile``, whether ``torch.compile`` compiles it when it is first asked. What listens to the
    network from outside is not compiled.

    Raises:
        InputError: It cannot compute its blocks again.
    """

    def loaded(
        spec: str,
        *,
        layout: str = "contiguous",
        checkpoint: bool = False,
        compile: bool = False,
        **settings: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        found = load(spec, **settings)
        network = found.network
        laid_out(network, layout)
        if checkpoint:
            if not getattr(network, "_supports_gradient_checkpointing", False):
                raise InputError(
                    f"checkpoint: given, but {type(network).__name__} keeps what it computes; allowed: none"
                )
            network.enable_gradient_checkpointing()
        if compile:
            network.forward = torch.compile(network.forward)
        return found

    return loaded
