"""Files of images: one is whole or counts for none, and a run finds its own alone."""

import os
import struct
import tarfile
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import yaml

from steersman.lab.data.images import read_images
from steersman.lab.evaluation import Evaluation
from steersman.lab.generate import Store
from steersman.lab.generate.formats import ImageRecord, read_image_record, write_image
from steersman.lab.generate.store import SHARD, running
from steersman.lab.run import DRAWN

RECORD = ImageRecord(
    noise_error=0.2,
    run="a",
    target="soccer ball é",
    label=3,
    seed=7,
    guide=Evaluation(1.0, 0.1 + 0.2, None),
    judge=None,
    dropped=2,
    moved=None,
    evaluations={"denoiser": 5.0},
    seconds=0.1,
    lost=False,
)


def image(seed, side=4):
    return np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)


def test_a_record_comes_back_as_it_was(tmp_path):
    write_image(tmp_path / "x.png", image(0), RECORD)
    assert read_image_record((tmp_path / "x.png").read_bytes()) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_an_image_that_is_cut_anywhere_or_changed_is_not_whole(tmp_path):
    write_image(tmp_path / "x.png", image(0), RECORD)
    content = (tmp_path / "x.png").read_bytes()
    for end in range(len(content)):
        assert read_image_record(content[:end]) is None
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 16
        assert read_image_record(bytes(changed)) is None


def filled(folder, format, num=SHARD + 10, lost=(3, SHARD + 1), then=None, closed=True):
    """Returns a store of two targets with all images written."""
    folder.mkdir(exist_ok=True)
    store = Store(out=folder, targets=("cat", "a dog"), num=num // 2, seed=5, format=format, digest="a")
    for place in range(len(store)):
        target, seed = store.job(place)
        record = replace(RECORD, target=store.targets[target], label=target, seed=seed, lost=place in lost)
        store.write(place, None if record.lost else image(place), record)
    if then is not None:
        then(store)
    if closed:
        store.close()
    return store


@pytest.mark.parametrize("format", ["png", "npz", "webdataset"])
def test_every_format_gives_back_images_and_records(format, tmp_path):
    store = filled(tmp_path, format)
    files = {"png": {"cat", "a dog"}, "npz": {"images.npz"}, "webdataset": {"images-00000.tar", "images-00001.tar"}}
    assert {path.name for path in tmp_path.iterdir()} == files[format]
    records = store.records(range(len(store)))
    assert list(records) == list(range(len(store)))
    assert [place for place, record in records.items() if record.lost] == [3, SHARD + 1]
    pixels = store.pixels((0, 4, SHARD - 1, SHARD + 2, SHARD + 9))
    assert len(pixels) == 5 and all((pixels[place] == image(place)).all() for place in pixels)
    assert len(store.present()) == len(store)
    assert replace(store, digest="b").records(range(len(store))) == {}
    drawn = {"targets": list(store.targets), "digest": store.digest}
    record = {"targets": ["all"], "recipe": {}, "num": store.num, "seed": 5, "format": format, DRAWN: drawn}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record))
    assert Store.read(tmp_path) == store
    images = read_images(tmp_path)
    assert len(images) == len(store) - 2
    assert set(images.classes) == {"cat", "a dog"}
    assert len(images.of("cat")) == store.num - 1
    whole = [place for place in range(len(store)) if place not in (3, SHARD + 1)]
    order = whole if format != "png" else sorted(whole, key=lambda place: (place < store.num, place))
    assert (images.read(range(len(images))).permute(0, 2, 3, 1).numpy() == np.stack([*map(image, order)])).all()


@pytest.mark.parametrize(("format", "left"), [("npz", 0), ("webdataset", SHARD)])
def test_a_packed_file_that_is_cut_or_changed_is_drawn_again(format, left, tmp_path):
    store = filled(tmp_path, format)
    path = max(tmp_path.glob("images*"))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:512], b"", content[:700] + b"???" + content[703:]):
        path.write_bytes(damaged)
        assert list(store.records(range(len(store)))) == list(range(left))
    path.write_bytes(content)
    assert len(store.records(range(len(store)))) == len(store)


