"""CIFAR-10 and MNIST from each layout that they are found in, and what is refused."""

import gzip
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steersman.errors import InputError
from steersman.lab.data import load_data, pictures

ROWS = 4  # images a block, in place of 10,000


def images(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


CIFAR = {
    "train": (images(5 * ROWS, 32, 32, 3), np.arange(20) % 10),
    "test": (images(ROWS, 32, 32, 3, seed=1), [3, 8, 8, 0]),
}
MNIST = {"train": (images(6 * ROWS, 28, 28), np.arange(24) % 10), "test": (images(ROWS, 28, 28, seed=1), [7, 2, 1, 0])}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """The digests of small data sets in place of the published ones'."""
    monkeypatch.setattr(pictures, "BLOCK", ROWS)
    for name, sets in (("cifar10", CIFAR), ("mnist", MNIST)):
        digests = {}
        for split, (pixels, labels) in sets.items():
            pixels = pixels.reshape(*pixels.shape[:3], -1)
            numbers = np.array(labels, np.uint8)
            blocks = range(0, len(numbers), ROWS)
            digests[split] = [pictures._digest(pixels[i : i + ROWS], numbers[i : i + ROWS]) for i in blocks]
        monkeypatch.setitem(pictures.SOURCES, name, replace(pictures.SOURCES[name], digests=digests))


def blocks(split):
    pixels, labels = CIFAR[split]
    for number in range(len(labels) // ROWS):
        part = slice(number * ROWS, (number + 1) * ROWS)
        yield f"data_batch_{number + 1}" if split == "train" else "test_batch", pixels[part], labels[part]


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how the published files hold them."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, text):
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)

    dispatch[bytes] = save_bytes


def torchvision_cifar10(folder, dumps):
    for split in CIFAR:
        for name, pixels, labels in blocks(split):
            flat = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(labels), 3072)
            content = {b"batch_label": b"x", b"labels": [int(each) for each in labels], b"data": flat}
            (folder / "cifar-10-batches-py").mkdir(exist_ok=True)
            (folder / "cifar-10-batches-py" / name).write_bytes(dumps(content))


def python2(content):
    stream = io.BytesIO()
    Python2(stream, protocol=2).dump(content)
    return stream.getvalue()


def npm_cifar10(folder):
    for split in CIFAR:
        for name, pixels, _ in blocks(split):
            Image.fromarray(pixels.reshape(len(pixels), 1024, 3)).save(folder / f"{name}.png")
        (folder / f"{split}_lables.json").write_text(json.dumps([int(each) for each in CIFAR[split][1]]))


