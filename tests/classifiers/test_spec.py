"""What a spec states of a classifier, what is read, and that nothing is assumed in silence."""

import argparse
import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from steersman.errors import InputError, Notice
from steersman.lab.data.images import read_images
from steersman.models.classifiers import RAW, Classifier, Preprocess, load_classifier
from steersman.models.classifiers.spec import IMAGENET

GREY = torch.zeros(1, 1, 28, 28)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The folder that a training writes."""
    folder, zoo = tmp_path_factory.mktemp("mine"), resources.files("steersman.models.zoo")
    for name, file in (("model.safetensors", ".safetensors"), ("card.json", ".json")):
        shutil.copy(str(zoo / f"sportballs-mobilenet{file}"), folder / name)
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("resnet") / "own.pth"
    torch.save(models.resnet18(num_classes=2).state_dict(), path)
    return path


def test_what_a_training_wrote_loads_by_its_folder_as_it_was_trained(own):
    truth = load_classifier("zoo:sportballs-mobilenet")
    images = next(read_images("sportballs?num=8&seed=3").batches(8))
    for spec in (str(own), f"torchvision:mobilenet_v3_small?checkpoint={own}/model.safetensors"):
        classifier = load_classifier(spec)
        assert classifier.names == truth.names and classifier.preprocess == Preprocess(size=64)
        torch.testing.assert_close(classifier(images), truth(images))


def test_a_trained_network_is_shown_the_size_of_its_training(own):
    large = torch.rand(1, 3, 160, 160) * 2 - 1
    classifier = load_classifier(str(own))
    assert torch.equal(classifier(large), classifier(Preprocess(size=64)(large)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "there is no folder"),
        (lambda folder: folder.mkdir(), "must hold card.json and model.safetensors"),
        (lambda folder: (folder.mkdir(), (folder / "card.json").write_text("{}")), "card"),
    ],
)
def test_a_folder_that_holds_no_classifier_is_refused(make, message, tmp_path):
    make(tmp_path / "mine")
    with pytest.raises(InputError, match=message) as refused:
        load_classifier(str(tmp_path / "mine"))
    assert "\n" not in str(refused.value)


def test_without_stated_preprocessing_images_are_refused(resnet):
    spec = f"torchvision:resnet18?checkpoint={resnet}"
    with pytest.raises(
        InputError, match=r"nothing states how images are prepared .*preprocess=imagenet.*0\.485"
    ) as line:
        load_classifier(spec)(torch.zeros(1, 3, 64, 64))
    assert "\n" not in str(line.value)
    with pytest.raises(InputError, match="nothing states"):
        load_classifier(f"{spec}&size=64")(torch.zeros(1, 3, 64, 64))
    published = load_classifier(f"{spec}&preprocess=imagenet").preprocess
    assert published == IMAGENET
    assert load_classifier(f"{spec}&preprocess=raw").preprocess == RAW
    stated = load_classifier(f"{spec}&size=32&mean=0.1,0.2,0.3&std=0.4&interpolation=bilinear&crop=0.5").preprocess
    expected = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.4,) * 3, size=32, interpolation="bilinear", crop=0.5)
    assert stated == expected
    # EluCD's way does not ask how images are prepared
    assert load_classifier(spec, preprocess="raw")(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_the_command_refuses_it_before_anything_is_written(resnet, call, denoiser, tmp_path):
    arguments = ["--target", "1", "--judge", "none", "--num", "1", "--steps", "2", "--recipe", "nrcg"]
    spec = f"torchvision:resnet18?checkpoint={resnet}"
    code, _, said = call("sample", "--denoiser", denoiser, "--classifier", spec, *arguments, "--out", tmp_path / "out")
    assert code == 2 and said.count("\n") == 1 and "&preprocess=imagenet" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["zoo:sportballs-mobilenet", "imagenet:efficientnet-lite0", "{own}"])
def test_every_source_takes_the_same_options(spec, own, tmp_path):
    spec = spec.format(own=own)
    read = load_classifier(spec)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {number}\n" for number in range(len(read.names))))
    classifier = load_classifier(f"{spec}?size=48&mean=0.25&std=0.5&crop=none&names={names}&head=multilabel")
    assert classifier.preprocess.size == 48 and classifier.preprocess.mean == (0.25,) and classifier.multilabel
    assert classifier.names[1] == "class 1"
    only = load_classifier(f"{spec}?interpolation=bilinear").preprocess
    assert (only.interpolation, only.mean, only.std) == ("bilinear", read.preprocess.mean, read.preprocess.std)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=big", "size must be a number of pixels, at least 1, got 'big'"),
        ("size=0", "size must be a number of pixels"),
        ("mean=a,b", "mean must be numbers separated by commas"),
        ("mean=0.5,0.5", "mean and std|takes images of 2 channels"),
        ("std=0", "std positive"),
        ("crop=2", "crop must be a fraction"),
        ("interpolation=nearest", "unknown interpolation 'nearest'"),
        ("preprocess=image", "unknown preprocess 'image'; did you mean 'imagenet'"),
        ("channels=cmyk", "unknown channels 'cmyk'"),
        ("head=sigmoid", "unknown head 'sigmoid'"),
        ("head=binary", "head must be softmax or multilabel for .* of 4 logits, got binary"),
        ("names=", "names needs a value"),
    ],
)
def test_what_cannot_be_stated_is_one_line(options, message):
    with pytest.raises(InputError, match=message) as refused:
        load_classifier(f"zoo:sportballs-mobilenet?{options}")(torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(refused.value)


def test_one_logit_is_binary_whatever_names_are_stated(tmp_path):
    torch.save(models.resnet18(num_classes=1).state_dict(), tmp_path / "one.pth")
    (tmp_path / "its & names.txt").write_text("cat\n")
    spec = f"torchvision:resnet18?checkpoint={tmp_path}/one.pth&preprocess=imagenet"
    assert load_classifier(f"{spec}&names={tmp_path}/its & names.txt&size=64").names == ("not cat", "cat")
    with pytest.raises(InputError, match="head must be binary"):
        load_classifier(f"{spec}&head=softmax")


@pytest.mark.long
def test_what_training_scripts_were_told_is_read(tmp_path):
    """Both keep it beside the weights; of torchvision's script mean and deviation are fixed."""
    weights = models.resnet18(num_classes=2).state_dict()
    told = argparse.Namespace(val_resize_size=72, val_crop_size=64, interpolation="bicubic")
    torch.save({"model": weights, "args": told, "epoch": 3}, tmp_path / "torchvision.pth")
    found = load_classifier(f"torchvision:resnet18?checkpoint={tmp_path}/torchvision.pth").preprocess
    assert (found.size, found.crop, found.interpolation, found.mean) == (64, 64 / 72, "bicubic", IMAGENET.mean)
    import timm

    weights = timm.create_model("resnet10t", num_classes=2).state_dict()
    told = argparse.Namespace(mean=[0.1, 0.2, 0.3], std=None, img_size=96, crop_pct=None, interpolation="bilinear")
    torch.save({"state_dict": weights, "args": told}, tmp_path / "timm.pth.tar")
    found = load_classifier(f"timm:resnet10t?checkpoint={tmp_path}/timm.pth.tar").preprocess
    assert (found.size, found.mean, found.std, found.interpolation) == (96, (0.1, 0.2, 0.3), IMAGENET.std, "bilinear")


