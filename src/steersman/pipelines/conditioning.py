"""The conditioning of a text pipeline's network, recorded without running the network.

The pipeline is called once, for one image, and left where its scheduler would step. In the network's place stands a
twin that records its arguments and returns zeros; the pipeline itself does not change. With classifier-free guidance
there are two rows: in one call, the unconditional one first, or in a call each, the conditional one first (Flux).
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from steersman.errors import InputError

__all__ = ["Conditioning", "by_name", "record"]

STEPS = 2  # the first of two has a time above 0


class Conditioning(NamedTuple):
    """The arguments of a network for one image beside sample and time.

    Attributes:
        values: The arguments by name; tensors, also within mappings, lead with the rows or are shared by all.
        sample: The sample, one row.
        time_scale: The factor from the scheduler's time to the network's.
        mu: The shift of the scheduler's levels for the image's size, where the pipeline has one.
        conditional: The index of the row with the prompt.
        unconditional: The index of the row without, where there is one.
        separate: The conditioning of the row without the prompt where the two do not fit into one batch, as with texts
            of different lengths.
    """

    values: Mapping[str, Any]
    sample: Tensor
    time_scale: float
    mu: float | None
    conditional: int
    unconditional: int | None
    separate: "Conditioning | None" = None

    def rows(self, rows: Int[Tensor, " N"]) -> dict[str, Any]:
        """Returns the arguments for a batch of these rows."""
        count = 1 if self.unconditional is None else 2

        def taken(value: Any) -> Any:  # noqa: ANN401
            if isinstance(value, Mapping):
                return {key: taken(inner) for key, inner in value.items()}
            return value[rows] if _leads(value, count) else value

        return taken(self.values)


def by_name(forward: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call by their parameters' names."""
    return {**dict(zip(inspect.signature(forward).parameters, args, strict=False)), **kwargs}


def record(pipe: Any, part: str, **call: Any) -> Conditioning:  # noqa: ANN401
    """Returns the conditioning that a pipeline gives its network at the first step."""
    twin, scheduler = copy.copy(pipe), copy.deepcopy(pipe.scheduler)
    network, calls = _recorder(getattr(pipe, part))
    shifts: list[float | None] = []
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)  # pipelines read its signature
    def shifted(*args: Any, mu: float | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        shifts.append(mu)
        set_timesteps(*args, **({} if mu is None else {"mu": mu}), **kwargs)

    def leave(*_: Any, **__: Any) -> None:  # noqa: ANN401
        raise _Left

    vars(scheduler).update(set_timesteps=shifted, step=leave)
    vars(twin).update({part: network, "scheduler": scheduler})
    twin.set_progress_bar_config(disable=True)
    try:
        twin(num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0), **call)
    except _Left:
        pass
    first = next(iter(calls[0]))
    samples, times = ([call.pop(key) for call in calls] for key in (first, "timestep"))
    rows = [len(sample) for sample in samples]
    if rows not in ([1], [2], [1, 1]):
        raise InputError(f"pipe must give its network one row or two of a prompt, got {rows} of {type(pipe).__name__}")
    conditioning = Conditioning(
        values=calls[0],
        sample=samples[0][:1],
        time_scale=float(times[0].reshape(-1)[0]) / float(scheduler.timesteps[0]),
        mu=shifts[-1],
        conditional=1 if rows == [2] else 0,
        unconditional=0 if rows == [2] else None,
    )
    if len(calls) == 1:
        return conditioning
    if _fit(*calls):
        return conditioning._replace(values=_stacked(*calls), unconditional=1)
    return conditioning._replace(separate=conditioning._replace(values=calls[1]))


class _Left(Exception):
    """Raised where the pipeline is left."""


def _recorder(network: Any) -> tuple[Any, list[dict[str, Any]]]:  # noqa: ANN401
    """Returns a network's twin, which has its attributes and returns zeros, and the arguments of its calls to come."""
    calls: list[dict[str, Any]] = []
    twin = copy.copy(network)

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:  # noqa: ANN401
        given = by_name(network.forward, args, kwargs)
        first = next(iter(inspect.signature(network.forward).parameters))
        calls.append({first: given.pop(first), **given})
        return (torch.zeros_like(calls[-1][first]),)

    silent = {key: type(value)() for key, value in vars(network).items() if key.endswith("_hooks")}
    vars(twin).update(silent, forward=forward)
    return twin, calls


def _leads(value: Any, rows: int) -> bool:  # noqa: ANN401
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


def _fit(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether the values of two calls of one row each make a batch of two."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_fit(value, other[key]) for key, value in one.items())
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape
    return one is other or one == other


def _stacked(one: Any, other: Any) -> Any:  # noqa: ANN401
    """Returns the values of two calls of one row each as those of two rows."""
    if isinstance(one, Mapping):
        return {key: _stacked(value, other[key]) for key, value in one.items()}
    return torch.cat([one, other]) if _leads(one, 1) else one
