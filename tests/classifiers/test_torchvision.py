"""Torchvision's classifiers, on random weights in its own formats."""

import hashlib
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from steersman.errors import InputError
from steersman.models.classifiers import Preprocess, load_classifier
from steersman.models.classifiers.libraries import _torchvision_preprocess, _torchvision_weights

EXTRA = {"googlenet": {"transform_input": True, "init_weights": False}}


def built(name, classes=5):
    torch.manual_seed(0)
    return models.get_model(name, weights=None, num_classes=classes, **EXTRA.get(name, {})).eval()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    network, path = built("resnet18"), tmp_path_factory.mktemp("resnet") / "own.pth"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("resnet18", 256, 256), ("googlenet", 256, 300), ("efficientnet_b1", 255, 255), ("regnet_y_400mf", 300, 232)],
)
def test_without_a_resize_logits_are_torchvisions_own(name, height, width, picture, agrees, tmp_path):
    """EfficientNet-B1 keeps 240 of 255 pixels, which has no middle."""
    network = built(name)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    photo = picture(height, width)
    pixels = transforms(photo)[None]
    agrees(
        load_classifier(f"torchvision:{name}?checkpoint={tmp_path}/own.pth&preprocess=imagenet"),
        photo,
        pixels,
        network(pixels).detach(),
    )


def test_what_held_the_network_when_it_was_saved_is_left_off(resnet, tmp_path):
    network, path = resnet
    save_file({f"classifier.{key}": each for key, each in network.state_dict().items()}, tmp_path / "held.safetensors")
    weights = [
        load_classifier(f"torchvision:resnet18?checkpoint={file}").network.state_dict()
        for file in (path, tmp_path / "held.safetensors")
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.few(3)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (120, 200), (500, 301)])
def test_a_resize_differs_by_the_librarys_rounding(height, width, resnet, picture, agrees):
    network, path = resnet
    photo = picture(height, width)
    for weights in ("resnet18", "efficientnet_b0"):
        transforms = models.get_model_weights(weights).DEFAULT.transforms()
        classifier = load_classifier(f"torchvision:resnet18?checkpoint={path}&preprocess=imagenet")
        if weights == "efficientnet_b0":  # bicubic
            classifier.preprocess = Preprocess(
                mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224, crop=0.875, interpolation="bicubic"
            )
        pixels = transforms(photo)[None]
        agrees(classifier, photo, pixels, network(pixels), resized=True)


def test_the_named_weights_say_how_images_are_prepared(resnet):
    own = [
        load_classifier(f"torchvision:{name}?checkpoint={resnet[1]}&preprocess=imagenet")
        for name in ("resnet18", "resnet18.IMAGENET1K_V1")
    ]
    assert own[0].preprocess == own[1].preprocess
    published = models.ResNet50_Weights
    for member, edge in ((published.IMAGENET1K_V1, 256), (published.IMAGENET1K_V2, 232)):
        assert _torchvision_weights(f"resnet50.{member.name}") == ("resnet50", member)
        assert _torchvision_preprocess(member.transforms()).crop == 224 / edge
    assert _torchvision_weights("resnet50")[1] is published.IMAGENET1K_V2


