"""All figures of a set of samples, each with its interval.

    accuracy/guide, accuracy/judge           share of samples whose likeliest class is their target   (`lab.evaluation`)
    fid, kid                                 distance to the reference                                (`.distances`)
    cfid                                     mean over targets of the FID to the reference's images of that target
    precision, recall, density, coverage     what samples and reference share                         (`.distances`)
    diversity                                mean over targets of how widely samples are spread, as a share of the
                                             reference's images of that target                        (`.distances`)
    clip_score                               mean of ``max(100 cos(image, text), 0)``, if targets are texts

The target is the one given, else each sample's label. CLIP score: Hessel et al. 2021 with torchmetrics' factor, which
cuts off the mean at 0 instead of each value.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import Batches
from steersman.errors import InputError, unknown
from steersman.lab.data.images import ImageSet
from steersman.lab.evaluation import Evaluation, evaluate_images
from steersman.lab.metrics.distances import (
    COVERED,
    INSIDE,
    across,
    frechet,
    inside,
    moments,
    spread,
    within,
    within_reach,
)
from steersman.lab.metrics.features import Extractor, Statistics, device_of, statistics_of
from steersman.lab.metrics.intervals import RESAMPLES, Figure, mean_of, resampled, share
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
    "diversity": (2, 2),
}
"""The figures that need a reference, with the least numbers of samples and of reference images."""

FIGURES = ("accuracy/guide", "accuracy/judge", *DISTANCES, "clip_score")

OF_TARGETS = ("cfid", "diversity")  # figures that compare the images of each target with those of its class

SHOWN = 4  # classes that a message names
UNLABELLED = "the samples have no labels and no target is given"

POSITIVE, SHARE = (0.0, math.inf), (0.0, 1.0)


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
    names = _names_of((samples.labels or ()) if target is None else (target,), guide)
    if target is not None:
        # From here on the label of a sample is its target.
        samples = samples.of(*_labels_of(samples, names[target])) if len(samples.classes) > 1 else samples
        samples = replace(samples, labels=(target,) * len(samples))
    wanted = [name for name in DISTANCES if name in figures]
    if reference is not None and wanted:
        _check(samples, reference, wanted)
        compared = not set(OF_TARGETS).isdisjoint(wanted)
        if target is not None and compared and reference.labels and not _known_in(reference, names[target]):
            raise unknown(f"class of {reference.spec!r}", target, dict.fromkeys(reference.labels))
    networks = {
        role: _Network.of(role, network, samples, names) for role, network in (("guide", guide), ("judge", judge))
    }
    undefined = _undefined(networks, samples, reference, names)
    if strict and (refused := [name for name in FIGURES if name in figures and name in undefined]):
        reasons = "; ".join(f"{name} cannot be given: {undefined[name]}" for name in refused)
        raise InputError(f"{reasons}; give what is missing, or ask for other figures")
    draw = partial(resampled, resamples=resamples, seed=seed)
    found = _network_figures(networks, samples, figures, draw, batch_size, on_images)
    if wanted := [name for name in wanted if name not in undefined]:
        assert reference is not None, "else all distances are undefined"
        ours, theirs = (
            images
            if isinstance(images, Statistics)
            else statistics_of(images, features, batch_size=batch_size, on_images=on_images)
            for images in (samples, reference)
        )
        if theirs.extractor != ours.extractor or theirs.width != ours.width:
            raise InputError(
                f"features must be those of the reference, but the samples' are {ours.extractor!r} "
                f"({ours.width} columns) and those of {theirs.spec!r} are {theirs.extractor!r} ({theirs.width} columns)"
            )
        found |= _compared(ours, theirs, names, wanted, draw)
    return {name: found.get(name, Figure(note=undefined.get(name))) for name in FIGURES if name in figures}


def _names_of(targets: Iterable[str], guide: Classifier | None) -> dict[str, tuple[str, ...]]:
    """Returns all names of each target: as given, the guide's, its index."""
    names = {}
    for target in dict.fromkeys(targets):
        classes = () if guide is None else guide.find(target) or ()
        own = (guide.title(classes[0]), str(classes[0])) if guide is not None and len(classes) == 1 else ()
        names[target] = (target, *own)
    return names


def _known_in(images: ImageSet | Statistics, names: Sequence[str]) -> set[str]:
    """Returns the labels of a set that are a target's, under any of its names; several for a set of classes."""
    return same_class(names, dict.fromkeys(images.labels or ()))


def _labels_of(images: ImageSet | Statistics, names: Sequence[str]) -> list[str]:
    """Returns these labels, or the target's name, which is then refused."""
    return sorted(_known_in(images, names)) or [names[0]]