class Fixed(nn.Module):
    """Two logits of an image of one size."""

    def __init__(self, channels=3, side=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 2, side), nn.Flatten())
        self.side = side

    def forward(self, image):
        assert image.shape[-2:] == (self.side, self.side), "not its own size"
        return self.layers(image)


def loaded(monkeypatch, classifier, **settings):
    from steersman.models.classifiers import load

    monkeypatch.setitem(load.SOURCES, "module", load.Source(lambda spec: classifier))
    return load_classifier("module:own", **settings)


def test_a_network_of_a_fixed_size_keeps_it_where_a_recipe_asks_for_another(monkeypatch):
    def made():
        return Classifier(Fixed(), preprocess=Preprocess(size=8), names="ab")

    image = torch.zeros(1, 3, 20, 20)
    for size in (4, 16):
        with pytest.raises(InputError, match="must be shown squares of 8 pixels, got size"):
            loaded(monkeypatch, made(), size=size)
    with pytest.warns(Notice, match="does not take images of 4 pixels: it is shown squares of 8 pixels"):
        assert loaded(monkeypatch, made(), size=4, adapt=True)(image).shape == (1, 2)
    assert loaded(monkeypatch, made(), size=16, adapt=True).preprocess.size == 8
    with pytest.warns(Notice, match="takes squares of 8 pixels alone"):
        assert loaded(monkeypatch, made(), preprocess="raw", adapt=True)(image).shape == (1, 2)
    plain = Classifier(
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), preprocess=RAW, names="ab"
    )
    assert loaded(monkeypatch, plain, size=16, adapt=True).preprocess.size == 16


