"""How a network lies on a device: in which type, in which memory layout, and how many images it sees at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from steersman.errors import InputError, unknown

__all__ = ["AGREES", "AUTO", "DTYPES", "LAYOUTS", "Placement", "laid_out", "prepare"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = {"auto": ("float32", "bfloat16"), "auto-float32": ("float32",)}
"""Settings of ``dtype`` that have it measured which is fastest, of these and of the layouts and blocks."""
AGREES = 0.98
"""The cosine above which a type agrees with float32."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a network is placed.

    Attributes:
        dtype: The type of its weights, and of what it computes.
        layout: The order of its weights in memory, which decides what its convolutions compute in: ``contiguous``, or
            ``channels_last``.
        block: How many images it sees at a time (`steersman.batching`).
        cosines: Of each other type that would have been faster, the least cosine of what the network gives in it with
            what it gives in float32 (`steersman.lab.speed.cosines`).
    """

    dtype: str = "float32"
    layout: str = "contiguous"
    block: int
    cosines: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, given, known in (("dtype", self.dtype, DTYPES), ("layout", self.layout, LAYOUTS)):
            if given not in known:
                raise unknown(name, given, known)
        if self.block < 1:
            raise InputError(f"block must be at least 1, got {self.block}")

    def __str__(self) -> str:
        """What was chosen, and why no faster type."""
        said = f"{self.dtype}, {self.layout}, {self.block} images at a time"
        if (own := self.cosines.get(self.dtype)) is not None:
            said += f", least cosine with float32 {own:.4f}"
        for dtype, cosine in self.cosines.items():
            if dtype != self.dtype:
                said += f"; {dtype} is faster but refused: least cosine with float32 {cosine:.4f}, not above {AGREES}"
        return said


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
                    f"checkpoint must not be given, as {type(network).__name__} has no gradient checkpointing"
                )
            network.enable_gradient_checkpointing()
        if compile:
            network.forward = torch.compile(network.forward)
        return found

    return loaded