@pytest.mark.parametrize("format", ["npz", "webdataset"])
def test_copies_of_packed_files_are_none_of_them(format, tmp_path):
    """A browser or a file manager calls a second copy so."""
    store = filled(tmp_path / "done", format)
    for path in list((tmp_path / "done").iterdir()):
        (path.parent / f"{path.stem} (1){path.suffix}").write_bytes(path.read_bytes())
        (path.parent / f"images-abc{path.suffix}").write_bytes(b"")
    assert len(store.present()) == len(store)
    assert len(read_images(tmp_path / "done")) == len(store) - 2
    begun = filled(tmp_path / "begun", format, then=lambda store: store._pack(0), closed=False)
    first = next((tmp_path / "begun").glob("images*"))
    (first.parent / f"{first.stem} (1){first.suffix}").write_bytes(first.read_bytes())
    (first.parent / ".running-0 (1)").write_bytes(b"")
    assert len(begun.present()) == len(begun) and len(begun.records(range(len(begun)))) == len(begun)
    assert running(first.parent) == set()


@pytest.mark.parametrize("format", ["png", "npz", "webdataset"])
def test_what_is_removed_is_gone_and_what_is_foreign_stays(format, tmp_path):
    store = filled(tmp_path, format, num=6, lost=(2,))
    assert store.present() == {*range(6)}
    (tmp_path / "own.png").write_bytes(b"mine")
    first = next(path for path in (tmp_path / "cat" / "000005.png", *tmp_path.glob("images*")) if path.exists())
    first.unlink()
    assert store.present() == ({*range(1, 6)} if format == "png" else set())
    store.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["own.png"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "huge"])
def test_what_is_no_file_of_an_image_counts_for_none(kind, tmp_path):
    store = filled(tmp_path, "png", num=2, lost=())
    path = tmp_path / "cat" / "000005.png"
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:  # a header that claims 100,000 by 100,000 pixels, its checksum right
        header = content[12:16] + struct.pack(">II", 10**5, 10**5) + content[24:29]
        path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    assert list(store.records(range(2))) == [1]


def test_what_adm_and_webdataset_expect_is_in_a_shard(tmp_path):
    """ADM's evaluator takes one file, of whose first array it reads the header and then some images at a time."""
    store = filled(tmp_path / "a", "npz", lost=(0, SHARD + 1))
    whole = [place for place in range(len(store)) if place not in (0, SHARD + 1)]
    with np.load(tmp_path / "a" / "images.npz") as held:
        assert (held["arr_0"] == np.stack([image(place) for place in whole])).all()
        assert held["arr_1"].tolist() == [store.job(place)[0] for place in whole]
    with zipfile.ZipFile(tmp_path / "a" / "images.npz") as held, held.open("arr_0.npy") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        assert (shape, fortran, dtype) == ((len(whole), 4, 4, 3), False, np.uint8)
        assert file.read(48) == image(whole[0]).tobytes()
    filled(tmp_path / "b", "webdataset", num=6, lost=(0,))
    with tarfile.open(tmp_path / "b" / "images-00000.tar") as held:
        assert held.getnames()[:4] == ["00000001.png", "00000001.json", "00000002.png", "00000002.json"]
        assert held.getnames()[-1] == "00000000.json"


def test_two_processes_that_pack_at_once_lose_nothing(tmp_path, monkeypatch):
    """The second is asked while the first has read all, and before it writes."""
    from steersman.lab.generate import store as module

    write, again = module.write_shard, []

    def race(store):
        def slow(*arguments):
            if not again:
                again.append(True)
                store._pack(0)
            write(*arguments)

        monkeypatch.setattr(module, "write_shard", slow)
        store._pack(0)

    store = filled(tmp_path, "npz", num=6, lost=(), then=race)
    assert again
    assert len(store.records(range(6))) == 6


def test_an_image_of_another_seed_or_without_a_record_is_foreign(tmp_path):
    store = filled(tmp_path, "png", num=4, lost=())
    (tmp_path / "cat" / "000005.png").write_bytes((tmp_path / "cat" / "000006.png").read_bytes())
    from PIL import Image

    Image.fromarray(image(0)).save(tmp_path / "a dog" / "000005.png")
    assert list(store.records(range(4))) == [1, 3]
