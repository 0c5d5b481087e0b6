"""Image classifiers of transformers, tiny ones of random weights in its own format."""

import json

import numpy as np
import pytest
import torch

from steersman.errors import InputError
from steersman.models.classifiers import load_classifier

transformers = pytest.importorskip("transformers")

NAMES = {0: "ball, sphere", 1: "cat", 2: "dog"}
MEAN, STD = [0.48, 0.45, 0.4], [0.26, 0.25, 0.27]

PROCESSORS = {
    "vit": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD}),
    "deit": (
        "DeiTImageProcessor",
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}, "image_mean": MEAN},
    ),
    "bit": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "image_std": STD},
    ),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 35}, "crop_pct": 0.875}),
    "mobilevit": (
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 2},
    ),
    "plain": (
        "ViTImageProcessor",
        {"size": {"height": 32, "width": 32}, "do_normalize": False, "rescale_factor": 1 / 127.5, "resample": 3},
    ),
}
EDGE = {"vit": 32, "deit": 40, "bit": 36, "convnext": 40, "mobilevit": 40, "plain": 32}


def resnet(**settings):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **{"id2label": NAMES} | settings
    )
    return transformers.ResNetForImageClassification(config).eval()


def vit(**settings):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        **{"id2label": NAMES} | settings,
    )
    return transformers.ViTForImageClassification(config).eval()


@pytest.fixture
def saved(tmp_path):
    def save(model, processor="vit", **settings):
        name, own = PROCESSORS[processor]
        made = getattr(transformers, name)(**own | settings)
        model.save_pretrained(tmp_path)
        made.save_pretrained(tmp_path)
        return tmp_path, made

    return save


@pytest.mark.parametrize("processor", PROCESSORS)
def test_without_a_resize_logits_are_transformers_own(processor, saved, picture, agrees):
    model = resnet() if processor != "vit" else vit()
    folder, made = saved(model, processor)
    photo = picture(EDGE[processor], EDGE[processor])
    pixels = made(images=photo, return_tensors="pt")["pixel_values"]
    classifier = load_classifier(f"hf:{folder}")
    agrees(classifier, photo, pixels, model(pixels).logits.detach())
    assert classifier.resolve("sphere") == 0 and classifier.names == tuple(NAMES.values())


@pytest.mark.parametrize("processor", ["vit", "bit", "convnext", "mobilevit"])
def test_a_resize_differs_by_the_librarys_rounding(processor, saved, picture, agrees):
    folder, made = saved(resnet(), processor)
    photo = picture(64, 64)
    pixels = made(images=photo, return_tensors="pt")["pixel_values"]
    agrees(load_classifier(f"hf:{folder}"), photo, pixels, None, resized=True)


def test_one_channel(saved, picture, agrees):
    model = vit(num_channels=1)
    folder, made = saved(model, image_mean=[0.3], image_std=[0.2])
    photo = picture(32, 32, "L")
    pixels = made(images=np.asarray(photo)[None], return_tensors="pt")["pixel_values"]
    classifier = load_classifier(f"hf:{folder}")
    agrees(classifier, photo, pixels, model(pixels).logits.detach())
    assert classifier(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_one_logit_is_binary(saved):
    folder, _ = saved(resnet(id2label={0: "cat"}))
    classifier = load_classifier(f"hf:{folder}")
    assert classifier.binary and classifier.names == ("not cat", "cat")


def test_labels_of_their_own_are_read_from_the_problem_type(saved):
    model = resnet(problem_type="multi_label_classification")
    folder, _ = saved(model)
    classifier = load_classifier(f"hf:{folder}")
    assert classifier.multilabel and not classifier.binary and classifier.names == tuple(NAMES.values())
    folder, _ = saved(resnet(problem_type="multi_label_classification", id2label={0: "cat"}))
    classifier = load_classifier(f"hf:{folder}")  # the same as a binary one
    assert classifier.binary and classifier.names == ("not cat", "cat")


def test_names_that_are_numbers(saved):
    folder, _ = saved(resnet())
    changed(folder, "config.json", id2label={"0": 7, "1": 8, "2": 9})
    classifier = load_classifier(f"hf:{folder}")
    assert classifier.names == ("7", "8", "9") and classifier.resolve("8") == 1


def test_softplus_where_there_is_a_relu_and_an_error_where_not(saved):
    folder, _ = saved(resnet())
    assert load_classifier(f"hf:{folder}", softplus=3.0).smoothed > 0
    folder, _ = saved(vit())
    with pytest.raises(
        InputError, match="ViTForImageClassification must have a ReLU for softplus 3 to replace, has only GELU"
    ):
        load_classifier(f"hf:{folder}", softplus=3.0)


def test_another_size_is_seen_with_interpolated_places(saved):
    folder, _ = saved(vit())
    assert load_classifier(f"hf:{folder}", size=48)(torch.zeros(1, 3, 64, 64)).isfinite().all()


def changed(folder, file, **settings):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | settings))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickled", "cannot be read"),
        ("headless", "lacks the weights classifier"),
        ("regression", "was trained for regression"),
        ("nearest", "resizes neither bicubically nor bilinearly"),
        ("levit", "prepares images otherwise than .* .LevitImageProcessor\\w* differs by"),
        ("no folder", "must be hf:FOLDER of a folder that exists, or hf:ID of the hub, got"),
    ],
)
def test_what_can_go_wrong_is_one_line(kind, message, saved, capfd):
    folder, _ = saved(resnet())
    if kind == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif kind == "headless":
        resnet().resnet.save_pretrained(folder)
    elif kind == "regression":
        changed(folder, "config.json", problem_type="regression")
    elif kind == "nearest":
        changed(folder, "preprocessor_config.json", resample=0)
    elif kind == "levit":
        made = transformers.LevitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        made.save_pretrained(folder)
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as refused:
        load_classifier(f"hf:{folder}" + ("/no/such" if kind == "no folder" else ""))
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


def test_no_network_says_what_to_fetch(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    with pytest.raises(InputError, match="hf download nobody/resnet --local-dir FOLDER") as refused:
        load_classifier("hf:nobody/resnet")
    assert "\n" not in str(refused.value)
