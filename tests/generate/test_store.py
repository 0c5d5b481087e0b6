"""Files of images: one is whole or counts for none, and a run finds its own alone."""

import tarfile
from dataclasses import replace

import numpy as np
import pytest
import yaml

from steersman.generate import Store
from steersman.generate.record import Record, read_image, write_image
from steersman.generate.store import SHARD
from steersman.metrics.images import read_images
from steersman.run import DRAWN
from steersman.verdicts import Verdict

RECORD = Record(
    noise_error=0.2,
    run="a",
    target="soccer ball é",
    label=3,
    seed=7,
    guide=Verdict(1.0, 0.1 + 0.2, None),
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
    assert read_image((tmp_path / "x.png").read_bytes()) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_an_image_that_is_cut_anywhere_or_changed_is_not_whole(tmp_path):
    write_image(tmp_path / "x.png", image(0), RECORD)
    content = (tmp_path / "x.png").read_bytes()
    for end in range(len(content)):
        assert read_image(content[:end]) is None
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 16
        assert read_image(bytes(changed)) is None


def filled(folder, format, num=SHARD + 10, lost=(3, SHARD + 1), then=None):
    """Returns a store of two targets with all images written."""
    folder.mkdir(exist_ok=True)
    store = Store(out=folder, targets=("cat", "a dog"), num=num // 2, seed=5, format=format, digest="a")
    for place in range(len(store)):
        target, seed = store.job(place)
        record = replace(RECORD, target=store.targets[target], label=target, seed=seed, lost=place in lost)
        store.write(place, None if record.lost else image(place), record)
    if then is not None:
        then(store)
    store.close()
    return store


@pytest.mark.parametrize("format", ["png", "npz", "webdataset"])
def test_every_format_gives_back_images_and_records(format, tmp_path):
    store = filled(tmp_path, format)
    files = {"png": {"cat", "a dog"}, "npz": {"images-00000.npz", "images-00001.npz"}}
    files["webdataset"] = {name.replace("npz", "tar") for name in files["npz"]}
    assert {path.name for path in tmp_path.iterdir()} == files[format]
    records = store.records(range(len(store)))
    assert list(records) == list(range(len(store)))
    assert [place for place, record in records.items() if record.lost] == [3, SHARD + 1]
    assert all((store.pixels(place) == image(place)).all() for place in (0, 4, SHARD - 1, SHARD + 2, SHARD + 9))
    assert store.count() == len(store)
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


@pytest.mark.parametrize("format", ["npz", "webdataset"])
def test_a_shard_that_is_cut_or_changed_is_drawn_again(format, tmp_path):
    store = filled(tmp_path, format)
    path = next(tmp_path.glob("images-00001.*"))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:512], b"", content[:700] + b"???" + content[703:]):
        path.write_bytes(damaged)
        assert list(store.records(range(len(store)))) == list(range(SHARD))
    path.write_bytes(content)
    assert len(store.records(range(len(store)))) == len(store)


def test_what_adm_and_webdataset_expect_is_in_a_shard(tmp_path):
    filled(tmp_path / "a", "npz", num=6, lost=(0,))
    with np.load(tmp_path / "a" / "images-00000.npz") as held:
        assert held["arr_0"].shape == (5, 4, 4, 3)
        assert held["arr_1"].tolist() == [0, 0, 1, 1, 1]
    filled(tmp_path / "b", "webdataset", num=6, lost=(0,))
    with tarfile.open(tmp_path / "b" / "images-00000.tar") as held:
        assert held.getnames()[:4] == ["00000001.png", "00000001.json", "00000002.png", "00000002.json"]
        assert held.getnames()[-1] == "00000000.json"


def test_two_processes_that_pack_at_once_lose_nothing(tmp_path, monkeypatch):
    """The second is asked while the first has read all, and before it writes."""
    from steersman.generate import store as module

    write, again = module.write_shard, []

    def race(store):
        def slow(*arguments):
            if not again:
                again.append(True)
                store.pack([0])
            write(*arguments)

        monkeypatch.setattr(module, "write_shard", slow)
        store.pack([0])

    store = filled(tmp_path, "npz", num=6, lost=(), then=race)
    assert again
    assert len(store.records(range(6))) == 6


def test_an_image_of_another_seed_or_without_a_record_is_foreign(tmp_path):
    store = filled(tmp_path, "png", num=4, lost=())
    (tmp_path / "cat" / "000005.png").write_bytes((tmp_path / "cat" / "000006.png").read_bytes())
    from PIL import Image

    Image.fromarray(image(0)).save(tmp_path / "a dog" / "000005.png")
    assert list(store.records(range(4))) == [1, 3]
