"""All figures of a set of samples, each with its interval.

    accuracy/guide, accuracy/judge   share of samples whose likeliest class is their target    (`lab.verdicts`)
    fid, kid                         distance to the reference                                  (`.frechet`, `.kernel`)
    cfid                             of each target's samples to the reference's images of it, the mean over targets
    precision, recall, density, coverage     what samples and reference share                   (`.neighbours`)
    clip_score                       mean of ``max(100 cos(image, text), 0)``, for targets that are texts

A target is that which is given, else each sample's own label. The intervals are explained in `.resample`.

Source of the last: Hessel et al. 2021, with the factor of torchmetrics, which cuts off the mean at 0 instead of each.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import InputError, unknown
from steersman.lab.metrics.extractors import Extractor
from steersman.lab.metrics.features import device_of
from steersman.lab.metrics.frechet import frechet, moments
from steersman.lab.metrics.images import ImageSet
from steersman.lab.metrics.kernel import across, within
from steersman.lab.metrics.neighbours import COVERED, INSIDE, precision_recall, recall, within_reach
from steersman.lab.metrics.resample import RESAMPLES, Figure, mean_of, resampled, share
from steersman.lab.metrics.statistics import Statistics, measured
from steersman.lab.verdicts import Verdict, judged
from steersman.memory import halving
from steersman.models.classifiers import Classifier, TextClassifier
from steersman.names import same_class
from steersman.precision import ieee

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

SHOWN = 4  # classes that a note names, at most

POSITIVE, SHARE = (0.0, math.inf), (0.0, 1.0)

Held = TypeVar("Held", ImageSet, Statistics)


@torch.no_grad()
@ieee()
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
    strict: bool = False,
) -> dict[str, Figure]:
    """Returns the figures by their names, with no value where undefined, and a note that says why.

    The accuracy is of the samples whose target the network knows.

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
        strict: Whether to refuse a figure that is undefined.

    Raises:
        InputError: Unknown figures; too few images for one of them; features or sizes that differ; a target that
            samples or reference lack; or, where ``strict``, an undefined figure.
    """
    for each in figures:
        if each not in FIGURES:
            raise unknown("figure", each, FIGURES)
    samples, targets = _targeted(samples, target, guide)
    wanted = [each for each in DISTANCES if each in figures]
    if reference is not None and wanted:
        _check(samples, reference, wanted)
        labels = reference.labels
        if target is not None and "cfid" in wanted and labels is not None and _strange(labels, [target], guide):
            raise unknown(f"class of {reference.spec!r}", target, dict.fromkeys(labels))
    known = {name: _Known.of(name, network, targets, guide) for name, network in (("guide", guide), ("judge", judge))}
    lacking = _lacking(known, reference, targets, target, guide)
    if strict and (refused := [each for each in FIGURES if each in figures and each in lacking]):
        said = "; ".join(f"{each} cannot be given: {lacking[each]}" for each in refused)
        raise InputError(f"{said}; give what is missing, or ask for other figures")
    found = {each: Figure(note=lacking.get(each)) for each in FIGURES if each in figures}
    draw = partial(resampled, resamples=resamples, seed=seed)
    said = {name: each.verdicts(samples, batch_size, on_images) for name, each in known.items()}
    for name, verdicts in said.items():
        right = [each.accuracy for each in verdicts if each.accuracy is not None]
        if right and f"accuracy/{name}" in found:
            found[f"accuracy/{name}"] = replace(share(round(sum(right)), len(right)), note=known[name].note)
    # The judge's, where both say something: a gradient can fool the network that it comes from.
    alike = [[each.similarity for each in said[name] if each.similarity is not None] for name in ("judge", "guide")]
    scores = sorted(100 * max(each, 0.0) for each in alike[0] or alike[1])
    if scores and "clip_score" in found:
        values = torch.tensor(scores, dtype=torch.float64)
        found["clip_score"] = draw(lambda i: values[i].mean().item(), len(values))
    wanted = [each for each in wanted if each not in lacking]
    if reference is not None and wanted:
        held, real = (
            each
            if isinstance(each, Statistics)
            else measured(each, features, batch_size=batch_size, on_images=on_images)
            for each in (samples, reference)
        )
        if real.extractor != held.extractor or real.width != held.width:
            raise InputError(
                f"features must be those of the reference, but the samples' are {held.extractor!r} "
                f"({held.width} columns) and those of {real.spec!r} are {real.extractor!r} ({real.width} columns)"
            )
        found |= _compared(held, real, targets, guide, wanted, draw)
    return found


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What a network knows of the samples' targets.

    Attributes:
        network: The network; None where there is none.
        targets: The target of each sample; None where there are none.
        indices: Its own index of each target that it knows.
        note: Which targets it does not know; None where it knows all.
        lacking: Why it has no accuracy; None where it has.
    """

    network: Classifier | None
    targets: Sequence[str] | None
    indices: dict[str, int] = field(default_factory=dict)
    note: str | None = None
    lacking: str | None = None

    @classmethod
    def of(
        cls, name: str, network: Classifier | None, targets: Sequence[str] | None, guide: Classifier | None
    ) -> "_Known":
        """Returns what the guide or the judge knows."""
        if network is None:
            return cls(network=None, targets=targets, lacking=f"there is no {name}")
        if targets is None:
            return cls(network=network, targets=None, lacking="the samples have no labels and no target is given")
        indices, strange = {}, []
        for target in dict.fromkeys(targets):
            # A number is the guide's index, so that another network is told the name.
            names = _names(target, guide)
            index = network.find(names[0] if network is guide or len(names) == 1 else names[1])
            if index is None:
                strange.append(target)
            else:
                indices[target] = index
        listed = f"{', '.join(map(repr, strange[:SHOWN]))}{', …' if len(strange) > SHOWN else ''}"
        lacking = f"the {name} knows no class {listed}" if not indices else None
        if lacking is None and len(network.names) < 2:
            lacking = f"the {name} has but one text, among which there is nothing to choose"
        of = f"of {sum(target in indices for target in targets)} of {len(targets)} samples"
        note = f"{of}: the {name} knows no class {listed}" if strange else None
        return cls(network=network, targets=targets, indices=indices, note=note, lacking=lacking)

    def verdicts(self, samples: ImageSet, batch_size: int, on_images: Callable[[int], object]) -> list[Verdict]:
        """Returns what the network says of each sample whose target it knows."""
        if self.network is None or not self.indices or self.targets is None:
            return []
        places = [place for place, target in enumerate(self.targets) if target in self.indices]
        indices = [self.indices[self.targets[place]] for place in places]
        said, size = [], batch_size
        for images in samples.some(places).batches(batch_size):
            chosen = indices[len(said) : len(said) + len(images)]
            more, size = halving(partial(_judged, self.network, images, chosen), min(size, len(images)))
            said += more
            on_images(len(images))
        return said


