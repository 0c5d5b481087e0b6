"""All figures of a set of samples, each with its interval.

    accuracy/guide, accuracy/judge   share of samples whose likeliest class is their target    (`steersman.verdicts`)
    fid, kid                         distance to the reference                                  (`.frechet`, `.kernel`)
    cfid                             of each target's samples to the reference's images of it, the mean over targets
    precision, recall, density, coverage     what samples and reference share                   (`.neighbours`)
    clip_score                       mean of ``max(100 cos(image, text), 0)``, for targets that are texts

A target is that which is given, else each sample's own label. The intervals are explained in `.resample`.

Source of the last: Hessel et al. 2021, with the factor of torchmetrics, which cuts off the mean at 0 instead of each.
"""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.classifiers import Classifier
from steersman.errors import InputError, unknown
from steersman.metrics.extractors import Extractor
from steersman.metrics.features import device_of
from steersman.metrics.frechet import frechet, moments
from steersman.metrics.images import ImageSet
from steersman.metrics.kernel import across, within
from steersman.metrics.neighbours import COVERED, INSIDE, precision_recall, recall, within_reach
from steersman.metrics.resample import RESAMPLES, Figure, mean_of, resampled, share
from steersman.metrics.statistics import Statistics, measured
from steersman.verdicts import Verdict, judged

__all__ = ["DISTANCES", "FIGURES", "Figure", "evaluate"]

DISTANCES = {
    "fid": (2, 2),
    "cfid": (2, 2),
    "kid": (2, 2),
    "precision": (INSIDE + 1, INSIDE + 1),
    "recall": (INSIDE + 1, INSIDE + 1),
    "density": (1, COVERED + 1),
    "coverage": (1, COVERED + 1),
}
"""The figures that need a reference, with how many samples and how many images of the reference each needs."""

FIGURES = ("accuracy/guide", "accuracy/judge", *DISTANCES, "clip_score")

POSITIVE, SHARE = (0.0, math.inf), (0.0, 1.0)

Held = TypeVar("Held", ImageSet, Statistics)


@torch.no_grad()
def evaluate(
    samples: ImageSet,
    reference: ImageSet | Statistics | None,
    *,
    features: Extractor,
    target: str | None = None,
    guide: Classifier | None = None,
    judge: Classifier | None = None,
    figures: Collection[str] = FIGURES,
    resamples: int = RESAMPLES,
    seed: int = 0,
    batch_size: int = 64,
    on_images: Callable[[int], object] = lambda count: None,
) -> dict[str, Figure]:
    """Returns the figures by their names, with no value where undefined.

    Args:
        samples: Where they have labels, those of the target are evaluated alone.
        reference: What they are compared with; None for the figures without one.
        features: What maps both to features.
        target: What the samples are to show, by the guide's name or index, or the reference's name.
        guide: The network that guided.
        judge: The network that measures.
        figures: Which of `FIGURES`.
        resamples: Random halves that each interval is from; fewer than 2 for none.
        seed: Of those.
        batch_size: How many images go through a network at a time.
        on_images: Is told how many images a network has seen, after each batch.

    Raises:
        InputError: Unknown figures; too few images for one of them; features or sizes that differ; a target that
            samples or reference lack.
    """
    for each in figures:
        if each not in FIGURES:
            raise unknown("figure", each, FIGURES)
    samples, targets = _targeted(samples, target, guide)
    found = dict.fromkeys((each for each in FIGURES if each in figures), Figure())
    draw = partial(resampled, resamples=resamples, seed=seed)
    said = {
        name: _verdicts(network, samples, targets, guide, batch_size, on_images)
        for name, network in (("guide", guide), ("judge", judge))
    }
    for name, verdicts in said.items():
        right = [each.accuracy for each in verdicts if each.accuracy is not None]
        if right and f"accuracy/{name}" in found:
            found[f"accuracy/{name}"] = share(round(sum(right)), len(right))
    # The judge's, where both say something: a gradient can fool the network that it comes from.
    alike = [[each.similarity for each in said[name] if each.similarity is not None] for name in ("judge", "guide")]
    scores = sorted(100 * max(each, 0.0) for each in alike[0] or alike[1])
    if scores and "clip_score" in found:
        values = torch.tensor(scores, dtype=torch.float64)
        found["clip_score"] = draw(lambda i: values[i].mean().item(), len(values))
    wanted = [each for each in DISTANCES if each in figures]
    if reference is not None and wanted:
        _check(samples, reference, wanted)
        held, known = (
            each
            if isinstance(each, Statistics)
            else measured(each, features, batch_size=batch_size, on_images=on_images)
            for each in (samples, reference)
        )
        if known.extractor != held.extractor or known.width != held.width:
            raise InputError(
                f"features: {held.extractor!r} ({held.width}) given, but {known.spec!r} has those of "
                f"{known.extractor!r} ({known.width}); allowed: the same"
            )
        if "cfid" in wanted and target is None and not _knows_all(known, targets or (), guide):
            wanted.remove("cfid")
        found |= _compared(held, known, targets, guide, wanted, draw)
    return found


def _targeted(
    samples: ImageSet, target: str | None, guide: Classifier | None
) -> tuple[ImageSet, tuple[str, ...] | None]:
    """Returns the samples to evaluate, and the target of each, None where there are none."""
    if target is None:
        return samples, samples.labels
    if len(samples.classes) > 1:
        samples = _of(samples, target, guide)
    return samples, (target,) * len(samples)


