"""Targets by number or by name, as the guides' classifiers know them."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from steersman.errors import InputError
from steersman.guidance.combine import Toward, Translated, check_targets
from steersman.guidance.guide import Guide

__all__ = ["Target", "resolved"]

Target = int | str


def resolved(guides: Sequence[Guide], target: Target | Sequence[Target] | None) -> Int[Tensor, " N"]:
    """Returns the indices of a target, or of one an image.

    Raises:
        InputError: None for guides, a name or number that a classifier does not know, or that two know differently.
    """
    if target is None:
        if guides:
            raise InputError("target: none given, but there are guides; allowed: one for all images, or one each")
        return torch.zeros(1, dtype=torch.int64)
    single = isinstance(target, int | str)
    found = [_resolve(guides, each) for each in ([target] if single else target)]
    for guide in guides:
        check_targets(guide.objective, found)
    return torch.tensor(found)


def _vocabularies(part: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yields the classifiers in an objective that resolve a target's name, but those with targets of their own."""
    if callable(getattr(part, "resolve", None)):
        yield part
    elif isinstance(part, list | tuple):
        for each in part:
            yield from _vocabularies(each)
    elif is_dataclass(part) and not isinstance(part, Toward | Translated):
        for each in fields(part):
            yield from _vocabularies(getattr(part, each.name))


def _resolve(guides: Sequence[Guide], target: Target) -> int:
    """Returns a target's index, which must be the same for all guides."""
    found = {each.resolve(target) for guide in guides for each in _vocabularies(guide.objective)}
    if len(found) > 1:
        raise InputError(
            f"target: {target!r} is class {' and '.join(map(str, sorted(found)))} of the classifiers given; "
            "allowed: the same for all, by objectives that are Translated"
        )
    if found:
        return found.pop()
    if isinstance(target, str) or target < 0:
        raise InputError(f"target: {target!r} given, and no classifier of the guides has names; allowed: 0 and more")
    return int(target)