def _judged(network: Classifier, images: Float[Tensor, "B 3 H W"], targets: Sequence[int], size: int) -> list[Verdict]:
    """Returns what a network says of images, so many at a time."""
    device, said = device_of(network), []
    for some in images.split(size):
        said += judged(network, some.to(device), targets[len(said) : len(said) + len(some)])
    return said


def _lacking(
    known: Mapping[str, _Known],
    reference: ImageSet | Statistics | None,
    targets: Sequence[str] | None,
    target: str | None,
    guide: Classifier | None,
) -> dict[str, str]:
    """Returns why figures are undefined, as far as it is known before a network sees an image."""
    found = {f"accuracy/{name}": each.lacking for name, each in known.items() if each.lacking is not None}
    if not any(isinstance(each.network, TextClassifier) and each.indices for each in known.values()):
        found["clip_score"] = "neither guide nor judge compares images with texts"
    if reference is None:
        return found | dict.fromkeys(DISTANCES, "there is no reference")
    if isinstance(reference, Statistics) and reference.features is None:
        alone = f"{reference.spec!r} holds no features of single images"
        return found | dict.fromkeys([each for each in DISTANCES if each != "fid"], alone)
    if targets is None:
        found["cfid"] = "the samples have no labels and no target is given"
    elif reference.labels is None:
        found["cfid"] = f"{reference.spec!r} has no labels"
    elif target is None and (strange := _strange(reference.labels, targets, guide)):
        classes = list(dict.fromkeys(reference.labels))
        listed = f"{', '.join(classes[:SHOWN])}{', …' if len(classes) > SHOWN else ''}"
        found["cfid"] = f"{reference.spec!r} has no images of {strange[0]!r}, its classes are {listed}"
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
    meant = same_class(_names(target, guide), dict.fromkeys(held.labels or ()))
    return held.of(min(meant, default=target))


def _strange(labels: Sequence[str], targets: Sequence[str], guide: Classifier | None) -> list[str]:
    """Returns the targets that no label stands for."""
    classes = list(dict.fromkeys(labels))
    return [target for target in dict.fromkeys(targets) if not same_class(_names(target, guide), classes)]


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
            f"reference images must have the size of the samples, {width} by {height} pixels, got {other_width} by "
            f"{other_height}; resize them with FOLDER?resolution=64"
        )


def _count(held: ImageSet | Statistics) -> int:
    return len(held) if isinstance(held, ImageSet) else len(held.features if held.features is not None else ())


def _enough(figure: str, count: int, least: int, what: str) -> None:
    if count < least:
        raise InputError(f"{figure} needs at least {least} {what}, got {count}; give more, or ask for other figures")


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
