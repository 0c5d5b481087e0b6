"""Targets by index or by name, as the guides' classifiers know them."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from steersman.errors import InputError
from steersman.guidance.combine import check_targets, vocabularies
from steersman.guidance.guide import Guide
from steersman.names import each_class

__all__ = ["Target", "resolved"]

Target = int | str | np.integer | np.ndarray | Tensor
"""A class: its index, as a number of Python, NumPy or torch, or its name; an array holds one class an image."""


def resolved(guides: Sequence[Guide], target: Target | Iterable[Target] | None) -> Int[Tensor, " N"]:
    """Returns the indices of a target, or of one an image.

    Raises:
        InputError: None for guides, what is neither an index nor a name, a name or index that a classifier does not
            know, or one that two of them know differently.
    """
    if target is None:
        if guides:
            raise InputError("target must be a class for all images, or one for each, as there are guides; got none")
        return torch.zeros(1, dtype=torch.int64)
    found = [_resolve(guides, each) for each in each_class(target, "target")]
    if not found:
        raise InputError("target must be a class for all images, or one for each, got an empty list")
    for guide in guides:
        check_targets(guide.objective, found)
    return torch.tensor(found)


def _resolve(guides: Sequence[Guide], target: int | str) -> int:
    """Returns a target's index, which must be the same for all guides."""
    found = {each.resolve(target) for guide in guides for each in vocabularies(guide.objective)}
    if len(found) > 1:
        raise InputError(
            f"target must be the same class for all classifiers, got {target!r}, which is class "
            f"{' and '.join(map(str, sorted(found)))} of them; use objectives that are Translated"
        )
    if found:
        return found.pop()
    if isinstance(target, str) or target < 0:
        raise InputError(
            f"target must be an index of at least 0, as no classifier of the guides has names, got {target!r}"
        )
    return target
