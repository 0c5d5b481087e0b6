"""All figures of a set of samples, each with its interval.

    accuracy/guide, accuracy/judge           share of samples whose likeliest class is their target   (`lab.evaluation`)
    fid, kid                                 distance to the reference                                (`.distances`)
    cfid                                     mean over targets of the FID to the reference's images of that target
    precision, recall, density, coverage     what samples and reference share                         (`.distances`)
    clip_score                               mean of ``max(100 cos(image, text), 0)``, if targets are texts

The target is the one given, else each sample's label. CLIP score: Hessel et al. 2021 with torchmetrics' factor, which
cuts off the mean at 0 instead of each value.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import Batches
from steersman.errors import InputError, unknown
from steersman.lab.evaluation import Evaluation, evaluate_images
from steersman.lab.metrics.distances import COVERED, INSIDE, across, frechet, inside, moments, within, within_reach
from steersman.lab.metrics.features import Extractor, device_of
from steersman.lab.metrics.images import ImageSet
from steersman.lab.metrics.intervals import RESAMPLES, Figure, mean_of, resampled, share
from steersman.lab.metrics.statistics import Statistics, measured
from steersman.models.classifiers import Classifier, TextClassifier
from steersman.names import same_class
from steersman.precision import ieee

__all__ = ["DISTANCES", "FIGURES", "evaluate"]

DISTANCES = {
    "fid": (2, 2),
    "cfid": (2, 2),
    "kid": (2, 2),
    "precision": (INSIDE + 1, INSIDE + 1),
    "recall": (INSIDE + 1, INSIDE + 1),
    "density": (1, COVERED + 1),
    "coverage": (1, COVERED + 1),
}
"""The figures that need a reference, with the least numbers of samples and of reference images."""

FIGURES = ("accuracy/guide", "accuracy/judge", *DISTANCES, "clip_score")

SHOWN = 4  # classes that a message names

POSITIVE, SHARE = (0.0, math.inf), (0.0, 1.0)

Images = TypeVar("Images", ImageSet, Statistics)


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
    """Returns some of `FIGURES` by their names; one that is undefined has no value but a note that says why."""
    for name in figures:
        if name not in FIGURES:
            raise unknown("figure", name, FIGURES)
    targets = _Targets.of(samples, target, guide)
    if target is not None and len(samples.classes) > 1:
        samples = targets.part(samples, target)
        targets = replace(targets, each=(target,) * len(samples))
    wanted = [name for name in DISTANCES if name in figures and reference is not None]
    if reference is not None and wanted:
        _check(samples, reference, wanted)
        labels = reference.labels
        if target is not None and "cfid" in wanted and labels is not None and targets.missing_in(labels):
            raise unknown(f"class of {reference.spec!r}", target, dict.fromkeys(labels))
    networks = {
        name: _Network.of(name, network, targets, by_index=network is guide)
        for name, network in (("guide", guide), ("judge", judge))
    }
    undefined = _undefined(networks, reference, targets, by_label=target is None)
    if strict and (refused := [name for name in FIGURES if name in figures and name in undefined]):
        reasons = "; ".join(f"{name} cannot be given: {undefined[name]}" for name in refused)
        raise InputError(f"{reasons}; give what is missing, or ask for other figures")
    found = {name: Figure(note=undefined.get(name)) for name in FIGURES if name in figures}
    draw = partial(resampled, resamples=resamples, seed=seed)
    evaluations = {name: network.evaluations(samples, batch_size, on_images) for name, network in networks.items()}
    found |= {name: figure for name, figure in _network_figures(networks, evaluations, draw).items() if name in found}
    wanted = [name for name in wanted if name not in undefined]
    if reference is not None and wanted:
        ours, theirs = (
            images
            if isinstance(images, Statistics)
            else measured(images, features, batch_size=batch_size, on_images=on_images)
            for images in (samples, reference)
        )
        if theirs.extractor != ours.extractor or theirs.width != ours.width:
            raise InputError(
                f"features must be those of the reference, but the samples' are {ours.extractor!r} "
                f"({ours.width} columns) and those of {theirs.spec!r} are {theirs.extractor!r} ({theirs.width} columns)"
            )
        found |= _compared(ours, theirs, targets, wanted, draw)
    return found


@dataclass(frozen=True, kw_only=True)
class _Targets:
    """The target of each sample; None without any. And all names of each target: as given, the guide's, its index."""

    each: tuple[str, ...] | None
    names: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, samples: ImageSet, target: str | None, guide: Classifier | None) -> "_Targets":
        each = samples.labels if target is None else (target,) * len(samples)
        names = {}
        for name in dict.fromkeys(each or ()):
            index = None if guide is None else guide.find(name)
            names[name] = (name,) if guide is None or index is None else (name, guide.title(index), str(index))
        return cls(each=each, names=names)

    def part(self, images: Images, target: str) -> Images:
        """Returns the images of a target, under any of its names."""
        labels = same_class(self.names[target], dict.fromkeys(images.labels or ()))
        return images.of(min(labels, default=target))

    def missing_in(self, labels: Sequence[str]) -> list[str]:
        """Returns the targets that are not among some labels, under any of their names."""
        classes = list(dict.fromkeys(labels))
        return [target for target, names in self.names.items() if not same_class(names, classes)]


