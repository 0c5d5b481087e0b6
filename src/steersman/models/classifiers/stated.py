"""What a spec says of any classifier: ``SPEC?KEY=VALUE&KEY=VALUE``.

    size=64                         side in pixels that the network takes
    mean=0.5,0.5,0.5  std=0.5       mean and deviation of its training images in [0, 1], one a channel or one for all
    interpolation=bilinear          or bicubic
    crop=0.875                      share of the shorter side that a centre square keeps; none for the whole image
    channels=rgb                    or bgr, or grey
    preprocess=imagenet             as the published weights of that network are prepared for; or raw, in [-1, 1]
    names=FILE                      a name a line, in the order of the logits; synonyms separated by commas
    head=softmax                    or binary (one logit), or multilabel (a sigmoid a label)
    weights=KEY                     which copy of the weights, where a file holds several (`models.checkpoint`)

What is stated goes before what is read. Where mean and deviation are neither stated nor read, the classifier is loaded
and refuses images: no preparation is assumed.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

from jaxtyping import Float
from torch import Tensor

from steersman.errors import InputError, unknown
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.preprocess import RAW, Channels, Interpolation, Preprocess
from steersman.models.classifiers.weights import class_names
from steersman.names import split_options

__all__ = ["IMAGENET", "KEYS", "NOTHING", "Stated", "Unstated", "split"]

IMAGENET = Preprocess(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224, interpolation="bilinear", crop=224 / 256
)
"""How most networks trained on ImageNet are fed."""

KEYS = (
    "preprocess",
    "size",
    "mean",
    "std",
    "interpolation",
    "crop",
    "channels",
    "names",
    "head",
    "weights",
)
CHOICES = {
    "preprocess": ("imagenet", "raw"),
    "interpolation": get_args(Interpolation),
    "channels": get_args(Channels),
    "head": ("softmax", "binary", "multilabel"),
}
"""Options that are one of some words."""


@dataclass(frozen=True, kw_only=True)
class Unstated(Preprocess):
    """Stands for a preprocessing that is stated nowhere: it refuses images, and says what to add to the spec.

    Args:
        spec: What the user gave.
        published: How the published weights of the same network are fed.
    """

    spec: str
    published: Preprocess = IMAGENET

    def __call__(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Refuses.

        Raises:
            InputError: Always.
        """
        raise self.refusal()

    def refusal(self) -> InputError:
        """Returns the error that says what to add."""
        known = self.published
        mean, std = (",".join(f"{each:g}" for each in values) for values in (known.mean, known.std))
        join = "&" if "?" in self.spec else "?"
        return InputError(
            f"classifier: nothing states how images are prepared for {self.spec!r}; add its own, as in "
            f"{join}size=64&mean=0.5,0.5,0.5&std=0.5,0.5,0.5, or {join}preprocess=imagenet if it is that of the "
            f"published weights (size {known.size}, mean {mean}, std {std})"
        )

    def grey(self) -> "Unstated":
        """Returns the same for a network of one channel."""
        return replace(self, channels="grey", published=self.published.grey())


