"""Targets: from what a user gives to a batch with a row for each image.

What a target means belongs to its objective. For a classifier it is a class y, or the union of a set S of classes,

    log p(S|x) = log sum_{y in S} p(y|x)

and the batch is ``(B,)`` indices of classes, or ``(B, W)`` indices of sets, each filled up with -1. An objective of
anything else, such as a reference image, a mask or a vector of attributes, has a method ``encode_target``, which turns
a target into a tensor, or a tuple or dictionary of tensors; the batch is the stack of these.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import default_collate

from steersman.batching import expand, row_count
from steersman.errors import InputError, one_line
from steersman.guidance.step import Classes, Targets
from steersman.names import each_class

if TYPE_CHECKING:
    from steersman.guidance.guide import Guide

__all__ = ["Encoded", "Target", "as_sets", "check_targets", "class_rows", "encode", "for_images", "of_each"]
__all__ += ["resolve_targets"]

Target = Any
"""A class, by its index as a number of Python, NumPy or torch, or by name; a set of classes; or what the objective's
``encode_target`` takes. An array of integers holds one class an image."""

FILL = -1  # of a set that has fewer classes than another in the batch


@dataclass(frozen=True)
class Encoded:
    """Targets that are a batch already, one row for all images or one for each."""

    rows: Targets


def class_rows(targets: Sequence[int | Sequence[int]]) -> Classes:
    """Returns a batch of classes, or of sets of them if any target is one."""
    sets = [(target,) if isinstance(target, int) else tuple(target) for target in targets]
    width = max(map(len, sets))
    if width == 1:
        return torch.tensor([indices[0] for indices in sets])
    # A power of two, as sums go by halves: so the rounding of a row does not depend on how wide the others are.
    width = 1 << (width - 1).bit_length()
    return torch.tensor([[*indices, *[FILL] * (width - len(indices))] for indices in sets])


def as_sets(target: Classes) -> Int[Tensor, "B S"]:
    """Returns targets that are classes as sets of one."""
    return target[:, None] if target.ndim == 1 else target


def of_each(values: Float[Tensor, "B K"], target: Classes, missing: float = -math.inf) -> Float[Tensor, "B S"]:
    """Returns each image's values of its target's classes, and ``missing`` where a set is filled up."""
    y = as_sets(target)
    return torch.where(y < 0, missing, values.gather(1, y.clamp(min=0)))


def resolve_targets(guides: "Sequence[Guide]", target: Target | Iterable[Target] | Encoded | None) -> Targets:
    """Returns the batch of a target, or of one an image, as the guides' objectives understand them."""
    if isinstance(target, Encoded):
        return target.rows
    return encode([guide.objective for guide in guides], _each_target(guides, target))


def for_images(targets: Targets, count: int, device: torch.device | str) -> Targets:
    """Returns a batch of one target, or of one an image, with a row for each image, on a device."""
    if (given := row_count(targets)) not in (1, count):
        raise InputError(f"target must be one, or one for each of {count} images, got {given}")
    return expand(targets, count, device)


def _each_target(guides: "Sequence[Guide]", target: Target | Iterable[Target] | None) -> list[Target]:
    """Returns what was given as a list: of one target, or of one an image.

    A list or tuple holds one an image, and so does an array or any other iterable of classes, but for a Python set.
    """
    if target is None:
        if guides:
            raise InputError("target must be a class for all images, or one for each, as there are guides; got none")
        return [0]
    several: type | tuple[type, ...] = (list, tuple)
    if not _encoders([guide.objective for guide in guides]):
        target = target.tolist() if hasattr(target, "tolist") else target
        several = () if isinstance(target, str | bytes | set | frozenset) else Iterable
    targets = list(target) if isinstance(target, several) else [target]
    if not targets:
        raise InputError("target must be a class for all images, or one for each, got an empty list")
    return targets


def encode(objectives: Sequence[object], targets: Sequence[Target]) -> Targets:
    """Returns the batch of some targets, which all objectives share."""
    encoders = _encoders(objectives)
    vocabularies = [part for objective in objectives for part in _having("resolve", objective)]
    if len(encoders) + bool(vocabularies) > 1:
        raise InputError(
            "objectives must understand the same targets, got some of classes and some of "
            f"{', '.join(kind.__name__ for kind in encoders)}; give one its own by Toward"
        )
    for encoder in encoders.values():
        rows = [encoder.encode_target(target) for target in targets]
        try:
            return default_collate(rows)
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"target must become tensors of the same shape for each image ({one_line(error)})"
            ) from error
    sets = [_indices(vocabularies, target) for target in targets]
    for objective in objectives:
        check_targets(objective, sets)
    return class_rows(sets)


def check_targets(part: object, targets: Sequence[Target]) -> None:
    """Refuses classes that a part of an objective does not have, before any of them is on an accelerator."""
    if callable(resolve := getattr(part, "resolve", None)):
        for target in targets:
            for index in each_class(target, "target"):
                resolve(index)
    elif not hasattr(part, "encode_target"):
        if (own_targets := getattr(part, "own_targets", None)) is not None:
            targets = own_targets(targets)
        for inner in _parts(part):
            check_targets(inner, targets)


def _indices(vocabularies: Sequence[Any], target: Target) -> tuple[int, ...]:
    """Returns the classes that a target means, which is the same set in each vocabulary."""
    meanings = {_members(vocabulary, target) for vocabulary in vocabularies}
    if len(meanings) > 1:
        listed = " and ".join(", ".join(map(str, meaning)) for meaning in sorted(meanings))
        raise InputError(
            f"target must be the same class for all classifiers, got {target!r}, which is class {listed} of them; use "
            "objectives that are Translated"
        )
    if meanings:
        return meanings.pop()
    indices = each_class(target, "target")
    for index in indices:
        if isinstance(index, str) or index < 0:
            raise InputError(
                f"target must be an index of at least 0, as no classifier of the guides has names, got {index!r}"
            )
    return tuple(sorted(set(indices)))


def _members(vocabulary: Any, target: Target) -> tuple[int, ...]:  # noqa: ANN401
    if (members := getattr(vocabulary, "members", None)) is not None:
        return members(target)
    return tuple(sorted({vocabulary.resolve(part) for part in each_class(target, "target")}))


def _encoders(objectives: Sequence[object]) -> dict[type, Any]:
    """Returns an objective of each kind that encodes its targets by itself."""
    return {type(part): part for objective in objectives for part in _having("encode_target", objective)}


def _having(method: str, part: object) -> Iterator[Any]:
    """Yields the parts of an objective that have a method and get the targets as they are given."""
    if callable(getattr(part, method, None)):
        yield part
    elif not hasattr(part, "own_targets"):
        for inner in _parts(part):
            yield from _having(method, inner)


def _parts(part: object) -> Iterator[object]:
    """Yields the parts of an objective: of a dataclass its fields, of a list its items."""
    if isinstance(part, tuple | list):
        yield from part
    elif is_dataclass(part) and not isinstance(part, type):
        yield from (getattr(part, each.name) for each in fields(part))
