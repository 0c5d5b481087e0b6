"""Tensors from files: what is read, and that anything else ends in one line."""

import pickle
import subprocess
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from steersman.checkpoint import read_tensors
from steersman.errors import InputError


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(40, 50, generator=generator) for name in ("first", "second")}


def refused(path, message):
    with warnings.catch_warnings(action="error"), pytest.raises(InputError, match=message) as error:
        read_tensors(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "old.pt", "a.safetensors"])
def test_tensors_are_what_was_saved(name, tensors, tmp_path):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=name != "old.pt")
    for given in (path, str(path)):
        found = read_tensors(given)
        assert list(found) == list(tensors)
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("key", ["ema", "model", "state_dict"])
def test_weights_within_a_training_state(key, tensors, tmp_path):
    torch.save({"state_dict": {"other": torch.ones(1)}, "steps": 3, key: tensors}, tmp_path / "a.pt")
    assert set(read_tensors(tmp_path / "a.pt")) == set(tensors)


@pytest.mark.parametrize("name", ["a.pt", "old.pt", "a.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "tenth", "half", "but one byte", "start", "text"])
def test_damaged_files_are_refused(name, damage, tensors, tmp_path):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=name != "old.pt")
    content = path.read_bytes()
    size = len(content)
    path.write_bytes(
        {
            "empty": b"",
            "tenth": content[: size // 10],
            "half": content[: size // 2],
            "but one byte": content[:-1],
            "start": bytes(255 - byte for byte in content[:200]) + content[200:],
            "text": b"<html>not found</html>",
        }[damage]
    )
    refused(path, "cannot be read")


@pytest.mark.parametrize("place", range(1, 20))
def test_a_flipped_bit_is_found_wherever_it_is(place, tensors, tmp_path):
    """Also among the values, where the tensors could still be built; padding between the parts does not matter."""
    path = tmp_path / "a.pt"
    torch.save(tensors, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        part = next(each for each in archive.infolist() if each.filename.endswith("data/1"))
    start = content.find(tensors["second"].numpy().tobytes())
    assert start > 0 and part.file_size == tensors["second"].nbytes
    content[start + place * part.file_size // 20] ^= 1 << place % 8
    path.write_bytes(content)
    refused(path, "wrong checksum of a/data/1")


class Runs:
    def __reduce__(self):
        return subprocess.check_call, (["touch", "ran"],)


@pytest.mark.parametrize("name", ["a.pt", "plain.pt"])
def test_nothing_in_a_file_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "plain.pt":
        (tmp_path / name).write_bytes(pickle.dumps({"a": Runs()}))
    else:
        torch.save({"a": Runs()}, tmp_path / name)
    refused(tmp_path / name, r"\(damaged, or it holds more than tensors: it asks for \w+\.check_call\)")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_weights_that_are_not_finite_are_refused(value, name, tensors, tmp_path):
    tensors["second"][3, 4] = value
    (save_file if name.endswith("s") else torch.save)(tensors, tmp_path / name)
    refused(tmp_path / name, r"\(second is not finite\)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "no tensors by their names"),
        (torch.ones(2), "no tensors by their names"),
        ({}, "no tensors by their names"),
        ({"a": torch.ones(2), "b": 3}, "'b' is not a tensor but a int"),
        ({1: torch.ones(2)}, "'1' is not a tensor"),
        ({"a": torch.ones(1).expand(10**6, 10**6)}, "a is not a plain tensor with all its values"),
        ({"a": torch.eye(3).to_sparse()}, "a is not a plain tensor"),
    ],
)
def test_anything_but_plain_tensors_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", message)


def test_what_grows_when_it_is_unpacked_is_refused(tensors, tmp_path):
    torch.save(tensors, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as packed:
        for each in plain.infolist():
            packed.writestr(each.filename, plain.read(each), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "b.pt", "is compressed")


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "none.pt", "given; allowed: a file of tensors")
    refused(tmp_path, "given; allowed: a file of tensors")
