"""Softplus in place of every ReLU of a trained network (EluCD 4.3), for gradients without kinks.

    sp_β(a) = log(1 + exp(β a)) / β  →  relu(a)  as β → ∞,    d sp_β / da = σ(β a).

The activations that are made of ReLUs follow from their own definitions (ours):

    relu6(a)       = relu(a) - relu(a - 6)    →  sp_β(a) - sp_β(a - 6)
    hardsigmoid(a) = relu6(a + 3) / 6         →  with the softened relu6
    hardswish(a)   = a · relu6(a + 3) / 6     →  likewise

sp_β exceeds relu by at most log(2)/β, at a = 0. Other activations (GELU, SiLU, leaky ReLU) stay as they are. Modules
are replaced in a copy; function calls such as ``F.relu(x)`` are intercepted while the copy runs.
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
    """A network has no ReLU for softplus to replace."""


def softplus(a: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, "*shape"]:
    """Returns ``sp_β(a) = log(1 + exp(β a)) / β``."""
    # Above torch's threshold it returns a itself with slope 1, the rounded exact values from β a = 37 on in float64;
    # torch's default of 20 is not exact in float64.
    # Far below zero exp(β a) would become subnormal, which slows a CPU down several times. So the value is held at its
    # bound there, 3e-10 / β in float32, and the slope, as small, is zero.
    lowest = math.log(torch.finfo(torch.promote_types(a.dtype, torch.float32)).tiny) / 4
    return functional.softplus(a.clamp(min=lowest / beta), beta=beta, threshold=40)


class _SoftReLU6(torch.autograd.Function):
    """``sp_β(a) - sp_β(a - 6)`` with one exponential and one logarithm, where two softplus take four more passes.

    With ``y = a - 3``, ``k = exp(-3 β)`` and ``t = exp(-β |y|)``

        value    3 + sign(y) log((1 + k t) / (k + t)) / β
        slope    (1 - k²) t / ((1 + k t) (k + t))
    """

    @staticmethod
    def forward(ctx: Any, a: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, "*shape"]:  # noqa: ANN401
        k, y = math.exp(-3 * beta), a - 3
        t = y.abs().mul_(-beta).clamp_(min=-80.0).exp_()  # less is nothing beside k, and near the end of float32
        ctx.save_for_backward(t)
        ctx.k = k
        return (t * k).add_(1).div_(t + k).log_().div_(beta).copysign_(y).add_(3)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *grad_outputs: Float[Tensor, "*shape"],
    ) -> tuple[Tensor, None]:
        (t,), (g,) = ctx.saved_tensors, grad_outputs
        return (t * (1 - ctx.k**2)).div_((t * ctx.k).add_(1).mul_(t + ctx.k)).mul_(g), None


def _relu6(a: Tensor, beta: float) -> Tensor:
    if beta > 12:  # k comes near the smallest t
        return softplus(a, beta) - softplus(a - 6, beta)
    exact = a.to(torch.promote_types(a.dtype, torch.float32))
    return _SoftReLU6.apply(exact, beta).to(a.dtype)  # pyright: ignore[reportOptionalMemberAccess]


_SOFT: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": softplus,
    "relu6": _relu6,
    "hardsigmoid": lambda a, beta: _relu6(a + 3, beta) / 6,
    "hardswish": lambda a, beta: a * (_relu6(a + 3, beta) / 6),
}
_IN_PLACE = (torch.relu_, Tensor.relu_, functional.relu_)
_CALLS = {
    **dict.fromkeys((torch.relu, Tensor.relu, functional.relu, *_IN_PLACE), "relu"),
    functional.relu6: "relu6",
    functional.hardsigmoid: "hardsigmoid",
    functional.hardswish: "hardswish",
}


class SoftActivation(nn.Module):
    """A softened activation of a kind in `_SOFT`. It never writes into its input, unlike in-place activations."""

    def __init__(self, kind: str, beta: float) -> None:
        super().__init__()
        self.kind, self.beta = kind, beta

    def forward(self, a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Returns the softened activation."""
        return _SOFT[self.kind](a, self.beta)

    def extra_repr(self) -> str:
        """Returns the settings that printing the network shows."""
        return f"{self.kind}, beta={self.beta:g}"


