"""What a reproduction needs: files, memory, hours, disk; all but the files are computed, not measured.

    memory = fixed + b image                                        b: images at a time
    hours  = n (e tflop_denoiser + s tflop_guide) / rate / 3600     n: images; s: steps; e: evaluations of the denoiser
    disk   = n 3 side^2                                             bytes of the images, at most

e is s, and 2 s - 1 for Heun's method, which asks twice in every step but the last.
"""

from dataclasses import dataclass
from pathlib import Path

from steersman.lab.reproduce.schema import File, Reproduction

__all__ = ["CARD", "RATE", "Needs", "needs"]

CARD, PEAK, SHARE = "an RTX 4090", 82.6, 0.4
RATE = PEAK * SHARE
"""TFLOP a second: an assumed share of those that a card's maker names for float32 (NVIDIA's Ada whitepaper)."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a reproduction needs.

    Attributes:
        paths: Where each of its files belongs, by the file's name.
        files: What is known of them.
        steps: Of the reverse process.
        tflop: For an image.
        memory: In GiB.
        hours: For all images.
        disk: In GB.
    """

    paths: dict[str, Path]
    files: dict[str, File]
    steps: int
    tflop: float
    memory: float
    hours: float
    disk: float

    @property
    def missing(self) -> list[str]:
        """The names of the files that are not there; a folder is when there is something in it."""
        return [name for name, path in self.paths.items() if not (path.is_file() or _holds_something(path))]


def needs(
    wanted: Reproduction,
    rooms: dict[str, Path],
    *,
    num: int,
    batch_size: int,
    steps: int | None = None,
    guided: bool = True,
) -> Needs:
    """Returns what a reproduction needs.

    Args:
        wanted: The reproduction.
        rooms: The folders ``models`` and ``data``.
        num: Images in all.
        batch_size: Images at a time.
        steps: Instead of the recipe's.
        guided: Whether the guide steers.
    """
    settings = wanted.load_recipe(steps).resolved()
    taken, files = settings["sampling"]["steps"], wanted.files()
    evaluations = 2 * taken - 1 if settings["sampler"]["kind"] == "heun" else taken
    tflop = evaluations * wanted.tflop.denoiser + (taken * wanted.tflop.guide if guided else 0)
    return Needs(
        paths={name: rooms[file.room] / file.path for name, file in files.items()},
        files=files,
        steps=taken,
        tflop=tflop,
        memory=wanted.memory.fixed + batch_size * wanted.memory.image,
        hours=num * tflop / RATE / 3600,
        disk=num * 3 * wanted.side**2 / 1e9,
    )


def _holds_something(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())
