"""A pipeline's network: what the pipeline gives it, and how its samples hold images.

**Conditioning**, recorded without running the network. The pipeline is called once, for one image, and left where its
scheduler would step. In the network's place stands a twin that records its arguments and returns zeros; the pipeline
itself does not change. With classifier-free guidance there are two rows: in one call, the unconditional one first, or
in a call each, the conditional one first (Flux).

**Layout.** Guides work on images (B, C, H, W) and videos (B, C, T, H, W). The form of a pipeline's samples follows from
their shape and from what the network is given with them:

    4 axes                      images or their latents, (B, C, H, W)
    4 axes of a DiT             both halves of the classifier-free batch, the second with null labels
    5 axes                      videos, (B, C, T, H, W); of some networks (B, T, C, H, W)
    3 axes, and ``img_ids``     tokens (B, h w, r^2 C), each r x r pixels of an image (Flux, Chroma, FLUX.2)
    3 axes, and ``img_shapes``  the same (Qwen-Image)
    3 axes, and ``num_frames``  tokens (B, T h w, C), each a pixel of a video (LTX)
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from steersman.errors import InputError

__all__ = ["PACKED", "Conditioning", "Layout", "by_name", "layout_of", "record"]

PACKED = ("img_ids", "img_shapes", "num_frames")
"""Arguments of networks that say where packed tokens belong."""
_BY_FRAME = ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel")
_DIT_NULL = 1000  # DiTPipeline's own constant
_STEPS = 2  # of the recorded call: the first of two has a time above 0


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
        twin(num_inference_steps=_STEPS, generator=torch.Generator().manual_seed(0), **call)
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
    try:
        return conditioning._replace(values=_stacked(*calls), unconditional=1)
    except _Unequal:
        return conditioning._replace(separate=conditioning._replace(values=calls[1]))


class _Left(Exception):
    """Raised where the pipeline is left."""


class _Unequal(Exception):
    """Raised where the values of two calls do not make a batch of two rows."""


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


def _stacked(one: Any, other: Any) -> Any:  # noqa: ANN401
    """Returns the values of two calls of one row each as those of two rows."""
    if isinstance(one, Mapping) and one.keys() == other.keys():
        return {key: _stacked(value, other[key]) for key, value in one.items()}
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return torch.cat([one, other]) if _leads(one, 1) else one
    if one is other or (not isinstance(one, Mapping | Tensor) and one == other):
        return one
    raise _Unequal


class Layout(NamedTuple):
    """How a scheduler's sample holds the images.

    Attributes:
        unpack: Turns its rows into images or videos.
        pack: Turns them back.
        copies: How often it holds each row, one batch after the other.
    """

    unpack: Callable[[Tensor], Float[Tensor, "B C *T H W"]]
    pack: Callable[[Tensor], Tensor]
    copies: int = 1


def layout_of(network: str, sample: Tensor, given: Mapping[str, Any], channels: int | None = None) -> Layout:
    """Returns how a scheduler's sample holds the images; may read what the network is given from an accelerator."""
    if sample.ndim == 4:
        halves = network == "DiTTransformer2DModel" and len(sample) % 2 == 0
        doubled = halves and bool((given["class_labels"][len(sample) // 2 :] == _DIT_NULL).all())
        return Layout(_same, _same, copies=2 if doubled else 1)
    if sample.ndim == 5:
        channels_first = _swapped if network in _BY_FRAME else _same
        return Layout(channels_first, channels_first)
    if sample.ndim == 3 and given.get("img_ids") is not None:
        indices = given["img_ids"].reshape(-1, given["img_ids"].shape[-1])[: sample.shape[1], 1:3]
        height, width = (int(last) + 1 for last in indices.amax(0).tolist())
        return _patches(sample, height, width, channels)
    if sample.ndim == 3 and given.get("img_shapes") is not None:
        shapes = given["img_shapes"][0]
        _, height, width = shapes[0] if isinstance(shapes[0], tuple | list) else shapes
        return _patches(sample, height, width, channels)
    if sample.ndim == 3 and {"num_frames", "height", "width"} <= set(given) and sample.shape[2] == channels:
        height, width = given["height"], given["width"]
        frames = sample.shape[1] // (height * width)
        return Layout(
            lambda z: z.transpose(1, 2).unflatten(2, (frames, height, width)),
            lambda x: x.flatten(2).transpose(1, 2),
        )
    raise InputError(
        f"pipe: samples must be images, videos or their latents in a form that is known here, got the shape "
        f"{tuple(sample.shape)}"
    )


def _same(x: Tensor) -> Tensor:
    return x


def _swapped(x: Tensor) -> Tensor:
    """Swaps the axes of channels and frames."""
    return x.transpose(1, 2)


def _patches(sample: Tensor, height: int, width: int, channels: int | None) -> Layout:
    """Tokens of h x w patches, row by row; within a token the channel comes first, then the pixel of the patch."""
    channels = channels or sample.shape[2] // 4
    side = round((sample.shape[2] / channels) ** 0.5)
    if (height * width, side**2 * channels) != sample.shape[1:]:
        raise InputError(
            f"pipe: tokens must be the {height} x {width} square patches of latents of {channels} channels, got "
            f"{sample.shape[1]} tokens of {sample.shape[2]} values"
        )
    return Layout(
        lambda z: F.pixel_shuffle(z.transpose(1, 2).unflatten(2, (height, width)), side),
        lambda x: F.pixel_unshuffle(x, side).flatten(2).transpose(1, 2),
    )
