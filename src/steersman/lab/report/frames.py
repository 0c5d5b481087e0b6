"""The walk as a moving picture: the image as it forms, and beside it where the classifier pulls.

The gradient g of the log-likelihood shows as a heat map of ``|g|`` over the channels of each pixel, from black for 0 to
white for the largest. The largest is each frame's and image's own, as gradients grow by orders of magnitude on the way:
the map tells where the classifier pulls, not how hard.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from steersman.errors import InputError, unknown
from steersman.files import replacing
from steersman.lab.report.sheets import sheet
from steersman.sampling.loop import Report

__all__ = ["Frames", "animation", "heat"]

View = Literal["x0", "x"]


class Frames:
    """A callback of `steersman.sampling.sample` that keeps the images and the gradients of its walk.

    Args:
        view: What to show: ``x0``, the denoised image that the step used, or ``x``, the sample after the step.
        count: How many of the batch to keep, the first ones.
        guide: Whose gradient, counted from 0.
        every: Keep every k-th step, and the last.
        decode: What makes images of the walk's samples, where these are latents; the gradients are kept as they are.

    Attributes:
        images: A batch a frame, (B, C, H, W), on the samples' device, so that no step waits for a copy.
        gradients: As many; zero where the guide was not active.
    """

    def __init__(
        self,
        view: View = "x0",
        *,
        count: int = 1,
        guide: int = 0,
        every: int = 1,
        decode: Callable[[Tensor], Tensor] = torch.detach,
    ) -> None:
        if view not in get_args(View):
            raise unknown("view", view, get_args(View))
        if count < 1 or guide < 0 or every < 1:
            raise InputError(
                "count and every must be at least 1 and guide at least 0, "
                f"got count {count}, every {every} and guide {guide}"
            )
        self.view, self.count, self.guide, self.every, self.decode = view, count, guide, every, decode
        self.images: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def __call__(self, report: Report) -> None:
        """Keeps a step's images and gradients."""
        if report.step.index % self.every and report.step.left:
            return
        image = self.decode(getattr(report, self.view)[: self.count]).detach().float().clone()
        update = report.updates[self.guide] if self.guide < len(report.updates) else None
        self.images.append(image)
        self.gradients.append(
            torch.zeros_like(image) if update is None else update.gradient[: self.count].detach().float().clone()
        )

    def write(self, path: Path, *, zoom: int = 2, seconds: float = 0.08) -> None:
        """Writes what was kept as GIF; see `animation`."""
        animation(self.images, self.gradients, path, zoom=zoom, seconds=seconds)


def heat(gradient: Float[Tensor, "B C H W"], *, shared: bool = False) -> Float[Tensor, "B 3 H W"]:
    """Returns ``|g|`` of each pixel as a colour in [-1, 1]; values that are not finite count as zero.

    Args:
        gradient: ``g``, of any scale.
        shared: Whether the brightest is the largest of the whole batch, so that the maps can be compared.
    """
    size = gradient.detach().float().nan_to_num(0, 0, 0).cpu().norm(dim=1)
    largest = size.amax() if shared else size.amax((1, 2), keepdim=True)
    size = size / torch.where(largest > 0, largest, 1)
    colours = torch.from_numpy(colormaps["inferno"](size.numpy())[..., :3]).float()
    return colours.permute(0, 3, 1, 2) * 2 - 1


def animation(
    images: Sequence[Float[Tensor, "B C H W"]],
    gradients: Sequence[Float[Tensor, "B C2 H2 W2"]],
    path: Path,
    *,
    zoom: int = 2,
    seconds: float = 0.08,
    last: float = 1.5,
) -> None:
    """Writes a GIF: a row an image of the batch, the image on the left and its gradient on the right.

    Args:
        images: One batch in [-1, 1] a frame, ``x0_hat`` or ``x_t``.
        gradients: As many; resized to the images where their sides differ.
        path: Where to.
        zoom: How many pixels a side of each image's pixel takes.
        seconds: How long a frame stays.
        last: How long the last one stays, before it begins anew.

    Raises:
        InputError: There is no frame, or not one gradient a frame.
    """
    if not images or len(images) != len(gradients):
        raise InputError(
            "frames need as many gradients as images, at least 1, "
            f"got {len(images)} images and {len(gradients)} gradients"
        )
    frames = [_frame(image, gradient, zoom) for image, gradient in zip(images, gradients, strict=True)]
    times = [round(1000 * seconds)] * (len(frames) - 1) + [round(1000 * last)]
    with replacing(path) as beside:
        frames[0].save(beside, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)


def _frame(image: Float[Tensor, "B C H W"], gradient: Float[Tensor, "B C2 H2 W2"], zoom: int) -> Image.Image:
    beside = heat(gradient)
    if beside.shape[-2:] != image.shape[-2:]:
        beside = torch.nn.functional.interpolate(beside, image.shape[-2:], mode="nearest")
    pairs = torch.stack([image.float().cpu().expand(-1, 3, -1, -1), beside], dim=1).flatten(0, 1)
    return sheet({"": pairs}, columns=2, zoom=zoom)
