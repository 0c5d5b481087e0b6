"""Random changes of whole batches of training images, each image's own, drawn from the batch's generator."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["flipped", "shifted"]


def flipped(images: Float[Tensor, "B C H W"], generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Returns the images, of which each is mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)


def shifted(images: Float[Tensor, "B C H W"], most: int, generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Returns the images moved by up to so many pixels along each axis; what comes in is the image's reflection."""
    count, _, height, width = images.shape
    down, right = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
    rows, columns = ((start + torch.arange(size)).to(images.device) for start, size in ((down, height), (right, width)))
    padded = pad(images, (most,) * 4, mode="reflect")
    image = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
