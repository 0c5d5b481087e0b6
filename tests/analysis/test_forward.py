"""A set of images under noise."""

import pytest
import torch

from analysis.tiny import Tiny, network
from steersman.analysis.forward import Forward, numbers
from steersman.errors import InputError
from steersman.metrics.images import read_images

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
    assert numbers(classifier, ["soccer ball, football", "baseball"]) == [3, 0]
    with pytest.raises(InputError, match="cube"):
        numbers(classifier, ["cube"])


def test_refusals():
    networks = {"a": network()}
    with pytest.raises(
        InputError, match=r"16x16 pixels given, but the denoiser's are 3x8x8; .*sportballs.resolution=8"
    ):
        Forward(TINY, networks, read_images("sportballs?num=2&resolution=16"))
    with pytest.raises(InputError, match="num: 7 given; allowed: 1 to 6"):
        Forward(TINY, networks, read_images(SPEC), num=7)
    with pytest.raises(InputError, match="cube"):
        Forward(TINY, networks, read_images(SPEC), target="cube")
    latent = Tiny()
    latent.latent = True
    with pytest.raises(InputError, match="one of latents"):
        Forward(latent, networks, read_images(SPEC))
