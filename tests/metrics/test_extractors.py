"""Features as others compute them, on random weights in the published formats; what cannot be loaded, in one line."""

import socket
import sys

import pytest
import torch

from steersman.errors import InputError
from steersman.lab.metrics.features import load_extractor
from steersman.models.classifiers import Classifier, load_classifier
from steersman.schedule import CLEAN

FEATURES = """
import torch
def network():
    return torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
def maps():
    return torch.nn.AvgPool2d(4)
def function():
    return len
def classifier():
    made = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(12, 3))
    made.names = ["a", "b", "c"]
    return made
"""


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, 3, 8, 8), generator=generator) / 127.5 - 1


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_features.py").write_text(FEATURES)
    monkeypatch.chdir(tmp_path)
    yield "module:own_features"
    sys.modules.pop("own_features", None)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Random weights of torch-fidelity's Inception, as its file has them."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: {})
        network = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.long
def test_inception_is_torch_fidelitys(inception, images):
    network, path = inception
    extractor = load_extractor(f"inception:{path}")
    (expected,) = network(((images + 1) * 127.5).round().to(torch.uint8))
    torch.testing.assert_close(extractor.embed(images), expected)
    assert expected.std(0).max() > 0
    # not the published weights, so not by their name
    assert extractor.name.startswith("inception:")


def test_inceptions_weights_are_said_where_they_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: (_ for _ in ()).throw(ConnectionError("no network")))
    url = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
    with pytest.raises(InputError, match="of 'inception' cannot be fetched") as error:
        load_extractor("inception")
    place = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert str(error.value).endswith(f"; save {url} as {place}")


def test_inceptions_file_is_not_run_and_must_fit(tmp_path):
    import pickle

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(InputError, match="holds no tensors by their names"):
        load_extractor(f"inception:{tmp_path / 'evil.pth'}")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="do not fit the network") as error:
        load_extractor(f"inception:{tmp_path / 'other.pth'}")
    assert "\n" not in str(error.value)


def test_a_classifiers_last_features():
    extractor, judge = load_extractor(), load_classifier("zoo:sportballs-judge")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert extractor.name == "zoo:sportballs-judge"
    torch.testing.assert_close(extractor.embed(images), judge.features(images, CLEAN))


def test_clips_embedding_of_the_image(clip, images):
    import transformers

    model = transformers.CLIPModel.from_pretrained(clip)
    images = torch.nn.functional.interpolate(images, 16)
    pixels = load_classifier(f"clip:{clip}").preprocess(images)
    expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(load_extractor(f"clip:{clip}").embed(images), expected.detach())


def test_dinov2s_class_token(images, tmp_path):
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(
        tmp_path
    )
    images = torch.nn.functional.interpolate(images, 32)  # as large as the processor resizes to
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    pixels = ((images[:, :, 2:30, 2:30] + 1) / 2 - mean) / std
    expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    found = load_extractor(f"dinov2:{tmp_path}").embed(images)
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


def test_ones_own_network_and_classifier(module, images):
    assert torch.equal(
        load_extractor(f"{module}:network").embed(images), torch.nn.functional.avg_pool2d(images, 4).flatten(1)
    )
    assert load_extractor(f"{module}:classifier").embed(images).shape == (3, 12)
    assert isinstance(load_classifier(f"{module}:classifier"), Classifier)


def test_ones_own_that_are_no_features(module, images):
    with pytest.raises(InputError, match=r"must map 3 images to the shape \(3, D\), got \(3, 3, 2, 2\)"):
        load_extractor(f"{module}:maps").embed(images)
    with pytest.raises(
        InputError, match="must return a classifier or a torch.nn.Module, got builtin_function_or_method"
    ):
        load_extractor(f"{module}:function")
    with pytest.raises(InputError, match="unknown features 'inceptoin'; did you mean 'inception'"):
        load_extractor("inceptoin")
