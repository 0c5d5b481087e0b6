"""A set of images under noise."""

from dataclasses import replace

import pytest
import torch

from analysis.tiny import Tiny, network
from steersman.denoise import Prediction
from steersman.errors import InputError
from steersman.guidance import Denoised, Identity, Noisy, TargetLogit
from steersman.lab.analysis.forward import Forward, accuracies, indices_among, sensitivities
from steersman.lab.data.images import read_images
from steersman.models.classifiers.preprocess import RAW
from steersman.models.denoisers import load_denoiser
from steersman.schedule import noised

TINY = Tiny()
SPEC = "sportballs?num=6&seed=3&resolution=8"


def test_an_image_keeps_its_noise_and_target_in_any_batch():
    images = read_images(SPEC)
    forward = Forward(TINY, {"a": network()}, images, seed=5)
    level = TINY.schedule.at_time(7)
    whole, some = forward.batch(range(6)), forward.batch([4, 1])
    fewer = Forward(TINY, {"a": network()}, images, seed=5, num=2).batch([0, 1])
    assert len(forward) == 6 and sorted(forward.chosen) == list(range(6)) != forward.chosen
    for batch, rows in ((some, [4, 1]), (fewer, [0, 1])):
        assert torch.equal(batch.images, whole.images[rows])
        assert torch.equal(batch.targets["a"], whole.targets["a"][rows])
        assert torch.equal(batch.eps(level), whole.eps(level)[rows])
    assert not torch.equal(Forward(TINY, {}, images, seed=6).batch([0]).eps(level), whole.eps(level)[:1])
    place = forward.chosen[2]
    assert torch.equal(whole.images[2], next(iter(images.batches()))[place])
    assert TINY.classes[whole.targets["a"][2]] == images.labels[place]


def test_one_target_for_all_and_labels_for_the_denoiser():
    batch = Forward(TINY, {"a": network()}, read_images(SPEC), target="volleyball", labelled=True).batch(range(6))
    assert batch.targets["a"].tolist() == [2] * 6
    level = TINY.schedule.at_time(3)
    tint = batch.denoiser(batch.images, level).x0_hat - TINY(batch.images, level).x0_hat
    own = Forward(TINY, {"a": network()}, read_images(SPEC)).batch(range(6)).targets["a"]
    torch.testing.assert_close(tint, 0.1 * own[:, None, None, None].expand_as(tint).float(), atol=1e-6, rtol=0)


def test_a_class_is_found_by_the_first_of_its_synonyms():
    classifier = network()
    assert indices_among(classifier, ["soccer ball, football", "baseball"]) == [(3,), (0,)]
    with pytest.raises(InputError, match="cube"):
        indices_among(classifier, ["cube"])


class Halved(Tiny):
    """One of latents: every second pixel, times 5; and a text."""

    latent, shape, prompted = True, (3, 4, 4), True

    def __call__(self, x_t, level, *, prompt):
        return Prediction(x_t + len(prompt))

    def encode(self, images):
        return 5 * images[..., ::2, ::2]

    def decode(self, x0):
        return (x0 / 5).repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_noise_comes_to_latents_and_classifiers_see_images():
    images = read_images(SPEC)
    batch = Forward(Halved(), {"a": network()}, images).batch([0, 3])
    whole = Forward(TINY, {"a": network()}, images).batch([0, 3])
    level = TINY.schedule.at_time(7)
    torch.testing.assert_close(batch.images, 5 * whole.images[..., ::2, ::2])
    assert batch.eps(level).shape == (2, 3, 4, 4)
    assert torch.equal(batch.denoiser(batch.images, level).x0_hat, batch.images)  # an empty text
    assert batch.denoiser.decode(batch.images).shape == (2, 3, 8, 8)


def test_a_denoiser_of_latents_is_measured_on_images(dit_folder):
    """Noise comes to the latents of the images; each classifier sees what the VAE decodes."""
    denoiser = load_denoiser(str(dit_folder))
    images, classifier = read_images("sportballs?num=3&seed=3&resolution=16"), network()
    classifier.preprocess = replace(RAW, size=8)
    batch = Forward(denoiser, {"a": classifier}, images).batch(range(3))
    assert batch.images.shape == (3, 4, 8, 8)
    levels = [denoiser.schedule.at_time(900), denoiser.schedule.at_time(10)]
    inputs, targets = {"noisy": Noisy(), "denoised": Denoised(clip=False)}, batch.targets
    found = accuracies(batch, {"a": classifier}, levels, inputs=inputs)
    x_t = noised(batch.images, batch.eps(levels[1]), levels[1])
    right = classifier(denoiser.decode(x_t)).argmax(1) == targets["a"]
    assert torch.equal(found["a", "noisy"][:, 1], right) and found["a", "denoised"].shape == (3, 2)
    said = sensitivities(
        batch,
        {"a": classifier},
        [(levels[0], denoiser.schedule.at_time(899))],
        objective=lambda each: TargetLogit(classifier=each),
        inputs=inputs,
        stabilizers={"none": Identity()},
    )
    assert all(values.isfinite().all() and (values > 0).all() for values in said.values())


def test_refusals():
    networks = {"a": network()}
    with pytest.raises(InputError, match=r"the denoiser's shape, 3x8x8, got 16x16 pixels; .*sportballs.resolution=8"):
        Forward(TINY, networks, read_images("sportballs?num=2&resolution=16"))
    with pytest.raises(InputError, match="num must be 1 to 6, .*, got 7"):
        Forward(TINY, networks, read_images(SPEC), num=7)
    with pytest.raises(InputError, match="cube"):
        Forward(TINY, networks, read_images(SPEC), target="cube")
    latent = Tiny()
    latent.latent = True
    with pytest.raises(InputError, match="must be one of pixels, or of latents with an encoder"):
        Forward(latent, networks, read_images(SPEC))
    with pytest.raises(InputError, match=r"the denoiser's shape, 3x8x8, got 16x16 pixels; .*sportballs.resolution=8"):
        Forward(Halved(), networks, read_images("sportballs?num=2&resolution=16"))


def test_grey_images_go_to_a_denoiser_of_one_channel_as_they_are(mnist):
    tiny = Tiny()
    tiny.shape = (1, 28, 28)
    images = read_images(mnist)
    batch, whole = Forward(tiny, {}, images).batch([0, 5]), next(iter(images.batches()))
    chosen = Forward(tiny, {}, images).chosen
    # the mean of three equal numbers, in float32
    torch.testing.assert_close(batch.images, whole[[chosen[0], chosen[5]], :1], rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="got 28x28 pixels"):
        Forward(TINY, {}, images)
