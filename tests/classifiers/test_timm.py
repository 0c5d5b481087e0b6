"""Timm's classifiers, on random weights in its own format."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from steersman.errors import InputError
from steersman.models.classifiers import load_classifier


def built(name, **settings):
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **settings).eval()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    network, path = built("resnet10t", num_classes=5), tmp_path_factory.mktemp("resnet") / "own.safetensors"
    save_file(network.state_dict(), path)
    return network, path


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("name", "height", "width"),
    # resnet10t: 176 of 201 pixels, which has no middle
    [("resnet10t", 201, 201), ("resnet10t", 201, 240), ("mobilenetv3_small_050.lamb_in1k", 256, 256)],
)
def test_without_a_resize_logits_are_timms_own(name, height, width, picture, agrees, tmp_path):
    network = built(name, num_classes=5)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "own.pth")
    transforms = create_transform(**resolve_data_config(model=network), is_training=False)
    photo = picture(height, width)
    pixels = transforms(photo)[None]
    classifier = load_classifier(f"timm:{name}?checkpoint={tmp_path}/own.pth&preprocess=imagenet")
    agrees(classifier, photo, pixels, network(pixels).detach())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (300, 201)])
def test_a_resize_differs_by_the_librarys_rounding(height, width, resnet, picture, agrees):
    network, path = resnet
    photo = picture(height, width)
    pixels = create_transform(**resolve_data_config(model=network), is_training=False)(photo)[None]
    agrees(load_classifier(f"timm:resnet10t?checkpoint={path}&preprocess=imagenet"), photo, pixels, None, resized=True)


def test_published_weights_come_from_the_hubs_cache(monkeypatch, tmp_path):
    network, asked = built("resnet10t"), []
    save_file(network.state_dict(), tmp_path / "model.safetensors")

    def cached(repository, file, local_files_only=False):
        asked.append((repository, file, local_files_only))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", cached)
    classifier = load_classifier("timm:resnet10t.c3_in1k")
    assert asked == [("timm/resnet10t.c3_in1k", "model.safetensors", True)]
    assert torch.equal(classifier.network.fc.weight, network.fc.weight)
    assert classifier.resolve("baseball") == 429 and len(classifier.names) == 1000
    assert (classifier.preprocess.size, classifier.preprocess.interpolation) == (176, "bicubic")


def test_without_a_network_says_what_to_fetch(monkeypatch, tmp_path, capfd):
    def offline(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    said = re.escape("hf download timm/resnet10t.c3_in1k model.safetensors")
    with pytest.raises(InputError, match=said) as refused:
        load_classifier("timm:resnet10t")
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


def test_one_logit_one_channel(tmp_path, picture, in_range):
    network = built("resnet10t", num_classes=1, in_chans=1)
    torch.save(network.state_dict(), tmp_path / "own.pt")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    classifier = load_classifier(f"timm:resnet10t?checkpoint={tmp_path}/own.pt&names={names}&preprocess=imagenet")
    assert classifier.binary and classifier.names == ("cat", "dog")
    grey = in_range(picture(201, 201, "L"))
    middle = grey[..., 12:188, 12:188]  # 12.5 rounds to even
    mean, std = (sum(each) / 3 for each in (network.pretrained_cfg["mean"], network.pretrained_cfg["std"]))
    expected = network((middle / 2 + 0.5 - mean) / std)
    torch.testing.assert_close(classifier(grey), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet10", "did you mean 'resnet10"),
        ("resnet10t.c4_in1k", "unknown weights of resnet10t 'c4_in1k'; did you mean 'c3_in1k'"),
        ("resnet10t?checkpoint=none.pth", "none.pth"),
        (
            "resnet10t?weight=none.pth",
            "unknown option 'weight'; did you mean 'weights'.* known: checkpoint, preprocess, size",
        ),
        ("resnet14t?checkpoint={path}", "do not fit the network .it lacks .*in all"),
        ("vit_small_patch14_dinov2", "must have classes, got a network of features only"),
    ],
)
def test_what_can_go_wrong_is_one_line(name, message, resnet):
    with pytest.raises(InputError, match=message) as refused:
        load_classifier("timm:" + name.format(path=resnet[1]))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