def test_a_recipe_does_not_enlarge_what_a_network_was_trained_on(own):
    assert load_classifier(str(own), size=128, adapt=True).preprocess.size == 64
    assert load_classifier(str(own), size=32, adapt=True).preprocess.size == 32
    assert load_classifier(str(own), size=128).preprocess.size == 128
    assert load_classifier(f"{own}?size=48", size=32, adapt=True).preprocess.size == 48


def test_smoothing_of_a_recipe_is_left_out_where_there_is_no_relu(monkeypatch):
    def made():
        return Classifier(Fixed(), preprocess=Preprocess(size=8), names="ab")

    with pytest.raises(InputError, match="must have a ReLU"):
        loaded(monkeypatch, made(), softplus=3.0)
    with pytest.warns(Notice, match="Fixed must have a ReLU .*; it guides without smoothing"):
        assert loaded(monkeypatch, made(), softplus=3.0, adapt=True).smoothed == 0


@pytest.mark.parametrize("recipe", ["default", "elucd-ddpm", "elucd-edm", "elucd-ddpm/raw"])
def test_a_recipe_fits_a_network_without_relu_of_a_fixed_size(recipe, monkeypatch):
    from steersman.recipes import load_recipe

    made = Classifier(Fixed(), preprocess=Preprocess(size=8), names="ab")
    with pytest.warns(Notice, match="it guides without smoothing"):
        classifier = loaded(monkeypatch, made, **load_recipe(recipe).classifier_settings())
    assert classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize("spec", ["imagenet:efficientnet-lite0", "zoo:sportballs-mobilenet"])
def test_a_network_of_colours_sees_a_grey_image_as_three_equal_channels(spec):
    classifier = load_classifier(spec)
    grey = torch.rand(1, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(classifier(grey), classifier(grey.repeat(1, 3, 1, 1)))


def test_a_network_of_one_channel_sees_the_luminance():
    classifier = Classifier(Fixed(channels=1), preprocess=Preprocess(), names="ab")
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    grey = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(classifier(image), classifier.network(grey))
    assert torch.equal(classifier(grey), classifier.network(grey))


def test_a_network_that_makes_grey_of_colours_by_itself_does_so():
    class Mean(Fixed):
        def forward(self, image):
            return super().forward(image.mean(1, keepdim=True))

    classifier = Classifier(Mean(channels=1), preprocess=RAW, names="ab")
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(classifier(image), classifier.network(image))


def test_other_channels_are_refused_in_one_line():
    for channels in (2, 4):
        with pytest.raises(InputError, match="channels") as refused:
            load_classifier("imagenet:efficientnet-lite0?mean=0.5,0.5,0.5&std=0.5")(torch.zeros(1, channels, 32, 32))
        assert "\n" not in str(refused.value)


def test_the_card_of_another_file_is_not_this_ones(own, tmp_path):
    shutil.copy(own / "model.safetensors", tmp_path / "other.safetensors")
    Path(tmp_path / "card.json").write_text(json.dumps({"classes": ["a"], "resolution": 8}))
    classifier = load_classifier(f"torchvision:mobilenet_v3_small?checkpoint={tmp_path}/other.safetensors")
    with pytest.raises(InputError, match="nothing states"):
        classifier(torch.zeros(1, 3, 64, 64))