def _names(target: str, guide: Classifier | None) -> tuple[str, ...]:
    """Returns what else a target may be called: the guide's name and index of it."""
    index = None if guide is None else guide.find(target)
    return (target,) if index is None or guide is None else (target, guide.title(index), str(index))


def _of(held: Held, target: str, guide: Classifier | None) -> Held:
    """Returns the images of a target, by any of its names."""
    labels = [label.casefold() for label in held.labels or ()]
    named = next((name for name in _names(target, guide) if name.casefold() in labels), target)
    return held.of(named)


def _knows_all(known: Statistics, targets: Sequence[str], guide: Classifier | None) -> bool:
    """Returns whether a set has labels, and images of each target."""
    labels = {label.casefold() for label in known.labels or ()}
    return all(labels & {name.casefold() for name in _names(target, guide)} for target in dict.fromkeys(targets))


def _verdicts(
    network: Classifier | None,
    samples: ImageSet,
    targets: Sequence[str] | None,
    guide: Classifier | None,
    batch_size: int,
    on_images: Callable[[int], object],
) -> list[Verdict]:
    """Returns what a network says of each sample, nothing where it does not know a target."""
    if network is None or targets is None:
        return []
    indices = {}
    for target in dict.fromkeys(targets):
        # A number is the guide's index, so that another network is told the name.
        names = _names(target, guide)
        indices[target] = network.find(names[0] if network is guide or len(names) == 1 else names[1])
    if None in indices.values():
        return []
    device = device_of(network)
    said: list[Verdict] = []
    for images in samples.batches(batch_size):
        chosen = [indices[target] for target in targets[len(said) : len(said) + len(images)]]
        said += judged(network, images.to(device), chosen)
        on_images(len(images))
    return said


def _check(samples: ImageSet, reference: ImageSet | Statistics, wanted: Sequence[str]) -> None:
    """Refuses what cannot be compared, before any network is asked."""
    count = None if isinstance(reference, Statistics) and reference.features is None else _count(reference)
    for name in wanted:
        least = DISTANCES[name]
        _enough(name, len(samples), least[0], "samples")
        if count is not None:
            _enough(name, count, least[1], "images of the reference")
    if reference.side is not None and reference.side != samples.side:
        (height, width), (other_height, other_width) = samples.side, reference.side
        raise InputError(
            f"reference: images of {other_height} by {other_width} pixels given, samples are {height} by {width}; "
            "allowed: one size, or FOLDER?resolution=64"
        )


def _count(held: ImageSet | Statistics) -> int:
    return len(held) if isinstance(held, ImageSet) else len(held.features if held.features is not None else ())


def _enough(figure: str, count: int, least: int, what: str) -> None:
    if count < least:
        raise InputError(f"{figure}: {count} {what} given; allowed: {least} and more, or other figures")


def _compared(
    held: Statistics,
    known: Statistics,
    targets: Sequence[str] | None,
    guide: Classifier | None,
    wanted: Sequence[str],
    draw: Callable[..., Figure],
) -> dict[str, Figure]:
    """Returns the figures of two sets of features, those that are defined."""
    assert held.features is not None
    x: Float[Tensor, "A D"] = held.features.double()
    found: dict[str, Figure] = {}
    if "fid" in wanted:
        found["fid"] = draw(_distance(x, known), len(x), least=2, bounds=POSITIVE)
    if known.features is None:
        return found
    y: Float[Tensor, "B D"] = known.features.double()
    if "cfid" in wanted and targets is not None and known.labels is not None:
        found["cfid"] = _conditional(held, known, dict.fromkeys(targets), guide, draw)
    if "kid" in wanted:
        reference, shared = within(y), across(x, y)
        found["kid"] = draw(lambda i: within(x[i]) + reference - 2 * shared[i].mean().item(), len(x), least=2)
    if "precision" in wanted:
        found["precision"] = share(round(precision_recall(x, y).first * len(x)), len(x))
    if "recall" in wanted:
        found["recall"] = draw(lambda i: recall(x[i], y), len(x), least=INSIDE + 1, bounds=SHARE)
    if "density" in wanted or "coverage" in wanted:
        near = within_reach(x, y)
        dense = near.double().sum(1) / COVERED
        if "density" in wanted:
            found["density"] = draw(lambda i: dense[i].mean().item(), len(x), bounds=POSITIVE)
        if "coverage" in wanted:
            found["coverage"] = draw(lambda i: near[i].any(0).double().mean().item(), len(x), bounds=SHARE)
    return found


def _distance(x: Float[Tensor, "A D"], known: Statistics) -> Callable[[Int[Tensor, " m"]], float]:
    return lambda i: frechet(moments(x[i]), known.moments)


def _conditional(
    held: Statistics,
    known: Statistics,
    targets: Collection[str],
    guide: Classifier | None,
    draw: Callable[..., Figure],
) -> Figure:
    """Returns the mean over targets of the distance of its samples to the reference's images of it."""
    each: list[Figure] = []
    for target in targets:
        own = _of(held, target, guide) if len(targets) > 1 else held
        real = _of(known, target, guide)
        assert own.features is not None and real.features is not None
        _enough("cfid", len(own.features), 2, f"samples of {target!r}")
        _enough("cfid", len(real.features), 2, f"images of {target!r} in the reference")
        x = own.features.double()
        each.append(draw(_distance(x, real), len(x), least=2, bounds=POSITIVE))
    return mean_of(each)
