"""Bundled weights: each name loads, and damage is told in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steersman.errors import InputError
from steersman.lab.data.pictures import SOURCES
from steersman.lab.data.sportballs import SportBalls
from steersman.models.classifiers import load_classifier
from steersman.models.denoisers import load_denoiser
from steersman.models.zoo import build_network, folder, load_network, read_network
from steersman.names import network_names
from steersman.sampling import Heun, sample


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    weights, card = tmp_path / "model.safetensors", tmp_path / "card.json"
    save_file(build_network("resnet10_narrow", 3).half().state_dict(), weights)
    card.write_text(json.dumps({"architecture": "resnet10_narrow", "classes": ["a", "b", "c"]}))
    return weights, card


def test_half_precision_weights_become_float32(files: tuple[Path, Path]):
    network, card = read_network(*files)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not network.training and card["classes"] == ["a", "b", "c"]


@pytest.mark.parametrize("name", [name for name in network_names() if name.startswith("sportballs")])
def test_every_bundled_network_of_sportballs_knows_them(name: str):
    network, card = load_network(name)
    images, labels = SportBalls(num=64, seed=98).batch(range(64))
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).sum()
    assert card["classes"] == list(SportBalls.classes) and card["licence"] == "Apache-2.0"
    # robust networks give up some accuracy on clean images
    assert right >= (60 if card["robust"] else 63)
    assert card["accuracy"]["clean"] >= (0.95 if card["robust"] else 0.995)


@pytest.mark.parametrize("name", [name for name in network_names() if not name.startswith("sportballs")])
def test_every_bundled_network_of_published_data_has_its_classes_and_a_card(name: str):
    network, card = load_network(name)
    source = SOURCES[card["data"].partition(":")[0]]
    height, width, channels = source.shape
    with torch.no_grad():
        logits = network(torch.zeros(2, channels, height, width))
    assert logits.shape == (2, 10) and logits.isfinite().all()
    assert tuple(card["classes"]) == source.classes and card["licence"] == "Apache-2.0"
    assert card["accuracy"]["held_out"] == 10_000 and card["command"].startswith("steersman train classifier")


def test_a_digit_is_recognised_in_grey_and_in_colour():
    """A bar is a one and a ring a zero, however many channels the image has."""
    rows, columns = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    bar = (columns.abs() < 1.6) & (rows.abs() < 9.5)
    ring = ((rows / 9).square() + (columns / 6.5).square()).sqrt().sub(1).abs() < 0.2
    images = torch.stack([ring, bar]).float()[:, None] * 2 - 1
    lenet = load_classifier("zoo:mnist-lenet")
    for channels in (1, 3):
        assert lenet(images.expand(-1, channels, -1, -1)).argmax(1).tolist() == [0, 1]


@pytest.mark.long
def test_the_denoiser_of_digits_draws_ink_on_black_with_and_without_labels():
    denoiser = load_denoiser("zoo:mnist")
    assert denoiser.shape == (1, 28, 28) and denoiser.classes == SOURCES["mnist"].classes
    for condition in ({}, {"label": torch.tensor([3, 8])}):
        images = sample(denoiser, Heun(), seeds=(0, 1), steps=8, spacing="karras", condition=condition)
        # a digit covers a tenth to a third of its image, and the border is black
        assert all(0.05 < share < 0.4 for share in (images > 0).float().mean((1, 2, 3)).tolist())
        assert images[..., :2].mean() < -0.9 and images[..., -2:].mean() < -0.9


def test_unknown_names_list_the_known():
    with pytest.raises(InputError, match="unknown bundled network 'sportballs-mobilenett'"):
        load_network("sportballs-mobilenett")
    with pytest.raises(InputError, match="unknown bundled denoiser '../..'"):
        folder("../..")


def test_damage_is_told_in_one_line(files: tuple[Path, Path]):
    weights, card = files
    whole = weights.read_bytes()
    for content in (b"", whole[:1000], whole[:-10], b"\xff" * 100):
        weights.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors' cannot be read") as caught:
            read_network(weights, card)
        assert "\n" not in str(caught.value)
    weights.write_bytes(whole)
    card.write_text(json.dumps({"architecture": "mobilenet_v3_small", "classes": ["a"]}))
    with pytest.raises(InputError, match="weights: .* cannot be used") as caught:
        read_network(weights, card)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="checkpoint must be a file of tensors, .*, got '.*none'"):
        read_network(weights.with_name("none"), card)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"architecture": "resnet10_narrow"}'])
def test_damaged_card(files: tuple[Path, Path], content: str):
    weights, card = files
    card.write_text(content)
    with pytest.raises(InputError, match=r"card: .*card\.json"):
        read_network(weights, card)


def test_card_of_an_unknown_architecture(files: tuple[Path, Path]):
    weights, card = files
    card.write_text(json.dumps({"architecture": "vgg", "classes": ["a"]}))
    with pytest.raises(InputError, match="card: .*unknown architecture 'vgg'"):
        read_network(weights, card)
