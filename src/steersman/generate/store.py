"""Where the images of a run lie, and which of them are whole.

    png             OUT/SEED.png, of several targets OUT/TARGET/SEED.png
    npz             OUT/images-00000.npz …, of 256 images each (`steersman.generate.shards`)
    webdataset      OUT/images-00000.tar …, likewise

Every image is first written as a file of its own, in a packed format below OUT/.unpacked until all of its shard are
there. One that was lost has a file of its record alone. A file that is damaged, or of a run with other settings, counts
for none.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import UInt8
from PIL import Image

from steersman.errors import about
from steersman.files import file_name, replacing
from steersman.generate.record import Record, read_image, write_image
from steersman.generate.shards import Shard, open_shard, write_shard
from steersman.run import DRAWN, FORMATS, Run, check_folder, read_record

__all__ = ["SHARD", "Store"]

SHARD = 256  # images of a shard
UNPACKED = ".unpacked"
LOST = ".lost"  # suffix of a record alone
PART = re.compile(r"\..+\.\w+\.part")  # what `steersman.files.replacing` writes to


@dataclass(frozen=True, kw_only=True)
class Store:
    """The images of a run, by their place in it: all seeds of the first target, then those of the next.

    Attributes:
        out: The run's folder.
        targets: The names of its targets.
        num: Images of each.
        seed: The first one's.
        format: What they are written as, png, npz or webdataset.
        digest: What tells the run's settings from others.
    """

    out: Path
    targets: tuple[str, ...]
    num: int
    seed: int
    format: str
    digest: str

    @classmethod
    def of(cls, out: Path, run: Run, targets: Iterable[str]) -> "Store":
        """Returns the store of a run.

        Raises:
            InputError: The folder holds a run with other settings.
        """
        check_folder(out, run)
        if (out / "run.yaml").exists():  # what its images say, even if a later version knows more settings
            return cls.read(out)
        digest = hashlib.sha256(json.dumps(run.settings(), sort_keys=True).encode()).hexdigest()[:16]
        return cls(out=out, targets=tuple(targets), num=run.num, seed=run.seed, format=run.format, digest=digest)

    @classmethod
    def read(cls, out: Path) -> "Store":
        """Returns the store of the run that a folder holds; nothing of it need be on this machine.

        Raises:
            InputError: It holds none.
        """
        with about("run", out / "run.yaml"):
            record = read_record(out / "run.yaml")
            drawn = record[DRAWN]
            return cls(
                out=out,
                num=record["num"],
                seed=record["seed"],
                format=record["format"],
                digest=drawn["digest"],
                targets=tuple(drawn["targets"]),
            )

    def claim(self, run: Run) -> None:
        """Writes the run's file."""
        drawn = {"targets": list(self.targets), "digest": self.digest}
        with replacing(self.out / "run.yaml") as path:
            path.write_text(yaml.safe_dump(run.record() | {DRAWN: drawn}, sort_keys=False))

    @cached_property
    def rooms(self) -> list[Path]:
        """The folder of each target's files of one image."""
        root = self.out if self.suffix is None else self.out / UNPACKED
        return [root / file_name(name) if len(self.targets) > 1 else root for name in self.targets]

    @property
    def suffix(self) -> str | None:
        """That of the shards, None for a file an image."""
        return FORMATS[self.format]

    @cached_property
    def _opened(self) -> Callable[[Path], Shard]:
        return lru_cache(maxsize=1)(open_shard)

    def __len__(self) -> int:
        return len(self.targets) * self.num

    def job(self, place: int) -> tuple[int, int]:
        """Returns the number of an image's target, and its seed."""
        target, number = divmod(place, self.num)
        return target, self.seed + number

    def records(self, places: Iterable[int]) -> dict[int, Record]:
        """Returns the records of those images that are whole."""
        found: dict[int, Record] = {}
        number, packed = -1, None
        for place in places:
            record = self._alone(place)  # before its shard, which is there before this goes
            if record is None and self.suffix is not None:
                if number != place // SHARD:
                    number, packed = place // SHARD, None
                packed = self._packed(number) if packed is None else packed
                record = packed.get(place) if packed else None
            if record is not None:
                found[place] = record
        return found

    def write(self, place: int, pixels: UInt8[np.ndarray, "H W C"] | None, record: Record) -> None:
        """Writes an image, or that it was lost."""
        path = self._file(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is not None:
            write_image(path, pixels, record)
        else:
            with replacing(path.with_suffix(LOST)) as beside:
                beside.write_text(record.text())

    def pack(self, places: Iterable[int]) -> None:
        """Makes shards of some places that are all there; of several processes at it, each writes the same."""
        for number in sorted({place // SHARD for place in places}) if self.suffix is not None else ():
            within = self._within(number)
            if not all(any(map(Path.exists, self._files(place))) for place in within):
                continue
            records = {place: self._alone(place) for place in within}
            if None in records.values():
                continue
            lost = {place: record for place, record in records.items() if record and record.lost}
            try:
                images = {
                    place: (record, self._file(place).read_bytes())
                    for place, record in records.items()
                    if record and not record.lost
                }
            except FileNotFoundError:  # another process was faster
                continue
            write_shard(self._shard(number), images, lost)
            for path in (path for place in within for path in self._files(place)):
                path.unlink(missing_ok=True)

    def pixels(self, place: int) -> UInt8[np.ndarray, "H W 3"]:
        """Returns an image, once all are whole."""
        if self.suffix is None:
            with Image.open(self._file(place)) as image:
                return np.array(image.convert("RGB"))
        held = self._opened(self._shard(place // SHARD))
        target, seed = self.job(place)
        named = [(record.target, record.seed) for record in held.records]
        return held.pixels(named.index((self.targets[target], seed)))

    def count(self) -> int:
        """Returns how many images there are, by the names of files alone."""
        stems = {room: {Path(name).stem for name in _names(room)} for room in self.rooms}
        alone = sum(stem.isdecimal() for found in stems.values() for stem in found)
        if self.suffix is None:
            return alone
        packed = (name[7:-4] for name in _names(self.out) if name.startswith("images-") and name.endswith(self.suffix))
        return alone + sum(len(self._within(int(number))) for number in packed)

    def sweep(self) -> None:
        """Removes what processes that died have left half-written; none may be writing."""
        for room in {self.out, *self.rooms}:
            for name in filter(PART.fullmatch, _names(room)):
                (room / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Packs what is not packed yet, once all images are whole."""
        if self.suffix is not None:
            self.pack(range(len(self)))
            shutil.rmtree(self.out / UNPACKED, ignore_errors=True)

    def _file(self, place: int) -> Path:
        target, seed = self.job(place)
        return self.rooms[target] / f"{seed:06d}.png"

    def _files(self, place: int) -> tuple[Path, Path]:
        return (path := self._file(place)), path.with_suffix(LOST)

    def _shard(self, number: int) -> Path:
        return self.out / f"images-{number:05d}{self.suffix}"

    def _within(self, number: int) -> range:
        return range(number * SHARD, min((number + 1) * SHARD, len(self)))

    def _alone(self, place: int) -> Record | None:
        """Returns the record of an image that has a file of its own."""
        image, lost = self._files(place)
        record = read_image(_content(image))
        if record is None:
            try:
                record = Record.of(_content(lost).decode())
            except (ValueError, TypeError, KeyError):
                return None
        return record if self._is(record, place) else None

    def _packed(self, number: int) -> dict[int, Record] | None:
        """Returns the records of a shard, none of one that is not whole; None where there is no such file."""
        if not (path := self._shard(number)).exists():
            return None
        try:
            records = open_shard(path).records
        except Exception:  # noqa: BLE001  a damaged file can fail a library anywhere
            return {}
        by_name = {(record.target, record.seed): record for record in records}
        found = {}
        for place in self._within(number):
            target, seed = self.job(place)
            record = by_name.get((self.targets[target], seed))
            if record is None or not self._is(record, place):
                return {}
            found[place] = record
        return found

    def _is(self, record: Record, place: int) -> bool:
        target, seed = self.job(place)
        return (record.run, record.target, record.seed) == (self.digest, self.targets[target], seed)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _names(folder: Path) -> Iterator[str]:
    try:
        yield from (entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return
