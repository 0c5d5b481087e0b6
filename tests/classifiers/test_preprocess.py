import math

import pytest
import torch

from steersman.errors import InputError
from steersman.models.classifiers import RAW, Preprocess


def test_raw_is_the_identity_to_the_bit(generator):
    image = torch.rand(2, 3, 8, 8, generator=generator) * 4 - 2
    assert torch.equal(RAW(image), image)


def test_normalises_as_the_definition(generator):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    expected = ((image + 1) / 2 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
    # float32 constants in the expectation: 2^-24 relative, on values of at most 2.7
    torch.testing.assert_close(Preprocess(mean=mean, std=std)(image), expected, rtol=1e-6, atol=1e-6)


def test_a_constant_image_stays_constant_when_resized():
    image = torch.full((1, 3, 64, 48), 0.25)
    resized = Preprocess(size=24)(image)
    assert resized.shape == (1, 3, 24, 24)
    # the resampling weights sum to 1 up to float32's rounding of a few tens of terms
    torch.testing.assert_close(resized, torch.full_like(resized, 0.25), rtol=1e-5, atol=0)


def test_crop_takes_the_centre_square():
    image = torch.zeros(1, 1, 8, 12)
    image[..., 2:6, 4:8] = 1
    assert torch.equal(Preprocess(crop=0.5)(image), torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_gradient_is_the_adjoint_of_the_map(interpolation, generator):
    preprocess = Preprocess(size=5, std=(0.25,), interpolation=interpolation)
    image = torch.rand(1, 1, 9, 9, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(preprocess, image.requires_grad_())


def test_saturated_pixels_keep_their_gradient():
    image = torch.ones(1, 3, 16, 16, requires_grad=True)
    Preprocess(size=32)(image).sum().backward()
    assert (image.grad > 0).all()


def test_resized_changes_the_size_only():
    own = Preprocess(mean=(0.1,), std=(0.2,), size=224, crop=0.875)
    assert own.resized(64) == Preprocess(mean=(0.1,), std=(0.2,), size=64, crop=0.875)
    assert own.resized(None).size is None


@pytest.mark.parametrize(
    "settings",
    [
        {"std": (0.0,)},
        {"std": (math.inf,)},
        {"mean": (0.5, 0.5)},
        {"mean": (), "std": ()},
        {"mean": (math.nan,)},
        {"size": 0},
        {"crop": 1.5},
        {"crop": 0.0},
    ],
)
def test_refuses_what_it_cannot_use(settings):
    with pytest.raises(InputError):
        Preprocess(**settings)


def test_refuses_other_channels():
    for settings in ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, {"channels": "bgr"}, {"channels": "grey"}):
        for channels in (2, 4):
            with pytest.raises(InputError, match=f"images must have 1 or 3 channels, got {channels}"):
                Preprocess(**settings)(torch.zeros(1, channels, 4, 4))
    with pytest.raises(InputError, match="takes images of 4 channels, got 3"):
        Preprocess(mean=(0.5,) * 4, std=(0.5,) * 4)(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("settings", [{"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}, {"channels": "bgr"}])
def test_a_grey_image_is_repeated_for_a_network_of_three_channels(settings, generator):
    grey = (torch.rand(2, 1, 8, 8, generator=generator) * 2 - 1).requires_grad_()
    preprocess = Preprocess(size=6, **settings)
    shown = preprocess(grey)
    torch.testing.assert_close(shown, preprocess(grey.repeat(1, 3, 1, 1)))
    (g,) = torch.autograd.grad(shown.sum(), grey)
    assert g.shape == grey.shape and (g > 0).all()