@dataclass(frozen=True, kw_only=True)
class _Network:
    """The guide or the judge, and what it knows of the targets.

    Attributes:
        network: The classifier.
        indices: Its classes of each target that it knows, one or a set.
        note: The targets that it does not know.
        undefined: Why it has no accuracy.
    """

    network: Classifier | None = None
    indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    note: str | None = None
    undefined: str | None = None

    @classmethod
    def of(
        cls, role: str, network: Classifier | None, samples: ImageSet, names: Mapping[str, Sequence[str]]
    ) -> "_Network":
        if network is None:
            return cls(undefined=f"there is no {role}")
        if samples.labels is None:
            return cls(network=network, undefined=UNLABELLED)
        # A number is an index of the guide; the judge is asked for the guide's name of it.
        own = {
            target: network.find(known[1] if role == "judge" and len(known) > 1 else known[0])
            for target, known in names.items()
        }
        indices = {target: index for target, index in own.items() if index is not None}
        if not indices:
            undefined, note = f"the {role} knows no class {_listed(map(repr, own))}", None
        elif len(network.names) < 2:
            undefined, note = f"the {role} has but one text, among which there is nothing to choose", None
        elif strange := [repr(target) for target in own if target not in indices]:
            count = sum(label in indices for label in samples.labels)
            undefined = None
            note = f"of {count} of {len(samples)} samples: the {role} knows no class {_listed(strange)}"
        else:
            undefined, note = None, None
        return cls(network=network, indices=indices, note=note, undefined=undefined)

    def evaluations(self, samples: ImageSet, batch_size: int, on_images: Callable[[int], object]) -> list[Evaluation]:
        """Returns what the network says of each sample whose target it knows."""
        network, found = self.network, []
        known = {i: self.indices[label] for i, label in enumerate(samples.labels or ()) if label in self.indices}
        if network is None or not known:
            return found
        indices = list(known.values())
        batches, device = Batches(batch_size), device_of(network)
        for images in samples.some(list(known)).batches(batch_size):
            chosen = indices[len(found) : len(found) + len(images)]
            for evaluations in batches.map(lambda x, y: evaluate_images(network, x.to(device), y), images, chosen):
                found += evaluations
            on_images(len(images))
        return found


def _network_figures(
    networks: Mapping[str, _Network],
    samples: ImageSet,
    figures: Collection[str],
    draw: Callable[..., Figure],
    batch_size: int,
    on_images: Callable[[int], object],
) -> dict[str, Figure]:
    """Returns accuracies and CLIP score, those that are defined; a network that no figure needs sees no image."""
    found, similarities = {}, {}
    for role, network in networks.items():
        scored = "clip_score" in figures and isinstance(network.network, TextClassifier)
        needed = scored or f"accuracy/{role}" in figures
        evaluations = network.evaluations(samples, batch_size, on_images) if needed else []
        right = [each.accuracy for each in evaluations if each.accuracy is not None]
        if right:
            found[f"accuracy/{role}"] = replace(share(round(sum(right)), len(right)), note=network.note)
        similarities[role] = [each.similarity for each in evaluations if each.similarity is not None]
    # The judge's if both have one, since a gradient can fool the network that it comes from.
    if cosines := similarities["judge"] or similarities["guide"]:
        scores = torch.tensor(sorted(100 * max(cosine, 0.0) for cosine in cosines), dtype=torch.float64)
        found["clip_score"] = draw(lambda i: scores[i].mean().item(), len(scores))
    return found


def _undefined(
    networks: Mapping[str, _Network],
    samples: ImageSet,
    reference: ImageSet | Statistics | None,
    names: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """Returns why figures are undefined, as far as that is known before a network sees an image."""
    found = {f"accuracy/{role}": network.undefined for role, network in networks.items() if network.undefined}
    if not any(isinstance(each.network, TextClassifier) and each.indices for each in networks.values()):
        found["clip_score"] = "neither guide nor judge compares images with texts"
    if reference is None:
        return found | dict.fromkeys(DISTANCES, "there is no reference")
    if isinstance(reference, Statistics) and reference.features is None:
        reason = f"{reference.spec!r} holds no features of single images"
        return found | dict.fromkeys([name for name in DISTANCES if name != "fid"], reason)
    reason = None
    if samples.labels is None:
        reason = UNLABELLED
    elif reference.labels is None:
        reason = f"{reference.spec!r} has no labels"
    elif missing := [target for target, known in names.items() if not _known_in(reference, known)]:
        classes = _listed(dict.fromkeys(reference.labels))
        reason = f"{reference.spec!r} has no images of {missing[0]!r}, its classes are {classes}"
    return found if reason is None else found | dict.fromkeys(OF_TARGETS, reason)


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
    ours: Statistics,
    theirs: Statistics,
    names: Mapping[str, Sequence[str]],
    wanted: Sequence[str],
    draw: Callable[..., Figure],
) -> dict[str, Figure]:
    """Returns the figures of samples and reference, by their features."""
    found: dict[str, Figure] = {}
    x: Float[Tensor, "A D"] = ours.rows
    if "fid" in wanted:
        found["fid"] = _fid(ours, theirs, draw)
    if theirs.features is None:
        return found
    y: Float[Tensor, "B D"] = theirs.rows
    for name, figure in (("cfid", _fid), ("diversity", _diversity)):
        if name not in wanted:
            continue
        each = []
        for target, known in names.items():
            some, real = ours.of(target), theirs.of(*_labels_of(theirs, known))
            _enough(name, len(some.rows), 2, f"samples of {target!r}")
            _enough(name, len(real.rows), 2, f"images of {target!r} in the reference")
            each.append(figure(some, real, draw))
        found[name] = mean_of(each)
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


def _diversity(ours: Statistics, theirs: Statistics, draw: Callable[..., Figure]) -> Figure:
    x, reference = ours.rows, spread(theirs.rows)
    return draw(lambda i: spread(x[i]) / reference, len(x), least=2, bounds=POSITIVE)


def _fid(ours: Statistics, theirs: Statistics, draw: Callable[..., Figure]) -> Figure:
    x = ours.rows

    def distance(chosen: Int[Tensor, " m"]) -> float:
        return frechet(moments(x[chosen]), theirs.moments)

    return draw(distance, len(x), least=2, bounds=POSITIVE)