@dataclass(frozen=True, kw_only=True)
class _Network:
    """The guide or the judge, and what it knows of the targets.

    Attributes:
        network: The classifier.
        targets: The target of each sample.
        indices: Its index of each target that it knows.
        note: The targets that it does not know.
        undefined: Why it has no accuracy.
    """

    network: Classifier | None = None
    targets: Sequence[str] = ()
    indices: Mapping[str, int] = field(default_factory=dict)
    note: str | None = None
    undefined: str | None = None

    @classmethod
    def of(cls, name: str, network: Classifier | None, targets: _Targets, *, by_index: bool) -> "_Network":
        if network is None:
            return cls(undefined=f"there is no {name}")
        if targets.each is None:
            return cls(network=network, undefined="the samples have no labels and no target is given")
        indices, strange = {}, []
        for target, names in targets.names.items():
            # A number is an index of the guide; another network is asked for the guide's name of it.
            index = network.find(names[0] if by_index or len(names) == 1 else names[1])
            if index is None:
                strange.append(target)
            else:
                indices[target] = index
        unknown_to = f"the {name} knows no class {_listed(map(repr, strange))}"
        undefined = unknown_to if not indices else None
        if undefined is None and len(network.names) < 2:
            undefined = f"the {name} has but one text, among which there is nothing to choose"
        count = sum(target in indices for target in targets.each)
        note = f"of {count} of {len(targets.each)} samples: {unknown_to}" if strange else None
        return cls(network=network, targets=targets.each, indices=indices, note=note, undefined=undefined)

    def evaluations(self, samples: ImageSet, batch_size: int, on_images: Callable[[int], object]) -> list[Evaluation]:
        """Returns what the network says of each sample whose target it knows."""
        network, known = self.network, [i for i, target in enumerate(self.targets) if target in self.indices]
        if network is None or not known:
            return []
        indices = [self.indices[self.targets[i]] for i in known]
        evaluations, batches, device = [], Batches(batch_size), device_of(network)
        for images in samples.some(known).batches(batch_size):
            chosen = indices[len(evaluations) : len(evaluations) + len(images)]
            for some in batches.map(lambda x, y: evaluate_images(network, x.to(device), y), images, chosen):
                evaluations += some
            on_images(len(images))
        return evaluations


def _network_figures(
    networks: Mapping[str, _Network], evaluations: Mapping[str, Sequence[Evaluation]], draw: Callable[..., Figure]
) -> dict[str, Figure]:
    """Returns accuracies and CLIP score, those that are defined."""
    found = {}
    for name, said in evaluations.items():
        right = [evaluation.accuracy for evaluation in said if evaluation.accuracy is not None]
        if right:
            found[f"accuracy/{name}"] = replace(share(round(sum(right)), len(right)), note=networks[name].note)
    # The judge's if both have one, since a gradient can fool the network that it comes from.
    similarities = (
        [v.similarity for v in evaluations[name] if v.similarity is not None] for name in ("judge", "guide")
    )
    if cosines := next(filter(None, similarities), []):
        scores = torch.tensor(sorted(100 * max(cosine, 0.0) for cosine in cosines), dtype=torch.float64)
        found["clip_score"] = draw(lambda i: scores[i].mean().item(), len(scores))
    return found


