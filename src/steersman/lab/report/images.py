"""Images for people: contact sheets, and animations of the sampling with its gradients."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from steersman.errors import InputError, unknown
from steersman.files import in_8_bits, replacing
from steersman.sampling.loop import Report

__all__ = ["GAP", "Frames", "animation", "grid", "heat", "pixels", "sheet"]

GAP = 2  # pixels between images
SMALL, LARGE = 10, 24  # sizes of the captions, in pixels

View = Literal["x0", "x"]


def grid(rows: Mapping[str, Float[Tensor, "_ _ _ _"]], path: Path, *, columns: int = 8, zoom: int = 1) -> None:
    """Writes a contact sheet as PNG; the arguments and errors are those of `sheet`."""
    drawn = sheet(rows, columns=columns, zoom=zoom)
    with replacing(path) as beside:
        drawn.save(beside, format="PNG")


def sheet(rows: Mapping[str, Float[Tensor, "_ _ _ _"]], *, columns: int = 8, zoom: int = 1) -> Image.Image:
    """Returns a contact sheet: images side by side, in rows with a caption each."""
    if not any(map(len, rows.values())):
        raise InputError("a sheet needs at least 1 image, got 0")
    if len({images.shape[1:] for images in rows.values()}) > 1:
        listed = ", ".join("x".join(map(str, images.shape[1:])) for images in rows.values())
        raise InputError(f"images must have the same shape in all rows, got {listed}")
    if columns < 1 or zoom < 1:
        raise InputError(f"columns and zoom must be at least 1, got columns {columns} and zoom {zoom}")
    columns = min(columns, max(map(len, rows.values())))
    blocks = {caption: _block(images, columns, zoom) for caption, images in rows.items() if len(images)}
    height = next(iter(rows.values())).shape[2] * zoom
    font = ImageFont.load_default(min(max(SMALL, height // 4), LARGE))
    margin = max(ceil(font.getlength(caption)) for caption in blocks)
    margin += 4 * GAP if margin else 0
    width = margin + max(block.width for block in blocks.values())
    canvas = Image.new("RGB", (width, sum(block.height for block in blocks.values())), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for caption, block in blocks.items():
        canvas.paste(block, (margin, top))
        draw.text((2 * GAP, top + GAP + height / 2), caption, fill="black", font=font, anchor="lm")
        top += block.height
    return canvas


def pixels(images: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Returns images in [-1, 1] as bytes, of three channels; a value that is not a number is grey."""
    images = in_8_bits(images.detach().nan_to_num(0)).cpu()
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _block(images: Float[Tensor, "B C H W"], columns: int, zoom: int) -> Image.Image:
    enlarged = pixels(images).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    if short := -len(enlarged) % columns:
        enlarged = torch.cat([enlarged, torch.full_like(enlarged[:1], 255).expand(short, -1, -1, -1)])
    made = make_grid(enlarged, nrow=columns, padding=GAP, pad_value=255)
    return Image.fromarray(made.permute(1, 2, 0).numpy())


class Frames:
    """A callback of `steersman.sampling.sample` that keeps the images and the gradients on the way.

    Attributes:
        images: A batch a frame, (B, C, H, W), on the samples' device, so that no step waits for a copy.
        gradients: As many; zero where the guide was not active.
        titles: As many: which step it is.
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
        self.titles: list[str] = []

    def __call__(self, report: Report) -> None:
        """Keeps a step's images and gradients."""
        if report.step.index % self.every and report.step.left:
            return
        image = self.decode(getattr(report, self.view)[: self.count]).detach().float().clone()
        update = report.updates[self.guide] if self.guide < len(report.updates) else None
        gradient = None if update is None else update.gradient[: self.count].detach().float().clone()
        self.images.append(image)
        self.gradients.append(torch.zeros_like(image) if gradient is None else gradient)
        self.titles.append(f"step {report.step.index + 1} of {report.step.count}")

    def write(self, path: Path, *, zoom: int = 2, rows: Sequence[str] = ()) -> None:
        """Writes what was kept as GIF; see `animation`."""
        animation(self.images, self.gradients, path, titles=self.titles, rows=rows, zoom=zoom)


def heat(gradient: Float[Tensor, "B C H W"], *, shared: bool = False) -> Float[Tensor, "B 3 H W"]:
    """Returns ``|g|`` over the channels of each pixel as a colour in [-1, 1]: black for 0, white for the largest.

    The largest is each image's own, as gradients grow by orders of magnitude on the way: the map tells where the
    classifier pulls, not how hard. Values that are not finite count as zero.
    """
    from matplotlib import colormaps

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
    titles: Sequence[str] = (),
    rows: Sequence[str] = (),
    zoom: int = 2,
    seconds: float = 5.0,
    last: float = 2.0,
) -> None:
    """Writes a GIF: a row an image of the batch, the image on the left and its gradient on the right.

    Args:
        images: A batch for each frame.
        gradients: As many.
        path: The file.
        titles: What stands above each frame.
        rows: What each row is called; by default its number.
        zoom: The factor by which images are enlarged.
        seconds: The duration of all frames but the last one, each of which is shown for 0.04 to 0.5 seconds.
        last: The duration of the last frame.
    """
    if not images or len(images) != len(gradients):
        raise InputError(
            "frames need as many gradients as images, at least 1, "
            f"got {len(images)} images and {len(gradients)} gradients"
        )
    titles = titles or [""] * len(images)
    frames = [_frame(*each, rows, zoom) for each in zip(images, gradients, titles, strict=True)]
    each = min(max(seconds / len(frames), 0.04), 0.5)
    times = [round(1000 * each)] * (len(frames) - 1) + [round(1000 * last)]
    with replacing(path) as beside:
        frames[0].save(beside, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)


def _frame(
    image: Float[Tensor, "B C H W"], gradient: Float[Tensor, "B C2 H2 W2"], title: str, rows: Sequence[str], zoom: int
) -> Image.Image:
    """Returns a frame: image and gradient side by side, under a line that says what they are and which step it is."""
    beside = heat(gradient)
    if beside.shape[-2:] != image.shape[-2:]:
        beside = torch.nn.functional.interpolate(beside, image.shape[-2:], mode="nearest")
    pairs = torch.stack([image.float().cpu().expand(-1, 3, -1, -1), beside], dim=1)
    names = rows or [str(number + 1) for number in range(len(pairs))]
    body = sheet(dict(zip(names, pairs, strict=False)), columns=2, zoom=zoom)
    font, side = ImageFont.load_default(LARGE / 2), zoom * image.shape[-1] + GAP
    canvas = Image.new(
        "RGB", (max(body.width, ceil(font.getlength(title)) + 4 * GAP), body.height + 2 * LARGE), "white"
    )
    draw, left = ImageDraw.Draw(canvas), body.width - 2 * side
    canvas.paste(body, (0, 2 * LARGE))
    draw.text((2 * GAP, LARGE / 2), title, fill="black", font=font, anchor="lm")
    for place, name in enumerate(("denoised", "gradient")):
        draw.text((left + place * side, 1.5 * LARGE), name, fill="black", font=font, anchor="lm")
    return canvas
