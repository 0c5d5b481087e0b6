"""Blocks: what a network sees, and that an image's output is the same to the bit whatever its batch."""

import pytest
import torch
from torch import nn

from steersman.batching import _without_filling, in_blocks


def test_a_network_sees_blocks_of_one_size_the_last_one_filled_up():
    seen = []

    def network(image, time):
        seen.append((image[:, 0].tolist(), time.tolist()))
        return image + time[:, None]

    image, time = torch.arange(5.0)[:, None], torch.arange(5.0) * 10
    assert in_blocks(network, 3, image, time).tolist() == [[0.0], [11.0], [22.0], [33.0], [44.0]]
    assert seen == [([0, 1, 2], [0, 10, 20]), ([3, 4, 4], [30, 40, 40])]


def test_without_a_size_the_network_sees_the_batch():
    assert in_blocks(lambda image: image * len(image), None, torch.ones(5, 1)).tolist() == [[5.0]] * 5


@pytest.mark.parametrize("count", [1, 5, 16])
def test_output_and_gradient_are_the_same_to_the_bit_whatever_the_batch(count):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Flatten(), nn.Linear(16 * 64, 5)
    ).requires_grad_(False)

    def answers(image):
        image = image.requires_grad_()
        output = in_blocks(network, 4, image)
        return output, *torch.autograd.grad(output.square().sum(), image)

    images = torch.randn(16, 3, 8, 8)
    for part, whole in zip(answers(images[:count].clone()), answers(images.clone()), strict=True):
        assert (part == whole[:count]).all()


def test_a_network_can_tell_how_many_rows_only_fill_up_a_block():
    seen = []

    def network(image):
        doubled = torch.cat([image, image])  # as for classifier-free guidance
        seen.append((len(doubled), _without_filling(len(doubled))))
        return image

    in_blocks(network, 3, torch.zeros(5, 1))
    in_blocks(network, None, torch.zeros(5, 1))
    assert seen == [(6, 6), (6, 4), (10, 10)]
    with pytest.raises(ZeroDivisionError):
        in_blocks(lambda image: 1 / 0, 3, torch.zeros(1, 1))
    assert _without_filling(7) == 7
