"""The folder of a run: where each image is, which images are complete, and which processes draw.

    png             OUT/SEED.png, with several targets OUT/TARGET/SEED.png
    npz             OUT/images.npz, of all images
    webdataset      OUT/images-00000.tar …, of 256 images each
    any             OUT/.running-RANK, the lock of a process that draws; the system releases it when the process dies

Every image is first written to a file of its own: below OUT/.unpacked until all images of its shard are complete, in
the formats with shards. A lost image has a file of its record alone. A file that is damaged, or of a run with other
settings, counts for none. An image's index counts all seeds of the first target, then those of the next.
"""

import errno
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from pydantic import AliasPath, BaseModel, Field

from steersman.errors import InputError, about
from steersman.files import file_name, read_bytes, replacing, write_yaml, writing_to
from steersman.lab.choices import FORMATS
from steersman.lab.generate.formats import (
    ImageRecord,
    open_shard,
    read_image_record,
    read_pixels,
    write_image,
    write_shard,
)
from steersman.lab.run import DRAWN, MOST, Run, check_folder, read_record
from steersman.names import index_ranges
from steersman.typed import typed

__all__ = ["SHARD", "Status", "Store", "locked", "running", "shard_files", "status"]

SHARD = 256  # images of a shard
UNPACKED = ".unpacked"
LOST = ".lost"  # suffix of a record alone
PART = re.compile(r"\..+\.\w+\.part")  # what `steersman.files.replacing` writes to
OWN = re.compile(r"(\d{6,11})\.(?:png|lost)")
PACKED = re.compile(r"images-\d{5,9}\.tar")
NPZ = "images.npz"
DERIVED = ("metrics.json", "grid.png", "animation.gif", "evaluation.json", "report.html")
"""What commands make of the images."""

LOCK = re.compile(r"\.running-(\d{1,9})")
PATIENCE = 1.0  # seconds that another process may take to look whether a lock is held
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # from a file system without locks: then nothing is refused


class _Recorded(BaseModel):
    """What of ``run.yaml`` is needed to find the images: a part of the run's settings, and what is said of the images.

    A run of this version need not be able to draw it, nor have its device.
    """

    num: Annotated[int, Field(ge=1, le=MOST)] = 16
    seed: Annotated[int, Field(ge=0)] = 0
    format: Literal["png", "npz", "webdataset"] = "png"
    targets: Annotated[tuple[str, ...], Field(min_length=1, validation_alias=AliasPath(DRAWN, "targets"))]
    digest: Annotated[str, Field(validation_alias=AliasPath(DRAWN, "digest"))]