@dataclass(frozen=True, kw_only=True)
class Stated:
    """The options of a spec that are the same for all classifiers.

    Args:
        spec: The whole spec, for the messages.
        options: Their values by key, as the user wrote them.

    Raises:
        InputError: A value cannot be used.
    """

    spec: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.options.items():
            if not value:
                raise InputError(f"classifier: {key} needs a value, as in {key}=VALUE, got none in {self.spec!r}")
        for key, known in CHOICES.items():
            if key in self.options and self.options[key] not in known:
                raise unknown(key, self.options[key], known)

    @property
    def size(self) -> int | None:
        """The side in pixels that is stated, or None."""
        given = self.options.get("size")
        if given is None:
            return None
        if not (given.isascii() and given.isdecimal() and int(given) > 0):
            raise InputError(f"classifier: size must be a number of pixels, at least 1, got {given!r}")
        return int(given)

    @property
    def weights(self) -> str | None:
        """The key of the copy of the weights that is stated, or None."""
        return self.options.get("weights")

    @property
    def prepares(self) -> bool:
        """Whether mean and deviation are stated, or a preprocessing by its word."""
        return "preprocess" in self.options or {"mean", "std"} <= self.options.keys()

    def preprocess(self, read: Preprocess) -> Preprocess:
        """Returns how images are prepared: as stated, and for the rest as read."""
        chosen = self._named(read)
        parts = {}
        for key in ("mean", "std"):
            if key in self.options:
                parts[key] = _numbers(key, self.options[key])
        for one, other in (("mean", "std"), ("std", "mean")):
            if one in parts and other not in parts:
                if isinstance(chosen, Unstated):
                    raise InputError(f"classifier: {one} is stated without {other} in {self.spec!r}; state both")
                parts[other] = getattr(chosen, other)
        if "crop" in self.options:
            parts["crop"] = None if self.options["crop"] == "none" else _numbers("crop", self.options["crop"])[0]
        for key in ("interpolation", "channels"):
            if key in self.options:
                parts[key] = self.options[key]
        if self.size is not None:
            parts["size"] = self.size
        if len(mean := parts.get("mean", chosen.mean)) != len(std := parts.get("std", chosen.std)):
            parts |= {"mean": _widened(mean, len(std)), "std": _widened(std, len(mean))}
        if isinstance(chosen, Unstated) and "mean" in parts:
            chosen = Preprocess(size=chosen.size, channels=chosen.channels)
        return replace(chosen, **parts) if parts else chosen

    def _named(self, read: Preprocess) -> Preprocess:
        word = self.options.get("preprocess")
        if word == "raw":
            return replace(RAW, channels=read.channels)
        if word == "imagenet":
            if isinstance(read, Unstated):
                return read.published if read.size is None else read.published.resized(read.size)
            own = IMAGENET.grey() if read.channels == "grey" else IMAGENET
            return replace(read, mean=own.mean, std=own.std)
        return read

    def applied(self, classifier: Classifier) -> Classifier:
        """Returns a classifier as it is stated to be, the same object.

        Raises:
            InputError: What is stated does not fit it.
        """
        classifier.preprocess = self.preprocess(classifier.preprocess)
        if classifier.open_vocabulary:
            for key in ("names", "head"):
                if key in self.options:
                    raise InputError(f"classifier: {key} is stated in {self.spec!r}, whose classes are any texts")
            return classifier
        count = 1 if classifier.binary else len(classifier.names)
        if (head := self.options.get("head")) is not None:
            if (head == "binary") != (count == 1) and not (head == "multilabel" and count == 1):
                fit = "binary" if count == 1 else "softmax or multilabel"
                raise InputError(f"classifier: head must be {fit} for {self.spec!r}, of {count} logits, got {head}")
            classifier.multilabel = head == "multilabel" and count > 1
        if (file := self.options.get("names")) is not None:
            names = class_names(self.spec, count, file)
            classifier.names = (f"not {names[0]}", *names) if classifier.binary and len(names) == 1 else names
        return classifier


NOTHING = Stated()
"""No option."""


def split(spec: str, text: str, leave: Collection[str] = ()) -> tuple[str, Stated]:
    """Returns what is left of a spec without the options that are the same for all classifiers, and these.

    Args:
        spec: The whole spec, for the messages.
        text: The name in it, and its options.
        leave: The options among them that the source reads for itself.

    Raises:
        InputError: A value cannot be used.
    """
    name, _, given = text.partition("?")
    own, common = [], []
    last = own
    for each in filter(None, given.split("&")):
        key, equals, _ = each.partition("=")
        if equals and key.isidentifier():  # else it goes on with the value before it, a path with "&"
            last = common if key in KEYS and key not in leave else own
        last.append(each)
    _, options = split_options("?" + "&".join(common), KEYS)
    return "?".join([name, *(["&".join(own)] if own else [])]), Stated(spec=spec, options=options)


def _numbers(key: str, text: str) -> tuple[float, ...]:
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise InputError(f"classifier: {key} must be numbers separated by commas, got {text!r}")
    return found


def _widened(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    return values * count if len(values) == 1 else values
