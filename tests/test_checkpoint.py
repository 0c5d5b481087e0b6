"""Tensors from files: what is read, and that anything else ends in one line."""

import argparse
import pickle
import re
import subprocess
import warnings
import zipfile
from pathlib import PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from steersman.errors import InputError, Notice
from steersman.models.checkpoint import open_checkpoint, read_tensors


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


def test_which_part_of_a_training_state_is_read_can_be_chosen(tensors, tmp_path):
    torch.save({"model": tensors, "ema": {"other": torch.ones(1)}}, tmp_path / "a.pt")
    with pytest.warns(Notice, match="holds weights as model, ema: ema is read, unless weights=model"):
        assert set(read_tensors(tmp_path / "a.pt")) == {"other"}
    with warnings.catch_warnings(action="error"):
        assert set(read_tensors(tmp_path / "a.pt", weights="model")) == set(tensors)
    with pytest.raises(InputError, match="weights must be one of model, ema, .* got net"):
        read_tensors(tmp_path / "a.pt", weights="net")


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
    refused(tmp_path / name, r"it holds no tensors by their names, and asks for \w+\.check_call")
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
        ({1: torch.ones(2)}, "no tensors by their names"),
        ({"a": torch.ones(1).expand(10**6, 10**6)}, "a is not a plain tensor with all its values"),
        ({"a": torch.ones(1).expand(10, 10), "b": torch.ones(999)}, "a is not a plain tensor with all its values"),
        ({"a": torch.eye(3).to_sparse()}, "a is not a plain tensor"),
        ({"a": torch.zeros(4, dtype=torch.uint8).view(torch.bits8)}, "not implemented for 'Bits8'"),
        (torch.eye(3).to_sparse(), r"\(it is not a plain tensor"),
    ],
)
def test_anything_but_plain_tensors_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", message)


def test_such_tensors_beside_the_weights_do_not_matter(tmp_path):
    other = {"sparse": torch.eye(3).to_sparse(), "expanded": torch.ones(1).expand(10**6, 10**6)}
    torch.save({"model": weights(), "other": other}, tmp_path / "a.pt")
    same(open_checkpoint(tmp_path / "a.pt").state(NAMES), weights())


def test_what_grows_when_it_is_unpacked_is_refused(tensors, tmp_path):
    torch.save(tensors, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as packed:
        for each in plain.infolist():
            packed.writestr(each.filename, plain.read(each), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "b.pt", "is compressed")


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "none.pt", "checkpoint must be a file of tensors")
    refused(tmp_path, "checkpoint must be a file of tensors")


NAMES = ("conv.weight", "norm.weight", "norm.running_mean", "norm.num_batches_tracked", "fc.weight", "fc.bias")


def weights(seed=0, names=NAMES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 2, generator=generator) for name in names}


def under(start, state):
    return {f"{start}{name}": tensor for name, tensor in state.items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].float()) for name in found)


class Config(dict):
    """Some library's own mapping."""


class Told:
    """Some script's own settings."""

    def __init__(self):
        self.root, self.lr = PosixPath("/data"), np.float64(0.1)


def beside():
    return {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, model="resnet", out=PosixPath("/out"), sizes=[1, 2]),
        "config": Config(a=1),
        "told": Told(),
        "best": np.float32(0.9),
        "seen": {("a", 1): {1, 2}, "rng": np.random.default_rng(0).random(3)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"params": [0], "lr": 0.1}]},
    }


LAYOUTS = {
    "weights alone": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 1},
    "model": lambda state: {"model": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}},
    "net": lambda state: {"net": state, "acc": 91.2},
    "network": lambda state: {"network": state},
    "parallel": lambda state: {"state_dict": under("module.", state)},
    "compiled": lambda state: {"model": under("_orig_mod.", state)},
    "compiled and parallel": lambda state: {"model": under("_orig_mod.module.", state)},
    "compiled within": lambda state: under("backbone._orig_mod.", state),
    "lightning": lambda state: {"state_dict": under("model.", state) | {"criterion.weight": torch.ones(5)}},
    "lightning, the module itself": lambda state: {"state_dict": state | {"criterion.weight": torch.ones(5)}},
    "nested": lambda state: {"checkpoint": {"model": {"state_dict": state}}},
    "counted": lambda state: state | {"total_ops": torch.ones(1), "conv.total_params": torch.ones(1)},
    "before counts of batches": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("more", [dict, beside])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_networks_weights_are_found_wherever_training_scripts_put_them(layout, more, old, tmp_path):
    state = weights()
    content = {**LAYOUTS[layout](state), **more()}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not old)
    found = open_checkpoint(tmp_path / "a.ckpt").state(NAMES)
    same(found, {name: state[name] for name in found})
    assert set(NAMES) - set(found) <= {"norm.num_batches_tracked"}


