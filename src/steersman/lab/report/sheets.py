"""A contact sheet: images side by side, in rows with a caption each."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from steersman.errors import InputError
from steersman.files import in_8_bits, replacing

__all__ = ["GAP", "grid", "pixels", "sheet"]

GAP = 2  # pixels between images
SMALL, LARGE = 10, 24  # of the captions, in pixels


def grid(rows: Mapping[str, Float[Tensor, "_ _ _ _"]], path: Path, *, columns: int = 8, zoom: int = 1) -> None:
    """Writes a contact sheet as PNG.

    Args:
        rows: Images in [-1, 1] of one size, by their caption; more than fit in a row take several.
        path: Where to.
        columns: How many images stand side by side.
        zoom: How many pixels a side of each image's pixel takes.

    Raises:
        InputError: There is nothing to show, or the images are not of one size.
    """
    drawn = sheet(rows, columns=columns, zoom=zoom)
    with replacing(path) as beside:
        drawn.save(beside, format="PNG")


def sheet(rows: Mapping[str, Float[Tensor, "_ _ _ _"]], *, columns: int = 8, zoom: int = 1) -> Image.Image:
    """Returns a contact sheet; the arguments and errors are those of `grid`."""
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
    canvas = Image.new(
        "RGB",
        (margin + max(block.width for block in blocks.values()), sum(block.height for block in blocks.values())),
        "white",
    )
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
