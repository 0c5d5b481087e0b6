"""Random changes of training images: what each image becomes, and how often."""

import torch

from steersman.lab.train.loop import flipped, shifted


def generator():
    return torch.Generator().manual_seed(0)


def test_half_of_the_images_are_mirrored():
    images = torch.rand(400, 3, 4, 6)
    mirrored = (flipped(images, generator()) == images.flip(3)).flatten(1).all(1)
    same = (flipped(images, generator()) == images).flatten(1).all(1)
    assert torch.equal(mirrored, ~same)
    # four standard deviations of a binomial count
    assert abs(int(mirrored.sum()) - 200) < 4 * 10


def test_images_are_moved_by_whole_pixels_alike_in_both_directions():
    """Of an image of its own coordinates, the middle tells by how much it was moved."""
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    images = torch.stack([rows, columns]).expand(900, 2, 9, 9)
    moved = shifted(images, 2, generator())
    by = (moved - images)[:, :, 4, 4]
    down, right = by.unbind(1)
    for axis in (down, right):
        counts = torch.bincount((axis + 2).long(), minlength=5)
        assert len(counts) == 5
        # four standard deviations of a binomial count
        assert (counts - 180).abs().max() < 4 * (900 * 0.2 * 0.8) ** 0.5
    assert abs(float(torch.corrcoef(by.T)[0, 1])) < 4 / 30
    # what comes in at the border is the reflection
    assert torch.equal(moved[:, 0, 4:6, 4:6], images[:, 0, 4:6, 4:6] + down[:, None, None])
    assert moved.min() >= 0 and moved.max() <= 8


def test_no_shift_is_the_image():
    images = torch.rand(3, 1, 5, 4)
    assert torch.equal(shifted(images, 0, generator()), images)
