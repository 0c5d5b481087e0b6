"""What is kept of an image beside its pixels: whose it is, what guide and judge say of it, what it took to draw it.

A record travels inside the image's own file, so that both are whole or neither is, and a run that goes on need not ask
any network again. An image that was lost to values that are not finite has a record alone.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ConfigDict, TypeAdapter

from steersman.files import open_image, replacing
from steersman.lab.verdicts import Verdict

__all__ = ["Record", "read_image", "write_image"]

KEY = "steersman"  # of the PNG's text
END = b"\0\0\0\0IEND\xaeB`\x82"  # of a PNG, which Pillow does not look at


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of an image.

    Attributes:
        run: The digest of the settings that it was drawn with.
        target: The target's name.
        label: The target's number in the guide's vocabulary.
        seed: The image's seed.
        guide: What the guide says of it, None where it was lost.
        judge: What the judge says, likewise where it has no such class.
        dropped: How many guidance updates were not finite, and so were left out.
        moved: How far guidance moved it in all, as a root mean square over its values, in the units of a sample (of
            pixels, the range is [-1, 1]), whatever the injection; None where no guide was active.
        noise_error: The error of the denoiser's noise prediction on it (`lab.realism`); None where it was lost.
        evaluations: How many evaluations of each network it needed (`steersman.sampling.watch.evaluations`).
        seconds: Its share of the time that its process took.
        lost: Whether it became non-finite itself; then there are no pixels, and nothing is said of it.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    run: str
    target: str
    label: int
    seed: int
    guide: Verdict | None
    judge: Verdict | None
    dropped: int
    moved: float | None
    noise_error: float | None
    evaluations: Mapping[str, float]
    seconds: float
    lost: bool

    @property
    def name(self) -> str:
        """How messages call the image."""
        return f"{self.target} {self.seed}"

    def text(self) -> str:
        """Returns the record as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Record":
        """Returns the record that a text holds.

        Raises:
            ValueError: It holds none.
        """
        return _reader()(text)


@cache
def _reader() -> Callable[[str], Record]:
    return TypeAdapter(Record).validate_json


def write_image(path: Path, pixels: UInt8[np.ndarray, "H W C"], record: Record) -> None:
    """Writes an image with its record as PNG, a grey one as such."""
    text = PngInfo()
    text.add_text(KEY, record.text())
    with replacing(path) as beside:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(beside, format="PNG", pnginfo=text)


def read_image(content: bytes) -> Record | None:
    """Returns the record of a PNG; None where it is not whole, by its checksums, or has none."""
    if not content.endswith(END):
        return None
    try:
        with open_image(content) as image:
            record = Record.of(image.info[KEY])
            image.verify()
    except Exception:  # a damaged file can fail a library anywhere
        return None
    return record