def idx(array):
    array = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def idx_mnist(folder, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for kind, array in zip(("images-idx3", "labels-idx1"), MNIST[split], strict=True):
            content, name = idx(array), f"{prefix}-{kind}-ubyte"
            (folder / f"{name}.gz" if packed else folder / name).write_bytes(
                gzip.compress(content) if packed else content
            )


def read_back(spec, sets, split):
    """Compares a data set with what was written, value for value."""
    data, classes = load_data(spec)
    pixels, labels = sets[split]
    found = torch.stack([data[index][0] for index in range(len(data))])
    expected = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(found, expected)
    assert [data[index][1] for index in range(len(data))] == [int(each) for each in labels]
    assert len(classes) == 10
    return data


@pytest.mark.parametrize("dumps", [python2, lambda content: pickle.dumps(content, protocol=2), pickle.dumps])
def test_cifar10_in_torchvisions_layout(tmp_path, dumps):
    torchvision_cifar10(tmp_path, dumps)
    read_back(f"cifar10:{tmp_path}", CIFAR, "train")
    read_back(f"cifar10:{tmp_path}?split=test", CIFAR, "test")
    read_back(f"cifar10:{tmp_path / 'cifar-10-batches-py'}", CIFAR, "train")


def test_cifar10_in_the_npm_packages_layout(tmp_path):
    (tmp_path / "package").mkdir()
    npm_cifar10(tmp_path / "package")
    read_back(f"cifar10:{tmp_path}", CIFAR, "train")
    read_back(f"cifar10:{tmp_path}/package?split=test", CIFAR, "test")


@pytest.mark.parametrize("place", [".", "MNIST/raw", "package/data", "data"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_in_each_layout(tmp_path, place, packed):
    idx_mnist(tmp_path / place, packed)
    data = read_back(f"mnist:{tmp_path}", MNIST, "train")
    read_back(f"mnist:{tmp_path}?split=test", MNIST, "test")
    assert data[0][0].shape == (1, 28, 28) and data.classes[3] == "3 - three"


def rows(name, split):
    pixels, labels = (CIFAR if name == "cifar10" else MNIST)[split]
    for image, label in zip(pixels, labels, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="PNG")
        cell = {"bytes": stream.getvalue(), "path": None}
        yield {"img" if name == "cifar10" else "image": cell, "label": int(label)}


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_parquet_as_the_hub_has_it_in_its_own_order_of_blocks(tmp_path, name):
    """The hub's CIFAR-10 begins with the fourth of the published five files."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "plain_text"
    folder.mkdir()
    for split in ("train", "test"):
        table = list(rows(name, split))
        table = table[ROWS * 3 :] + table[: ROWS * 3]
        parquet.write_table(pa.Table.from_pylist(table), folder / f"{split}-00000-of-00001.parquet")
    read_back(f"{name}:{tmp_path}", CIFAR if name == "cifar10" else MNIST, "train")
    read_back(f"{name}:{tmp_path}?split=test", CIFAR if name == "cifar10" else MNIST, "test")


def test_parquet_without_pyarrow_names_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'steersman\[parquet\]'"):
        load_data(f"cifar10:{tmp_path}")


def test_blocks_in_another_order_are_put_into_the_original_one(tmp_path):
    npm_cifar10(tmp_path)
    pixels, labels = CIFAR["train"]
    order = np.concatenate([np.arange(ROWS * first, ROWS * first + ROWS) for first in (3, 2, 1, 4, 0)])
    ordered = pictures._checked(pixels[order], np.array(labels, np.uint8)[order], pictures.SOURCES["cifar10"], "train")
    assert np.array_equal(ordered[0], pixels) and np.array_equal(ordered[1], labels)


def test_one_other_pixel_or_label_is_refused(tmp_path):
    npm_cifar10(tmp_path)
    strip = np.array(Image.open(tmp_path / "data_batch_2.png"))
    strip[1, 5, 0] ^= 1
    Image.fromarray(strip).save(tmp_path / "data_batch_2.png")
    with pytest.raises(InputError, match="1 of 5 blocks.*SHA-256") as caught:
        load_data(f"cifar10:{tmp_path}")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    labels = json.loads((tmp_path / "test_lables.json").read_text())
    (tmp_path / "test_lables.json").write_text(json.dumps([labels[0] ^ 1, *labels[1:]]))
    with pytest.raises(InputError, match="1 of 1 blocks"):
        load_data(f"cifar10:{tmp_path}?split=test")


class Runs:
    """A pickle that would run a program."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capsys):
    torchvision_cifar10(tmp_path, python2)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps({b"data": Runs(), b"labels": []}))
    with pytest.raises(InputError, match="builtins.print"):
        load_data(f"cifar10:{tmp_path}")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-images-idx3-ubyte", b""),
        ("train-images-idx3-ubyte", b"\0\0\x0d\x03"),
        ("train-images-idx3-ubyte", bytes([0, 0, 8, 3]) + np.array([2**31, 28, 28], ">u4").tobytes() + b"abc"),
        ("train-labels-idx1-ubyte", idx(np.zeros(3))),
    ],
)
def test_damaged_idx_files_are_refused_in_one_line(tmp_path, name, content):
    idx_mnist(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_data(f"mnist:{tmp_path}")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cifar10:{folder}", "must hold cifar10 as torchvision"),
        ("mnist:{folder}", "must hold mnist as torchvision"),
        ("cifar10:{folder}/nothing", "is none"),
        ("cifar10:{folder}?split=all", "unknown split 'all'"),
        ("cifar10:{folder}?num=3", "unknown option of cifar10 'num'"),
        ("cifar100:", "cifar10:"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path, spec, said):
    with pytest.raises(InputError, match=said):
        load_data(spec.format(folder=tmp_path))


def test_without_a_folder_the_files_are_downloaded_or_found_in_torchs_cache(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fetch(url, root, filename, md5):
        Path(root).mkdir()
        torchvision_cifar10(Path(root), python2)

    monkeypatch.setattr(utils, "download_and_extract_archive", fetch)
    read_back("cifar10:?split=test", CIFAR, "test")
    monkeypatch.delattr(utils, "download_and_extract_archive")
    read_back("cifar10:", CIFAR, "train")


def test_a_download_that_fails_says_how_to_go_on(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(utils, "download_and_extract_archive", fail)
    with pytest.raises(InputError, match="no network.*cifar10:FOLDER"):
        load_data("cifar10:")


def test_images_are_resized_on_request(tmp_path):
    idx_mnist(tmp_path)
    data, _ = load_data(f"mnist:{tmp_path}", resolution=32)
    assert data[0][0].shape == (1, 32, 32)