def _undefined(
    networks: Mapping[str, _Network],
    reference: ImageSet | Statistics | None,
    targets: _Targets,
    *,
    by_label: bool,
) -> dict[str, str]:
    """Returns why figures are undefined, as far as that is known before a network sees an image."""
    found = {f"accuracy/{name}": network.undefined for name, network in networks.items() if network.undefined}
    if not any(isinstance(each.network, TextClassifier) and each.indices for each in networks.values()):
        found["clip_score"] = "neither guide nor judge compares images with texts"
    if reference is None:
        return found | dict.fromkeys(DISTANCES, "there is no reference")
    if isinstance(reference, Statistics) and reference.features is None:
        reason = f"{reference.spec!r} holds no features of single images"
        return found | dict.fromkeys([name for name in DISTANCES if name != "fid"], reason)
    if targets.each is None:
        found["cfid"] = "the samples have no labels and no target is given"
    elif reference.labels is None:
        found["cfid"] = f"{reference.spec!r} has no labels"
    elif by_label and (missing := targets.missing_in(reference.labels)):
        classes = _listed(dict.fromkeys(reference.labels))
        found["cfid"] = f"{reference.spec!r} has no images of {missing[0]!r}, its classes are {classes}"
    return found


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return f"{', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"


def _check(samples: ImageSet, reference: ImageSet | Statistics, wanted: Sequence[str]) -> None:
    """Refuses sets that cannot be compared, before any network is asked."""
    rows = reference if isinstance(reference, ImageSet) else reference.features
    for name in wanted:
        least_samples, least_real = DISTANCES[name]
        _enough(name, len(samples), least_samples, "samples")
        if rows is not None:
            _enough(name, len(rows), least_real, "images of the reference")
    if reference.side is not None and reference.side != samples.side:
        (height, width), (other_height, other_width) = samples.side, reference.side
        raise InputError(
            f"reference images must have the size of the samples, {width} by {height} pixels, got {other_width} by "
            f"{other_height}; resize them with FOLDER?resolution=64"
        )


def _enough(figure: str, count: int, least: int, what: str) -> None:
    if count < least:
        raise InputError(f"{figure} needs at least {least} {what}, got {count}; give more, or ask for other figures")


def _compared(
    ours: Statistics, theirs: Statistics, targets: _Targets, wanted: Sequence[str], draw: Callable[..., Figure]
) -> dict[str, Figure]:
    """Returns the figures of samples and reference, by their features."""
    x: Float[Tensor, "A D"] = ours.rows
    found: dict[str, Figure] = {}
    if "fid" in wanted:
        found["fid"] = draw(_distance(x, theirs), len(x), least=2, bounds=POSITIVE)
    if theirs.features is None:
        return found
    y: Float[Tensor, "B D"] = theirs.rows
    if "cfid" in wanted:
        found["cfid"] = mean_of([_conditional(ours, theirs, target, targets, draw) for target in targets.names])
    if "kid" in wanted:
        reference, shared = within(y), across(x, y)
        found["kid"] = draw(lambda i: within(x[i]) + reference - 2 * shared[i].mean().item(), len(x), least=2)
    if "precision" in wanted:
        found["precision"] = share(int(inside(x, y).sum()), len(x))
    if "recall" in wanted:
        found["recall"] = draw(lambda i: inside(y, x[i]).double().mean().item(), len(x), least=INSIDE + 1, bounds=SHARE)
    if "density" in wanted or "coverage" in wanted:
        near = within_reach(x, y, COVERED)
        dense = near.double().sum(1) / COVERED
        if "density" in wanted:
            found["density"] = draw(lambda i: dense[i].mean().item(), len(x), bounds=POSITIVE)
        if "coverage" in wanted:
            found["coverage"] = draw(lambda i: near[i].any(0).double().mean().item(), len(x), bounds=SHARE)
    return found


def _distance(x: Float[Tensor, "A D"], reference: Statistics) -> Callable[[Int[Tensor, " m"]], float]:
    return lambda i: frechet(moments(x[i]), reference.moments)


def _conditional(
    ours: Statistics, theirs: Statistics, target: str, targets: _Targets, draw: Callable[..., Figure]
) -> Figure:
    """Returns the distance of the samples of a target to the reference's images of it."""
    x = (targets.part(ours, target) if len(targets.names) > 1 else ours).rows
    real = targets.part(theirs, target)
    _enough("cfid", len(x), 2, f"samples of {target!r}")
    _enough("cfid", len(real.rows), 2, f"images of {target!r} in the reference")
    return draw(_distance(x, real), len(x), least=2, bounds=POSITIVE)
