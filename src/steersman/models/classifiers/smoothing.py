"""Softplus in place of every ReLU of a trained network (EluCD 4.3), for gradients without kinks.

    sp_β(a) = log(1 + exp(β a)) / β  →  relu(a)  as β → ∞,    d sp_β / da = σ(β a).

The activations that are made of ReLUs follow from their own definitions (ours):

    relu6(a)       = relu(a) - relu(a - 6)    →  sp_β(a) - sp_β(a - 6), in one piece (`SoftReLU6`)
    hardsigmoid(a) = relu6(a + 3) / 6         →  with the softened relu6
    hardswish(a)   = a · relu6(a + 3) / 6     →  likewise

sp_β exceeds relu by at most log(2)/β, at a = 0. Other activations (GELU, SiLU, leaky ReLU) stay as they are.

Activations that are modules are replaced in a copy. Those that are calls (``F.relu(x)``, ``x.relu()``) are
caught while the copy runs; tracing the network with torch.fx tells how many there are, and so whether any
must be caught.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from steersman.errors import InputError

__all__ = ["NoReLU", "SoftActivation", "SoftCalls", "activations", "soften", "softplus"]


class NoReLU(InputError):
    """Softplus is asked for, and there is no ReLU for it to replace."""


def softplus(a: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, "*shape"]:
    """Returns ``sp_β(a) = log(1 + exp(β a)) / β``.

    Args:
        a: Pre-activations.
        beta: Sharpness β > 0, per unit of ``a``.
    """
    # Above the threshold torch returns a itself and a slope of 1, which both are the rounded exact values from β a = 37
    # on in float64, and earlier in less precise types; torch's own threshold of 20 is not exact in float64.
    # Far below zero the powers of exp(β a) that the logarithm takes would leave the type's normal range, and a CPU is
    # then slowed down several times. The value there is held at its bound, in float32 3e-10 / β, far less than the
    # rounding of 1 / β, and the slope, as small, is taken as zero.
    lowest = math.log(torch.finfo(torch.promote_types(a.dtype, torch.float32)).tiny) / 4
    return functional.softplus(a.clamp(min=lowest / beta), beta=beta, threshold=40)


def _relu(a: Tensor, beta: float) -> Tensor:
    return softplus(a, beta)


class SoftReLU6(torch.autograd.Function):
    """``sp_β(a) - sp_β(a - 6)`` with one exponential and one logarithm, where two softplus take four passes more.

    About the middle, ``y = a - 3``, it is odd; with ``k = exp(-3 β)`` and ``t = exp(-β |y|)``

        value    3 + sign(y) log((1 + k t) / (k + t)) / β
        slope    (1 - k²) t / ((1 + k t) (k + t))
    """

    LARGEST = 12.0  # β from which k comes near the smallest t
    LOWEST = -80.0  # of the exponents of t: less would be nothing beside k, and near the end of float32

    @staticmethod
    def forward(ctx: Any, a: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, "*shape"]:  # noqa: ANN401
        """Returns the values."""
        k, y = math.exp(-3 * beta), a - 3
        t = y.abs().mul_(-beta).clamp_(min=SoftReLU6.LOWEST).exp_()
        ctx.save_for_backward(t)
        ctx.k = k
        return (t * k).add_(1).div_(t + k).log_().div_(beta).copysign_(y).add_(3)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *grad_outputs: Float[Tensor, "*shape"],
    ) -> tuple[Tensor, None]:
        """Returns the gradient."""
        (t,), (g,) = ctx.saved_tensors, grad_outputs
        return (t * (1 - ctx.k**2)).div_((t * ctx.k).add_(1).mul_(t + ctx.k)).mul_(g), None


def _relu6(a: Tensor, beta: float) -> Tensor:
    if beta > SoftReLU6.LARGEST:
        return softplus(a, beta) - softplus(a - 6, beta)
    exact = a.to(torch.promote_types(a.dtype, torch.float32))
    return SoftReLU6.apply(exact, beta).to(a.dtype)


def _hardsigmoid(a: Tensor, beta: float) -> Tensor:
    return _relu6(a + 3, beta) / 6


def _hardswish(a: Tensor, beta: float) -> Tensor:
    return a * _hardsigmoid(a, beta)


_SOFT: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
}

_CALLS = {
    torch.relu: "relu",
    torch.relu_: "relu",
    Tensor.relu: "relu",
    Tensor.relu_: "relu",
    functional.relu: "relu",
    functional.relu_: "relu",
    functional.relu6: "relu6",
    functional.hardsigmoid: "hardsigmoid",
    functional.hardswish: "hardswish",
}

_IN_PLACE = {torch.relu_, Tensor.relu_, functional.relu_}


class SoftActivation(nn.Module):
    """One softened activation, in the place of a module.

    It never writes into its input, where the trained activation may have: a network must use what it returns.

    Args:
        kind: ``relu``, ``relu6``, ``hardsigmoid`` or ``hardswish``.
        beta: Sharpness β > 0 of the softplus.
    """

    def __init__(self, kind: str, beta: float) -> None:
        super().__init__()
        self.kind = kind
        self.beta = beta

    def forward(self, a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Returns the softened activation of ``a``."""
        return _SOFT[self.kind](a, self.beta)

    def extra_repr(self) -> str:
        """Returns the settings that printing the network shows."""
        return f"{self.kind}, beta={self.beta:g}"


