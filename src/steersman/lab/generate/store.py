"""Where the images of a run lie, and which of them are whole.

    png             OUT/SEED.png, of several targets OUT/TARGET/SEED.png
    npz             OUT/images.npz of all; before all are there OUT/images-00000.npz …, of 256 images each
    webdataset      OUT/images-00000.tar …, likewise (`steersman.lab.generate.shards`)

Every image is first written as a file of its own, in a packed format below OUT/.unpacked until all of its shard are
there. One that was lost has a file of its record alone. A file that is damaged, or of a run with other settings, counts
for none.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import yaml
from jaxtyping import UInt8
from pydantic import BaseModel, Field

from steersman.errors import InputError, about
from steersman.files import file_name, in_rgb, open_image, read_bytes, replacing
from steersman.lab.generate.record import Record, read_image, write_image
from steersman.lab.generate.shards import Shard, joined, open_shard, write_shard
from steersman.lab.run import DRAWN, FORMATS, MOST, Run, differences, read_record
from steersman.typed import typed

__all__ = ["SHARD", "Store", "shard_files"]

SHARD = 256  # images of a shard
UNPACKED = ".unpacked"
LOST = ".lost"  # suffix of a record alone
PART = re.compile(r"\..+\.\w+\.part")  # what `steersman.files.replacing` writes to
PACKED = re.compile(r"images-(\d{5,9})(\.npz|\.tar)")
JOINED = "images.npz"
DERIVED = ("metrics.json", "grid.png", "animation.gif", "evaluation.json", "report.html")
"""What is made of a run's images, by this and by other commands."""


class _Drawn(BaseModel):
    """What ``run.yaml`` says of the images beside the run's settings."""

    targets: Annotated[list[str], Field(min_length=1)]
    digest: str


class _Recorded(BaseModel):
    """What is needed of ``run.yaml`` to find the images."""

    num: Annotated[int, Field(ge=1, le=MOST)] = 16
    seed: Annotated[int, Field(ge=0)] = 0
    format: Literal["png", "npz", "webdataset"] = "png"
    drawn: _Drawn


