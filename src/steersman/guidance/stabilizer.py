"""Stabilizers: transformations of the gradients of successive steps, in the manner of optax.

    ema          m <- beta m + (1 - beta) g                                      use m                     (nrCG eq. 7)
    momentum     m <- beta m + g                                                 use m              (Polyak 1964)
    adam         m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2   use m / (sqrt(v) + eps)  (nrCG eq. 8)
                 or, corrected, with m / (1 - beta1^n) and v / (1 - beta2^n) at the n-th gradient    (Kingma & Ba 2015)
    rms          g / |g|  (or / rms(g))
    clip         g min(1, norm / |g|)

Norms are over one sample. States start at zero, by default without bias correction, on purpose: the first gradients
come from noise, and are held back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from steersman.batching import norm, rms
from steersman.errors import InputError, unknown
from steersman.guidance.step import Batch
from steersman.typed import finite

__all__ = ["Adam", "Chain", "Clip", "Ema", "Identity", "Momentum", "Rms", "Stabilizer", "State"]

State = tuple
"""Tensors with a row for each image, or such states: so the state of one image can be kept back."""


@runtime_checkable
class Stabilizer(Protocol):
    """Turns a step's gradient into the one that is used."""

    def init(self, x: Batch) -> State:
        """Returns the state before the first gradient, for a batch like ``x``."""
        ...

    def update(self, g: Batch, state: State) -> tuple[Batch, State]:
        """Returns the gradient to use, and the next state."""
        ...


class _Stateless:
    """A stabilizer that looks at one gradient alone."""

    def init(self, x: Batch) -> State:
        """Returns an empty state."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Identity(_Stateless):
    """The gradient as it is."""

    def update(self, g: Batch, state: State) -> tuple[Batch, State]:
        """Returns ``g``."""
        return g, state


@dataclass(frozen=True, kw_only=True)
class _Moving:
    """A stabilizer with one average ``m``, which decays by ``beta``."""

    beta: float

    def __post_init__(self) -> None:
        _check_decay("beta", self.beta)

    def init(self, x: Batch) -> State:
        """Returns ``m = 0``."""
        return (torch.zeros_like(x),)


@dataclass(frozen=True, kw_only=True)
@finite
class Momentum(_Moving):
    """Heavy-ball momentum (Polyak 1964): `Ema` divided by ``1 - beta``, so that the first gradient is used in full.

    Attributes:
        beta: The weight of the previous sum, in [0, 1); a constant gradient grows by ``1 / (1 - beta)``.

    Example:
        >>> import steersman as sm
        >>> recipe = sm.load_recipe("nrcg", {"stabilizer": {"kind": "momentum", "beta": 0.5}})
        >>> recipe.bind("zoo:mnist-lenet")[0].stabilizer
        Momentum(beta=0.5)
    """

    beta: float = 0.9

    def update(self, g: Batch, state: State) -> tuple[Batch, State]:
        """Returns ``m``."""
        m = self.beta * state[0] + g
        return m, (m,)


@dataclass(frozen=True, kw_only=True)
@finite
class Ema(_Moving):
    """The exponential moving average of the gradients (nrCG eq. 7).

    Attributes:
        beta: The weight of the previous average, in [0, 1); 0.9 and 0.99 in the paper.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> ema, g = sm.Ema(beta=0.9), torch.ones(1, 1, 1, 1)
        >>> first, state = ema.update(g, ema.init(g))
        >>> second, state = ema.update(g, state)
        >>> round(first.item(), 2), round(second.item(), 2)
        (0.1, 0.19)
    """

    beta: float = 0.99

    def update(self, g: Batch, state: State) -> tuple[Batch, State]:
        """Returns ``m``."""
        m = self.beta * state[0] + (1 - self.beta) * g
        return m, (m,)


@dataclass(frozen=True, kw_only=True)
@finite
class Adam:
    """The ratio of the first moment's average to the root of the second's (nrCG eq. 8).

    Attributes:
        beta1: The decay of the first moment, in [0, 1).
        beta2: The decay of the second moment, in [0, 1).
        eps: Added to the denominator, above 0.
        corrected: Whether to correct the bias towards the zero initialisation (Kingma & Ba 2015).

    Example:
        >>> import steersman as sm
        >>> recipe = sm.load_recipe("nrcg", {"stabilizer": {"kind": "adam", "corrected": True}})
        >>> recipe.bind("zoo:mnist-lenet")[0].stabilizer
        Adam(beta1=0.9, beta2=0.999, eps=0.0001, corrected=True)
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-4
    corrected: bool = False

    def __post_init__(self) -> None:
        _check_decay("beta1", self.beta1)
        _check_decay("beta2", self.beta2)
        if not self.eps > 0:
            raise InputError(f"stabilizer.eps must be above 0, got {self.eps}")

    def init(self, x: Batch) -> State:
        """Returns ``m = 0, v = 0`` and the number ``n = 0`` of an image's gradients."""
        return torch.zeros_like(x), torch.zeros_like(x), x.new_zeros(len(x), *[1] * (x.ndim - 1))

    def update(self, g: Batch, state: State) -> tuple[Batch, State]:
        """Returns ``m / (sqrt(v) + eps)``, of the corrected averages if wanted; the state keeps the plain ones."""
        m = self.beta1 * state[0] + (1 - self.beta1) * g
        v = self.beta2 * state[1] + (1 - self.beta2) * g.square()
        n = state[2] + 1
        first, second = (m / _grown(self.beta1, n), v / _grown(self.beta2, n)) if self.corrected else (m, v)
        return first / (second.sqrt() + self.eps), (m, v, n)


