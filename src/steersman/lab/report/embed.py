"""Pictures inside a page: as data URIs, of bounded size."""

import io
from base64 import b64encode
from pathlib import Path

from PIL import Image

from steersman.files import in_rgb, open_image, read_bytes

__all__ = ["embedded", "thumbnail"]

LARGEST = 3_000_000  # bytes of a file that is embedded as it is
WIDEST = 1600  # pixels of a larger one's sides
SIDE = 128  # pixels of a thumbnail's
QUALITY = 88


def embedded(path: Path) -> str:
    """Returns an image file as a data URI: as it is, or a large one made smaller, of an animation the first frame.

    Raises:
        InputError: It is no image that can be read.
    """
    with open_image(path, still=False) as image:
        if path.stat().st_size > LARGEST:
            return _jpeg(image, WIDEST)
        return _uri(Image.MIME[image.format or ""], read_bytes(path))


def thumbnail(path: Path) -> str:
    """Returns an image file, made small, as a data URI.

    Raises:
        InputError: It is no image that can be read.
    """
    with open_image(path) as image:
        return _jpeg(image, SIDE)


def _jpeg(image: Image.Image, side: int) -> str:
    small, written = in_rgb(image), io.BytesIO()
    small.thumbnail((side, side))
    small.save(written, format="JPEG", quality=QUALITY, subsampling=0)
    return _uri("image/jpeg", written.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