class SoftCalls(nn.Module):
    """A network whose calls of activations, such as ``F.relu(x)``, are softened; ``softened`` counts the last run's."""

    def __init__(self, network: nn.Module, beta: float) -> None:
        super().__init__()
        self.network, self.beta, self.softened = network, beta, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Returns the network's output."""
        self.softened = 0
        with _Intercept(self):
            return self.network(*args, **kwargs)


class _Intercept(TorchFunctionMode):
    """Softens the calls of activations and counts them."""

    def __init__(self, calls: SoftCalls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        if func not in _CALLS:
            return func(*args, **kwargs or {})
        self.calls.softened += 1
        a, in_place = _arguments(*args, **kwargs or {})
        soft, beta = _SOFT[_CALLS[func]], self.calls.beta
        # Softplus keeps its input for the backward pass, so what is overwritten must be a copy.
        return a.copy_(soft(a.clone(), beta)) if in_place or func in _IN_PLACE else soft(a, beta)


def _arguments(input: Tensor, inplace: bool = False) -> tuple[Tensor, bool]:
    return input, inplace


def soften(module: nn.Module, beta: float) -> tuple[nn.Module, int]:
    """Returns a copy of a network with Softplus_β in place of every ReLU, and the number of activations replaced.

    The copy has its own modules and the same weights. ReLU, ReLU6, Hardswish and Hardsigmoid are replaced, those of
    timm too. A network that cannot be traced is returned as `SoftCalls`: its calls are softened too, and not counted.
    EluCD (Ma et al., ICLR 2024, section 4.3) has β of 8, 5, 4 or 3.
    """
    if not 0 < beta < math.inf:
        raise InputError(f"the softplus sharpness beta must be positive and finite, got {beta:g}")
    tensors = [*module.parameters(), *module.buffers()]
    soft = copy.deepcopy(nn.ModuleList([module]), {id(tensor): tensor for tensor in tensors})
    # A module used in several places stays one module, and counts once.
    swaps = {each: SoftActivation(kind, beta) for each in soft.modules() if (kind := _kind(each))}
    for path, each in list(soft.named_modules(remove_duplicate=False)):
        if each in swaps:
            soft.set_submodule(path, swaps[each].train(each.training))
    calls = _count_calls(soft[0])
    return (soft[0] if calls == 0 else SoftCalls(soft[0], beta)), len(swaps) + (calls or 0)


def activations(module: nn.Module) -> list[str]:
    """Returns the class names of a network's activations, such as ``GELU``, sorted."""
    homes = ("torch.nn.modules.activation", "timm.layers.activations", "transformers.activations")
    names = {type(each).__name__ for each in module.modules() if type(each).__module__.startswith(homes)}
    return sorted(names - {"MultiheadAttention", "Softmax"})


def _kind(module: nn.Module) -> str | None:
    # timm's activations are classes of their own: HardSwish, HardSwishMe (memory efficient), HardSigmoid.
    name = type(module).__name__.lower().removesuffix("me")
    return name if name in _SOFT else "relu" if isinstance(module, nn.ReLU) else None


def _count_calls(module: nn.Module) -> int | None:
    """Returns the number of calls of activations, None where the network cannot be traced."""
    tracer = fx.Tracer(autowrap_functions=tuple(get_notrace_functions()))
    is_leaf, leaves = tracer.is_leaf_module, {*get_notrace_modules(), SoftActivation}
    # torch's own transformer layers may hold F.relu, so they are looked into.
    open_layers = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    tracer.is_leaf_module = lambda m, module_qualified_name: (
        not isinstance(m, open_layers) and (type(m) in leaves or is_leaf(m, module_qualified_name))
    )
    try:
        nodes = tracer.trace(module).nodes
    except Exception:  # a network's own code runs on proxies here, and may fail in any way
        return None
    return sum(
        (node.op == "call_function" and node.target in _CALLS)
        or (node.op == "call_method" and node.target in ("relu", "relu_"))
        for node in nodes
    )