@dataclass(frozen=True, kw_only=True)
@finite
class Rms(_Stateless):
    """The gradient scaled to unit length, over one sample; a zero gradient stays zero.

    Attributes:
        by: ``norm`` for an L2 norm of 1, ``rms`` for an rms of 1.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> used, _ = sm.Rms(by="norm").update(torch.tensor([[3.0, 4.0]]), ())
        >>> [round(value, 2) for value in used.flatten().tolist()]
        [0.6, 0.8]
    """

    by: Literal["norm", "rms"] = "norm"

    def __post_init__(self) -> None:
        if self.by not in ("norm", "rms"):
            raise unknown("stabilizer.by", self.by, get_args(Literal["norm", "rms"]))

    def update(self, g: Batch, state: State) -> tuple[Batch, State]:
        """Returns ``g / |g|``."""
        size = rms(g) if self.by == "rms" else norm(g)
        return g / torch.where(size > 0, size, 1), state


@dataclass(frozen=True, kw_only=True)
@finite
class Clip(_Stateless):
    """The gradient clipped to a maximum norm.

    Attributes:
        norm: The maximum L2 norm of one sample's gradient, above 0.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> used, _ = sm.Clip(norm=2.5).update(torch.tensor([[3.0, 4.0]]), ())
        >>> [round(value, 2) for value in used.flatten().tolist()]
        [1.5, 2.0]
    """

    norm: float = 1.0

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise InputError(f"stabilizer.norm must be above 0, got {self.norm}")

    def update(self, g: Batch, state: State) -> tuple[Batch, State]:
        """Returns ``g min(1, norm / |g|)``."""
        size = norm(g)
        return g * (self.norm / torch.where(size > 0, size, 1)).clamp(max=1), state


@dataclass(frozen=True)
@finite
class Chain:
    """Stabilizers one after the other.

    Attributes:
        links: The stabilizers, in the order in which they are applied.

    Example:
        >>> import steersman as sm
        >>> recipe = sm.load_recipe("nrcg", {"stabilizer": ["rms", {"kind": "ema", "beta": 0.5}]})
        >>> recipe.bind("zoo:mnist-lenet")[0].stabilizer
        Chain(links=(Rms(by='norm'), Ema(beta=0.5)))
    """

    links: Sequence[Stabilizer]

    def init(self, x: Batch) -> State:
        """Returns the links' states."""
        return tuple(link.init(x) for link in self.links)

    def update(self, g: Batch, state: State) -> tuple[Batch, State]:
        """Returns the gradient after the last link."""
        states = []
        for link, old in zip(self.links, state, strict=True):
            g, new = link.update(g, old)
            states.append(new)
        return g, tuple(states)


def _grown(beta: float, n: Tensor) -> Tensor:
    """Returns ``1 - beta^n``; a power is rounded by its position in the batch, an exponential is not."""
    return torch.ones_like(n) if beta == 0 else -(n * math.log(beta)).expm1()


def _check_decay(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"stabilizer.{name} must be at least 0 and below 1, got {value}")