def test_published_weights_come_from_torchs_cache_with_their_digest(monkeypatch, tmp_path):
    network = built("resnet18", 1000)
    published = models.ResNet18_Weights.DEFAULT
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(network.state_dict(), cache / "new.pth")
    digest = hashlib.sha256((cache / "new.pth").read_bytes()).hexdigest()[:8]
    path = (cache / "new.pth").rename(cache / f"resnet18-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(published.value, "url", f"https://example.org/models/{path.name}")
    classifier = load_classifier("torchvision:resnet18")
    assert torch.equal(classifier.network.fc.weight, network.fc.weight)
    assert classifier.resolve("baseball") == 429 and len(classifier.names) == 1000
    assert classifier.preprocess.size == 224 and classifier.preprocess.interpolation == "bilinear"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match=f"is damaged: SHA-256 must be {digest}.*, got "):
        load_classifier("torchvision:resnet18.IMAGENET1K_V1")


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_says_what_to_fetch(offline, monkeypatch, tmp_path, capfd):
    def no_network(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("urllib.request.urlopen", no_network if not offline else None)
    url = models.ResNet50_Weights.IMAGENET1K_V2.url
    with pytest.raises(InputError, match=re.escape(f"; save {url} as {tmp_path}")) as refused:
        load_classifier("torchvision:resnet50.IMAGENET1K_V2")
    assert "\n" not in str(refused.value) and ("HF_HUB_OFFLINE" in str(refused.value)) == offline
    assert capfd.readouterr() == ("", "")


def test_densenets_published_names_are_older_than_its_modules(tmp_path):
    state = built("densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): each for key, each in state.items()}
    assert len(old.keys() - state.keys()) > 500
    torch.save(old, tmp_path / "old.pth")
    found = load_classifier(f"torchvision:densenet121?checkpoint={tmp_path}/old.pth").network.state_dict()
    assert all(torch.equal(found[key], each) for key, each in state.items())


def test_a_resnet_for_small_images_is_recognised_by_its_first_convolution(tmp_path):
    network = built("resnet18", 2)
    network.conv1, network.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    own = {
        key.replace("downsample", "shortcut").replace("fc.", "linear."): v for key, v in network.state_dict().items()
    }
    torch.save(own, tmp_path / "own.pth")
    spec = f"torchvision:resnet18?checkpoint={tmp_path}/own.pth&size=32&mean=0.5&std=0.5&names=ball,cube"
    classifier, images = load_classifier(spec), torch.rand(2, 3, 32, 32) * 2 - 1
    assert classifier.names == ("ball", "cube")
    torch.testing.assert_close(classifier(images), network(images))


def test_names_are_a_files_or_numbers(resnet, tmp_path):
    _, path = resnet
    assert load_classifier(f"torchvision:resnet18?checkpoint={path}").names == tuple("01234")
    with pytest.raises(InputError, match="a file is given as torchvision:resnet18.checkpoint=own.pth, got"):
        load_classifier("torchvision:resnet18:own.pth")
    names = tmp_path / "names.txt"
    names.write_text("ball, sphere\ncat\n\ndog\nel\u00e9fante\nfox\n", encoding="utf-8")
    classifier = load_classifier(f"torchvision:resnet18?checkpoint={path}&names={names}")
    assert (classifier.resolve("sphere"), classifier.resolve("ELÉFANTE")) == (0, 3)
    names.write_text("ball\ncat\n")
    with pytest.raises(InputError, match="must have 5 names, .*, got 2"):
        load_classifier(f"torchvision:resnet18?checkpoint={path}&names={names}")
    with pytest.raises(InputError, match="names that cannot be read"):
        load_classifier(f"torchvision:resnet18?checkpoint={path}&names={tmp_path}/none.txt")


def test_one_logit_is_binary_and_safetensors_do(tmp_path):
    save_file(built("resnet18", 1).state_dict(), tmp_path / "own.safetensors")
    classifier = load_classifier(f"torchvision:resnet18?checkpoint={tmp_path}/own.safetensors&preprocess=imagenet")
    assert classifier.binary and classifier.names == ("0", "1")
    assert classifier(torch.zeros(2, 3, 64, 64)).shape == (2, 1)


def test_weights_for_one_channel_see_grey(resnet, picture, in_range, tmp_path):
    network = built("resnet18")
    network.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    torch.save(network.state_dict(), tmp_path / "grey.pth")
    classifier = load_classifier(f"torchvision:resnet18?checkpoint={tmp_path}/grey.pth&preprocess=imagenet")
    colour = picture(256, 256)
    grey = in_range(colour.convert("L"))
    # Pillow rounds grey to 8 bits
    seen = classifier.preprocess(in_range(colour))
    assert (seen - classifier.preprocess(grey)).abs().max() <= 0.51 / 255 / classifier.preprocess.std[0]
    torch.testing.assert_close(seen.shape, torch.Size([1, 1, 224, 224]))
    expected = network.eval()((grey[..., 16:240, 16:240] / 2 + 0.5 - 1.347 / 3) / (0.678 / 3))
    torch.testing.assert_close(classifier(grey), expected, rtol=1e-4, atol=1e-5)


def test_the_whole_image_without_a_crop(resnet, picture, in_range):
    _, path = resnet
    image = in_range(picture(64, 64)).requires_grad_()
    for option, border in (("", False), ("&crop=none", True)):
        classifier = load_classifier(f"torchvision:resnet18?checkpoint={path}&preprocess=imagenet{option}")
        (g,) = torch.autograd.grad(classifier(image).sum(), image)
        assert bool((g[..., :3] != 0).any()) == border
    with pytest.raises(InputError, match="crop must be numbers separated by commas, got 'half'"):
        load_classifier(f"torchvision:resnet18?checkpoint={path}&crop=half")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "did you mean 'resnet"),
        ("resnet50.IMAGENET1K_V3", "unknown weights of resnet50.*IMAGENET1K_V2"),
        ("resnet18?checkpoint={path}&name=x", "did you mean 'names'"),
        ("resnet18?checkpoint={path}&names=", "names needs a value"),
        ("resnet18:none.pth", "none.pth"),
        ("resnet34?checkpoint={path}", "do not fit the network .it lacks layer1.2.conv1.weight, "),
        ("vgg11?checkpoint={path}", "it has none of the network's tensors"),
        ("resnet18?checkpoint={code}", "cannot be read"),
    ],
)
def test_what_can_go_wrong_is_one_line(name, message, resnet, tmp_path):
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(InputError, match=message) as refused:
        load_classifier("torchvision:" + name.format(path=resnet[1], code=tmp_path / "code.pth"))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