@dataclass(frozen=True, kw_only=True)
class Store:
    """The images in the folder of a run, by their index."""

    out: Path
    targets: tuple[str, ...]
    num: int  # of each target
    seed: int
    format: str
    digest: str  # of the run's settings, in the record of each image too

    def __post_init__(self) -> None:
        if len(self) > MOST:
            raise InputError(f"num must give at most {MOST} images, got {self.num} of {len(self.targets)} targets each")
        if twice := [name for name in self.targets if self.targets.count(name) > 1]:
            raise InputError(f"target: two classes are called {twice[0]!r}; draw each in a folder of its own")

    @classmethod
    def of(cls, out: Path, run: Run, targets: Iterable[str]) -> "Store":
        """Returns the store of a run, which may have more images than the folder's run of the same settings."""
        check_folder(out, run, grows=True, instead="give another --out, or --overwrite to draw it anew")
        if (out / "run.yaml").exists():  # with the digest of its images, even if this version has more settings
            return replace(cls.read(out), num=run.num)
        # Without num, since the first images of a run are those of a run with fewer
        settings = {key: value for key, value in run.settings().items() if key != "num"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return cls(out=out, targets=tuple(targets), num=run.num, seed=run.seed, format=run.format, digest=digest)

    @classmethod
    def read(cls, out: Path) -> "Store":
        """Returns the store of the run in a folder, whose networks need not be on this machine."""
        with about("run", out / "run.yaml"):
            recorded: _Recorded = typed("", read_record(out / "run.yaml"), _Recorded)
            return cls(out=out, **recorded.model_dump())

    def __len__(self) -> int:
        return len(self.targets) * self.num

    def job(self, index: int) -> tuple[int, int]:
        """Returns the number of an image's target, and its seed."""
        target, number = divmod(index, self.num)
        return target, self.seed + number

    def claim(self, run: Run, sets: Mapping[str, Sequence[int]]) -> None:
        """Writes ``run.yaml`` with the classes of its sets; of a run that has grown, unpacks the images before."""
        grown = (self.out / "run.yaml").exists() and Store.read(self.out).num < self.num
        shards = [*self._shards.values()] if grown else []
        for path in shards:
            self._unpack(path)
        drawn: dict[str, object] = {"targets": list(self.targets), "digest": self.digest}
        if sets:
            drawn["classes"] = {name: index_ranges(indices) for name, indices in sets.items()}
        write_yaml(self.out / "run.yaml", run.record() | {DRAWN: drawn})
        for path in [*shards, *(self.out / name for name in DERIVED if grown)]:
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes the images of the run, what was made of them, and last its ``run.yaml``."""
        for index in self._unpacked():
            self._remove(index)
        for folder in self._folders if len(self.targets) > 1 else ():
            with suppress(OSError):  # it holds other files
                folder.rmdir()
        shutil.rmtree(self.out / UNPACKED, ignore_errors=True)
        for path in [*self._shards.values(), *(self.out / name for name in (*DERIVED, "run.yaml"))]:
            path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Removes the half-written files of processes that died; no process may be writing."""
        for folder in {self.out, *self._folders}:
            for name in filter(PART.fullmatch, _names(folder)):
                (folder / name).unlink(missing_ok=True)

    def present(self) -> set[int]:
        """Returns the images that have a file, by the names of files alone."""
        present, names = self._unpacked(), set(_names(self.out))
        for number, path in self._shards.items():
            if path.name in names:
                present.update(self._within(number))
        return present

    def records(self, indices: Iterable[int]) -> dict[int, ImageRecord]:
        """Returns the records of those images that are complete."""
        records: dict[int, ImageRecord] = {}
        unpacked = self._unpacked()
        for number, within in groupby(indices, self._number):
            packed = None
            for index in within:
                # Its own file before its shard, which another process writes before it removes the file
                record = self._own_record(index) if index in unpacked else None
                if record is None and self._suffix is not None:
                    packed = self._packed_records(number) if packed is None else packed
                    record = (packed or {}).get(index)
                if record is not None:
                    records[index] = record
        return records

    def pixels(self, indices: Iterable[int]) -> dict[int, UInt8[np.ndarray, "H W 3"]]:
        """Returns the pixels of some images, once all are complete."""
        pixels = {}
        for number, within in groupby(sorted(indices), self._number):
            if self._suffix is None:
                pixels |= {index: read_pixels(self._file(index)) for index in within}
            else:
                shard = open_shard(self._shard(number))
                positions = {self._index(record): position for position, record in enumerate(shard.records)}
                pixels |= {index: shard.pixels(positions[index]) for index in within}
        return pixels

    def write(self, index: int, pixels: UInt8[np.ndarray, "H W C"] | None, record: ImageRecord) -> None:
        """Writes an image, or the record of a lost one."""
        path = self._file(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is not None:
            write_image(path, pixels, record)
        else:
            with replacing(path.with_suffix(LOST)) as beside:
                beside.write_text(record.text(), encoding="utf-8")

    def pack(self, indices: Iterable[int]) -> None:
        """Writes the WebDataset shards of some images, once they are complete."""
        if self.format == "webdataset":
            for number in sorted(set(map(self._number, indices))):
                self._pack(number)

    def close(self) -> None:
        """Packs what is not packed yet, once all images are complete."""
        for number in self._shards:
            self._pack(number)
        shutil.rmtree(self.out / UNPACKED, ignore_errors=True)

    def _pack(self, number: int) -> None:
        """Writes a shard if all of its images have files of their own; of several processes, each writes the same."""
        indices = self._within(number)
        if not self._unpacked().issuperset(indices):
            return
        records = {index: record for index in indices if (record := self._own_record(index)) is not None}
        if len(records) < len(indices):
            return
        try:
            write_shard(self._shard(number), records, lambda index: read_bytes(self._file(index)))
        except FileNotFoundError:  # another process was faster
            return
        for index in records:
            self._remove(index)

    def _unpack(self, path: Path) -> None:
        """Writes each of this run's images in a shard to a file of its own."""
        try:
            shard = open_shard(path)
        except Exception:  # noqa: BLE001  a damaged file can fail a library anywhere
            return
        for position, record in enumerate(shard.records):
            if (index := self._index(record)) is not None:
                self.write(index, None if record.lost else shard.pixels(position), record)

    @property
    def _suffix(self) -> str | None:
        """The suffix of the shards; None for a file an image."""
        return FORMATS[self.format]

    @cached_property
    def _folders(self) -> list[Path]:
        """The folder of each target's files of one image."""
        root = self.out if self._suffix is None else self.out / UNPACKED
        return [root / file_name(name) if len(self.targets) > 1 else root for name in self.targets]

    def _file(self, index: int, suffix: str = ".png") -> Path:
        target, seed = self.job(index)
        return self._folders[target] / f"{seed:06d}{suffix}"

    def _remove(self, index: int) -> None:
        for suffix in (".png", LOST):
            self._file(index, suffix).unlink(missing_ok=True)

    def _unpacked(self) -> set[int]:
        """Returns the images that have a file of their own, by the names of files."""
        unpacked = set()
        for target, folder in enumerate(self._folders):
            for match in filter(None, map(OWN.fullmatch, _names(folder))):
                number = int(match[1]) - self.seed
                if 0 <= number < self.num and match[1] == f"{int(match[1]):06d}":
                    unpacked.add(target * self.num + number)
        return unpacked

    @property
    def _shard_size(self) -> int:
        return len(self) if self.format == "npz" else SHARD

    @property
    def _shards(self) -> dict[int, Path]:
        """The files of shards by their number; none in a format without."""
        count = 0 if self._suffix is None else -(-len(self) // self._shard_size)
        return {number: self._shard(number) for number in range(count)}

    def _shard(self, number: int) -> Path:
        return self.out / (NPZ if self.format == "npz" else f"images-{number:05d}{self._suffix}")

    def _number(self, index: int) -> int:
        """Returns the number of the shard that an image belongs to."""
        return index // self._shard_size

    def _within(self, number: int) -> range:
        """Returns the images of a shard."""
        return range(number * self._shard_size, min((number + 1) * self._shard_size, len(self)))

    def _own_record(self, index: int) -> ImageRecord | None:
        """Returns the record of an image that has a file of its own."""
        record = read_image_record(_content(self._file(index)))
        if record is None:
            try:
                record = ImageRecord.from_text(_content(self._file(index, LOST)))
            except ValueError:
                return None
        return record if self._index(record) == index else None

    def _packed_records(self, number: int) -> dict[int, ImageRecord] | None:
        """Returns the records of a shard; none unless all of its images are in it, None without a file."""
        if not (path := self._shard(number)).exists():
            return None
        try:
            records = open_shard(path).records
        except Exception:  # noqa: BLE001  a damaged file can fail a library anywhere
            return {}
        own = {self._index(record): record for record in records}
        return {index: own[index] for index in self._within(number)} if own.keys() >= {*self._within(number)} else {}

    def _index(self, record: ImageRecord) -> int | None:
        """Returns the index of a record's image; None for an image of another run."""
        number = record.seed - self.seed
        if record.run != self.digest or record.target not in self.targets or not 0 <= number < self.num:
            return None
        return self.targets.index(record.target) * self.num + number


def shard_files(folder: Path) -> list[Path]:
    """Returns the files of many images in the folder of a run, in the order of their images."""
    if (path := folder / NPZ).exists():
        return [path]
    return sorted(folder / name for name in _names(folder) if PACKED.fullmatch(name))


def _content(path: Path) -> bytes:
    """Returns the content of a file, nothing if it cannot be read."""
    try:
        return read_bytes(path)
    except (OSError, InputError):
        return b""


def _names(folder: Path) -> Iterator[str]:
    """Yields the names of the files in a folder, if there is one."""
    with suppress(FileNotFoundError, NotADirectoryError):
        yield from (entry.name for entry in folder.iterdir())


@dataclass(frozen=True, kw_only=True)
class Status:
    """How many images of each target are asked for, complete and lost, and how many processes are drawing."""

    num: int
    done: dict[str, int]
    lost: dict[str, int]
    processes: int

    def missing(self, target: str) -> int:
        """Returns how many images of a target are still to be drawn."""
        return self.num - self.done[target] - self.lost[target]


def status(out: Path) -> Status:
    """Returns how far the run in a folder is, of which every file is read, and no network."""
    store = Store.read(out)
    counts = Counter((record.target, record.lost) for record in store.records(range(len(store))).values())
    done, lost = ({name: counts[name, lost] for name in store.targets} for lost in (False, True))
    return Status(num=store.num, done=done, lost=lost, processes=len(running(out)))


@contextmanager
def locked(out: Path, rank: int) -> Iterator[None]:
    """Holds the lock of a rank in a folder, which no other process may hold."""
    lock = FileLock(out / f".running-{rank}")
    with writing_to(out):
        free = _acquired(lock, PATIENCE)
    if not free:
        raise InputError(
            f"out: {str(out)!r} is being drawn into by another run; wait until that has ended, or give another --out"
        )
    try:
        yield
    finally:
        _release(lock)


def running(out: Path) -> set[int]:
    """Returns the ranks of the processes that draw into a folder now."""
    matches = [(path, LOCK.fullmatch(path.name)) for path in out.glob(".running-*")]
    return {int(match[1]) for path, match in matches if match and _is_held(path)}


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        if not _acquired(lock, 0):
            return True
    except OSError as error:  # the lock of another user cannot be tried, and counts as held
        return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and path.exists()
    if lock.is_locked:  # not on a file system without locks, where the file may be another process's
        _release(lock)
    return False


def _acquired(lock: FileLock, patience: float) -> bool:
    """Acquires a lock unless another process holds it; a file system without locks has them all free."""
    try:
        lock.acquire(timeout=patience, poll_interval=PATIENCE / 20)
    except Timeout:
        return False
    except NotImplementedError:  # filelock 3 on a file system without locks
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _release(lock: FileLock) -> None:
    """Releases a lock and removes its file, if possible while it is held: then no other process has it open."""
    path = Path(lock.lock_file)
    try:
        path.unlink(missing_ok=True)
        lock.release()
    except OSError:  # Windows removes no open file
        lock.release()
        with suppress(OSError):
            path.unlink(missing_ok=True)