class SoftCalls(nn.Module):
    """A network whose calls of activations, such as ``F.relu(x)``, are softened while it runs.

    Args:
        network: Any network.
        beta: Sharpness β > 0 of the softplus.

    Attributes:
        softened: How many calls its last run softened.
    """

    def __init__(self, network: nn.Module, beta: float) -> None:
        super().__init__()
        self.network = network
        self.beta = beta
        self.softened = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Runs the network on what it takes, with softened calls."""
        with _Soften(self.beta) as calls:
            made = self.network(*args, **kwargs)
        self.softened = calls.count
        return made


class _Soften(TorchFunctionMode):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func not in _CALLS:
            return func(*args, **kwargs)
        self.count += 1
        a, in_place = _arguments(func, *args, **kwargs)
        soft = _SOFT[_CALLS[func]]
        # Softplus keeps its input for the backward pass, so what is written over must be a copy.
        return a.copy_(soft(a.clone(), self.beta)) if in_place else soft(a, self.beta)


def _arguments(func: Callable[..., Any], input: Tensor, inplace: bool = False) -> tuple[Tensor, bool]:
    return input, inplace or func in _IN_PLACE


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.leaves = set(get_notrace_modules()) | {SoftActivation}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # torch's own transformer layers may hold F.relu, so they are looked into.
        if isinstance(m, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            return False
        return type(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)


def soften(module: nn.Module, beta: float) -> tuple[nn.Module, int]:
    """Returns a copy of a network with Softplus_β in place of every ReLU, and how many were replaced.

    The copy has its own modules and the same weights, which take no further memory: to change them in the one is
    to change them in the other. The network itself is left as it is.

    Args:
        module: Any network; ReLU, ReLU6, Hardswish and Hardsigmoid are replaced, those of timm too.
        beta: Sharpness β > 0 of the softplus, per unit of pre-activation. EluCD: 8, 5, 4 or 3.

    Returns:
        The copy, and the number of activations replaced: of modules, and of calls that tracing found. A network
        that cannot be traced is returned as ``SoftCalls``: its calls are softened too, and not counted.

    Raises:
        InputError: β is not positive and finite.

    Source:
        Ma et al., Elucidating the Design Space of Classifier-Guided Diffusion Generation, ICLR 2024, section 4.3.
    """
    if not 0 < beta < math.inf:
        raise InputError(f"the softplus sharpness beta must be positive and finite, got {beta:g}")
    tensors = [*module.parameters(), *module.buffers()]
    soft, count = _replaced(copy.deepcopy(module, {id(tensor): tensor for tensor in tensors}), beta)
    calls = _count_calls(soft)
    return (soft if calls == 0 else SoftCalls(soft, beta)), count + (calls or 0)


def activations(module: nn.Module) -> list[str]:
    """Returns what the activations among a network's modules are called, such as ``GELU``, in order of their names."""
    homes = ("torch.nn.modules.activation", "timm.layers.activations", "transformers.activations")
    found = {type(each).__name__ for each in module.modules() if type(each).__module__.startswith(homes)}
    return sorted(found - {"MultiheadAttention", "Softmax"})


def _replaced(module: nn.Module, beta: float) -> tuple[nn.Module, int]:
    kind = _kind(module)
    if kind is not None:
        return SoftActivation(kind, beta).train(module.training), 1
    # A module used in several places stays one module, and counts once.
    swaps = {child: SoftActivation(kind, beta) for child in module.modules() if (kind := _kind(child))}
    for path, child in list(module.named_modules(remove_duplicate=False)):
        if child in swaps:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, swaps[child].train(child.training))
    return module, len(swaps)


def _kind(module: nn.Module) -> str | None:
    # timm's activations are classes of their own: HardSwish, HardSwishMe (memory efficient), HardSigmoid.
    name = type(module).__name__.lower().removesuffix("me")
    if name in _SOFT:
        return name
    return "relu" if isinstance(module, nn.ReLU) else None


def _count_calls(module: nn.Module) -> int | None:
    try:
        nodes = _Tracer().trace(module).nodes
    except Exception:  # a network's own code runs on proxies here, and may fail in any way
        return None
    methods = {"relu", "relu_"}
    return sum(
        node.op == "call_function" and node.target in _CALLS or node.op == "call_method" and node.target in methods
        for node in nodes
    )