@dataclass(frozen=True, kw_only=True)
class Store:
    """The images of a run, by their index in it: all seeds of the first target, then those of the next.

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

    def __post_init__(self) -> None:
        if len(self) > MOST:
            raise InputError(f"num must give at most {MOST} images, got {self.num} of {len(self.targets)} targets each")
        if twice := [name for name in self.targets if self.targets.count(name) > 1]:
            raise InputError(f"target: two classes are called {twice[0]!r}; draw each in a folder of its own")

    @classmethod
    def of(cls, out: Path, run: Run, targets: Iterable[str]) -> "Store":
        """Returns the store of a run, which may have more images than the folder's run of the same settings.

        Raises:
            InputError: The folder holds a run with other settings.
        """
        if other := differences(out, run, grows=True):
            raise InputError(
                f"out: {str(out)!r} holds a run with other settings ({other}); give another --out, or --overwrite to "
                "draw it anew"
            )
        if (out / "run.yaml").exists():  # what its images say, even if a later version knows more settings
            before = cls.read(out)
            return cls(**{**vars(before), "num": run.num})
        # Images depend on their seeds alone, so that those of a run with fewer are the first of a larger one's.
        settings = {key: value for key, value in run.settings().items() if key != "num"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return cls(out=out, targets=tuple(targets), num=run.num, seed=run.seed, format=run.format, digest=digest)

    @classmethod
    def read(cls, out: Path) -> "Store":
        """Returns the store of the run that a folder holds; nothing of it need be on this machine.

        Raises:
            InputError: It holds none.
        """
        with about("run", out / "run.yaml"):
            found = typed("", read_record(out / "run.yaml"), _Recorded)
            return cls(
                out=out,
                num=found.num,
                seed=found.seed,
                format=found.format,
                digest=found.drawn.digest,
                targets=tuple(found.drawn.targets),
            )

    def claim(self, run: Run) -> None:
        """Writes the run's file; of a run that has grown, its packed images are made files of their own before."""
        grown = (self.out / "run.yaml").exists() and Store.read(self.out).num < self.num
        packed = self._packed_files() if grown else []
        for path in packed:
            self._unpack(path)
        drawn = {"targets": list(self.targets), "digest": self.digest}
        with replacing(self.out / "run.yaml") as path:
            path.write_text(yaml.safe_dump(run.record() | {DRAWN: drawn}, sort_keys=False), encoding="utf-8")
        for path in [*packed, *(self.out / name for name in DERIVED if grown)]:
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes the images of the run that the folder holds, and what was made of them; its file last."""
        for place in self._there():
            for path in self._files(place):
                path.unlink(missing_ok=True)
        for room in self.rooms if len(self.targets) > 1 else ():
            with suppress(OSError):  # there is something else in it
                room.rmdir()
        shutil.rmtree(self.out / UNPACKED, ignore_errors=True)
        for path in [*self._packed_files(), *(self.out / name for name in (*DERIVED, "run.yaml"))]:
            path.unlink(missing_ok=True)

    @cached_property
    def rooms(self) -> list[Path]:
        """The folder of each target's files of one image."""
        root = self.out if self.suffix is None else self.out / UNPACKED
        return [root / file_name(name) if len(self.targets) > 1 else root for name in self.targets]

    @property
    def suffix(self) -> str | None:
        """That of the shards, None for a file an image."""
        return FORMATS[self.format]

    def __len__(self) -> int:
        return len(self.targets) * self.num

    def job(self, place: int) -> tuple[int, int]:
        """Returns the number of an image's target, and its seed."""
        target, number = divmod(place, self.num)
        return target, self.seed + number

    def records(self, places: Iterable[int]) -> dict[int, Record]:
        """Returns the records of those images that are whole."""
        found: dict[int, Record] = {}
        there = self._there()
        number, packed = -1, None
        every = self._joined() if self.suffix == ".npz" else {}
        for place in places:
            record = self._alone(place) if place in there else None  # before its shard, which is there before this goes
            if record is None and self.suffix is not None:
                if number != place // SHARD:
                    number, packed = place // SHARD, None
                packed = self._packed(number) if packed is None else packed
                record = packed.get(place) if packed else every.get(place)
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
                beside.write_text(record.text(), encoding="utf-8")

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
                    place: (record, read_bytes(self._file(place)))
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
            with open_image(self._file(place)) as image:
                return np.array(in_rgb(image))
        path = self.out / JOINED if self.suffix == ".npz" else self._shard(place // SHARD)
        held = self._opened(path)
        target, seed = self.job(place)
        named = [(record.target, record.seed) for record in held.records]
        return held.pixels(named.index((self.targets[target], seed)))

    def count(self) -> int:
        """Returns how many images there are, by the names of files alone."""
        if (self.out / JOINED).exists() and self.suffix == ".npz":
            return len(self)
        there = self._there()
        packed = {int(found[1]) for name in _names(self.out) if (found := PACKED.fullmatch(name))}
        packed = {number for number in packed if self._shard(number).exists() and self._within(number)}
        return len(there) + sum(
            sum(place not in there for place in self._within(number)) for number in packed if self.suffix is not None
        )

    def gone(self, places: Iterable[int]) -> list[int]:
        """Returns which of some images, all of them drawn, have no file any more, by the names of files alone."""
        if self.suffix == ".npz" and (self.out / JOINED).exists():
            return []
        there, numbers = self._there(), {place // SHARD for place in places} if self.suffix is not None else set()
        packed = {number for number in numbers if self._shard(number).exists()}
        return [place for place in places if place not in there and place // SHARD not in packed]

    def sweep(self) -> None:
        """Removes what processes that died have left half-written; none may be writing."""
        for room in {self.out, *self.rooms}:
            for name in filter(PART.fullmatch, _names(room)):
                (room / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Packs what is not packed yet, once all images are whole; for npz into one file."""
        if self.suffix is None:
            return
        self.pack(range(len(self)))
        shards = [self._shard(number) for number in range(-(-len(self) // SHARD))]
        if self.suffix == ".npz":
            if len(self._joined()) < len(self):
                joined(self.out / JOINED, shards)
            for path in shards:
                path.unlink(missing_ok=True)
        shutil.rmtree(self.out / UNPACKED, ignore_errors=True)

    def _there(self) -> set[int]:
        """Returns the images that have a file of their own, by the files' names."""
        found = set()
        for target, room in enumerate(self.rooms):
            for name in _names(room):
                stem, _, suffix = name.rpartition(".")
                if f".{suffix}" in (".png", LOST) and stem.isdecimal() and len(stem) < 12:
                    number = int(stem) - self.seed
                    if 0 <= number < self.num and stem == f"{int(stem):06d}":
                        found.add(target * self.num + number)
        return found

    def _file(self, place: int) -> Path:
        target, seed = self.job(place)
        return self.rooms[target] / f"{seed:06d}.png"

    def _files(self, place: int) -> tuple[Path, Path]:
        return (path := self._file(place)), path.with_suffix(LOST)

    def _shard(self, number: int) -> Path:
        return self.out / f"images-{number:05d}{self.suffix}"

    def _within(self, number: int) -> range:
        return range(number * SHARD, min((number + 1) * SHARD, len(self)))

    def _packed_files(self) -> list[Path]:
        """Returns the packed files of the run's format, that of all images among them."""
        names = [name for name in _names(self.out) if PACKED.fullmatch(name) or name == JOINED]
        return [self.out / name for name in sorted(names) if name.endswith(self.suffix or "/")]

    def _opened(self, path: Path) -> Shard:
        """Returns a packed file, read again where it has changed."""
        return self._cached(path, path.stat().st_mtime_ns, path.stat().st_size)

    @cached_property
    def _cached(self) -> Callable[[Path, int, int], Shard]:
        return lru_cache(maxsize=1)(lambda path, *_: open_shard(path))

    def _alone(self, place: int) -> Record | None:
        """Returns the record of an image that has a file of its own."""
        image, lost = self._files(place)
        record = read_image(_content(image))
        if record is None:
            try:
                record = Record.of(_content(lost).decode())
            except ValueError:
                return None
        return record if self._is(record, place) else None

    def _packed(self, number: int) -> dict[int, Record] | None:
        """Returns the records of a shard, none of one that is not whole; None where there is no such file."""
        if not (path := self._shard(number)).exists():
            return None
        found = self._own(path)
        return found if all(place in found for place in self._within(number)) else {}

    def _joined(self) -> dict[int, Record]:
        """Returns the records of the file of all images, where there is one."""
        return self._own(path) if (path := self.out / JOINED).exists() else {}

    def _own(self, path: Path) -> dict[int, Record]:
        """Returns the records of this run's images in a packed file, none of one that is damaged."""
        try:
            records = self._opened(path).records
        except Exception:  # noqa: BLE001  a damaged file can fail a library anywhere
            return {}
        places = ((self._place(record), record) for record in records)
        return {place: record for place, record in places if place is not None}

    def _place(self, record: Record) -> int | None:
        """Returns the index of a record's image in the run, None where it is of another one."""
        number = record.seed - self.seed
        if record.run != self.digest or record.target not in self.targets or not 0 <= number < self.num:
            return None
        return self.targets.index(record.target) * self.num + number

    def _is(self, record: Record, place: int) -> bool:
        return self._place(record) == place

    def _unpack(self, path: Path) -> None:
        """Makes files of their own of this run's images in a packed file."""
        try:
            held = self._opened(path)
        except Exception:  # noqa: BLE001  a damaged file can fail a library anywhere
            return
        for index, record in enumerate(held.records):
            if (place := self._place(record)) is not None:
                self.write(place, None if record.lost else held.pixels(index), record)


def shard_files(folder: Path) -> list[Path]:
    """Returns the files of packed images in a run's folder, in the order of their images; no copies of them."""
    if (path := folder / JOINED).exists():
        return [path]
    return sorted(folder / name for name in _names(folder) if PACKED.fullmatch(name))


def _content(path: Path) -> bytes:
    """Returns what is in a file, nothing where there is none that can be read."""
    try:
        return read_bytes(path)
    except (OSError, InputError):
        return b""


def _names(folder: Path) -> Iterator[str]:
    try:
        yield from (entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