def test_what_the_training_was_told_is_kept(tmp_path):
    torch.save({"model": weights(), **beside()}, tmp_path / "a.pt")
    facts = open_checkpoint(tmp_path / "a.pt").facts
    assert {"lr": 0.1, "model": "resnet", "sizes": [1, 2]}.items() <= facts.items()


COPIES = {
    "timm": ("state_dict", "state_dict_ema"),
    "torchvision": ("model", "model_ema.module"),
    "flat": ("state_dict.model", "state_dict.ema_model.module"),
    "diffusion": ("model", "ema"),
    "lightning": ("state_dict.net", "state_dict.net_ema"),
}


@pytest.mark.parametrize("names", COPIES.values(), ids=COPIES)
def test_of_two_copies_the_averaged_one_is_taken_and_said(names, tmp_path):
    raw, averaged = weights(1), weights(2)
    content: dict = {"epoch": 1}
    for place, state in zip(names, (raw, averaged), strict=True):
        holder, _, within = place.partition(".")
        content.setdefault(holder, {}).update(under(f"{within}." if within else "", state))
    content.get("model_ema", {})["n_averaged"] = torch.tensor(3)
    torch.save({key: value for key, value in content.items() if value}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    with pytest.warns(Notice, match=f"{re.escape(names[1])} is read, unless weights={re.escape(names[0])}"):
        same(checkpoint.state(NAMES), averaged)
    with warnings.catch_warnings(action="error"):
        same(checkpoint.state(NAMES, weights=names[0]), raw)
        same(checkpoint.state(NAMES, weights=names[1]), averaged)
    with pytest.raises(InputError, match="weights must be one of .*, got other"):
        checkpoint.state(NAMES, weights="other")


def test_copies_of_which_neither_is_averaged_must_be_chosen(tmp_path):
    torch.save({"student": weights(1), "teacher": weights(2)}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    with pytest.raises(InputError, match="several copies of the weights: student, teacher; say which, as in weights="):
        checkpoint.state(NAMES)
    same(checkpoint.state(NAMES, weights="teacher"), weights(2))


def test_a_copy_by_two_names_is_one(tmp_path):
    state = weights()
    torch.save({"state_dict": under("model.", state) | under("criterion.net.", state)}, tmp_path / "a.pt")
    with warnings.catch_warnings(action="error"):
        same(open_checkpoint(tmp_path / "a.pt").state(NAMES), state)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:-1], r"it lacks fc.bias$"),
        ([*NAMES, "conv2.weight", "conv3.weight", "conv4.weight", "conv5.weight"], r"no place for: conv2.*4 in all"),
        (["conv.weight", "head.weight"], r"it lacks norm.weight, .* \(4 in all\); it has head.weight besides"),
        (["other.weight"], "it has none of the network's tensors"),
    ],
)
def test_other_tensors_than_the_networks_are_listed(names, message, tmp_path):
    torch.save({"model": weights(names=names)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "a.pt").state(NAMES)


def test_a_tensor_whose_name_begins_with_a_dot_is_refused_too(tmp_path):
    torch.save(weights(names=[*NAMES, ".weight"]), tmp_path / "a.pt")
    with pytest.raises(InputError, match="no place for: .weight$"):
        open_checkpoint(tmp_path / "a.pt").state(NAMES)


def test_a_module_that_was_saved_whole_is_read_without_its_code(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)))
    torch.save(nn.DataParallel(network), tmp_path / "a.pt")
    same(open_checkpoint(tmp_path / "a.pt").state(list(network.state_dict())), network.state_dict())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
)
@pytest.mark.parametrize("more", [dict, beside])
def test_narrow_types_become_float32(dtype, more, tmp_path):
    state = {name: value.to(dtype) for name, value in weights().items()}
    torch.save({"model": state, **more()}, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt").state(NAMES)
    same(found, state)
    assert {value.dtype for value in found.values()} == {torch.float32}
    save_file(state, tmp_path / "a.safetensors")
    same(open_checkpoint(tmp_path / "a.safetensors").state(NAMES), state)


def test_tied_weights_that_safetensors_keeps_once(tmp_path):
    network = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    network["b"].weight = network["a"].weight
    save_model(network, str(tmp_path / "a.safetensors"), metadata={"format": "pt"})
    expected = network.state_dict()
    same(open_checkpoint(tmp_path / "a.safetensors").state(list(expected)), expected)
    torch.save(expected, tmp_path / "a.pt")
    same(open_checkpoint(tmp_path / "a.pt").state(list(expected)), expected)


def test_nothing_beside_the_tensors_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for old in (False, True):
        torch.save({"model": weights(), "x": Runs()}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
        same(open_checkpoint("a.pt").state(NAMES), weights())
    assert not (tmp_path / "ran").exists()


def test_a_file_that_nests_without_end_is_refused(tmp_path):
    endless: dict = {"a": torch.ones(1)}
    endless["again"] = endless["once more"] = endless
    torch.save(endless, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "it nests deeper than a checkpoint does")
