"""What a spec states of any classifier, ``SOURCE:NAME?KEY=VALUE&KEY=VALUE``, and what is read of it besides.

    size=64                         side in pixels that the network takes
    mean=0.5,0.5,0.5  std=0.5       mean and deviation of its training images in [0, 1], one a channel or one for all
    interpolation=bilinear          or bicubic
    crop=0.875                      share of the shorter side that a centre square keeps; none for the whole image
    channels=rgb                    or bgr, or grey
    preprocess=imagenet             that of the published weights of that network; or raw, in [-1, 1]
    names=FILE                      a name a line, in the order of the logits; synonyms separated by commas
    names=ball,cube                 the names themselves
    head=softmax                    or binary (one logit), or multilabel (a sigmoid a label)
    weights=KEY                     which copy of the weights, where a file holds several (`models.checkpoint`)

What is stated goes before what is read. Where mean and deviation are neither stated nor read, the classifier is loaded
and refuses images: no preprocessing is assumed.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor, nn

from steersman.errors import InputError, one_line, unknown
from steersman.files import read_text
from steersman.models.classifiers.classifier import Classifier
from steersman.models.classifiers.preprocess import RAW, Channels, Interpolation, Preprocess
from steersman.names import split_options

__all__ = ["IMAGENET", "KEYS", "Spec", "Unstated", "read_spec"]

IMAGENET = Preprocess(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224, interpolation="bilinear", crop=224 / 256
)
"""The preprocessing of most networks trained on ImageNet."""


@dataclass(frozen=True, kw_only=True)
class Unstated(Preprocess):
    """A preprocessing that is stated nowhere: it refuses images, and says what to add to the spec.

    Its settings are those of the published weights of the same network, but for the size, which is the network's.
    """

    spec: str
    published_size: int | None

    def __call__(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Refuses."""
        raise self.refusal()

    def published(self) -> Preprocess:
        """Returns the preprocessing of the published weights."""
        settings = {each.name: getattr(self, each.name) for each in fields(Preprocess)}
        return Preprocess(**settings | {"size": self.size or self.published_size})

    def refusal(self) -> InputError:
        """Returns the error that says what to add."""
        known = self.published()
        mean, std = (",".join(f"{value:g}" for value in values) for values in (known.mean, known.std))
        join = "&" if "?" in self.spec else "?"
        return InputError(
            f"classifier: nothing states how images are prepared for {self.spec!r}; add its own, as in "
            f"{join}size=64&mean=0.5,0.5,0.5&std=0.5,0.5,0.5, or {join}preprocess=imagenet if it is that of the "
            f"published weights (size {known.size}, mean {mean}, std {std})"
        )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A classifier's spec: its text, the name within it, and its options by key, those in `KEYS` parsed."""

    text: str
    name: str
    options: Mapping[str, Any]

    def classifier(
        self,
        network: nn.Module,
        count: int,
        *,
        preprocess: Preprocess | None = None,
        published: Preprocess = IMAGENET,
        size: int | None = None,
        grey: bool = False,
        names: Sequence[str] = (),
        card: Mapping[str, Any] | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> Classifier:
        """Returns a network of ``count`` logits as a classifier, with what its source or its training's card says.

        Without ``preprocess`` or a card it refuses images, and names how the ``published`` weights of the same network
        are prepared. ``size`` is the network's where the preprocessing has another one.
        """
        if card:
            preprocess, names = Preprocess(size=card.get("resolution")), card.get("classes") or names
        if preprocess is None:
            known = asdict(published) | {"size": None, "spec": self.text, "published_size": published.size}
            preprocess = Unstated(**known)
        preprocess = preprocess if size is None else preprocess.resized(size)
        classes = max(count, 2)
        return Classifier(
            network,
            preprocess=preprocess.grey() if grey else preprocess,
            names=names if len(names) in (count, classes) else map(str, range(classes)),
            binary=count == 1,
            **settings,
        )

    def apply(self, classifier: Classifier) -> Classifier:
        """Gives a classifier the preprocessing, names and head that the spec states, and returns it."""
        classifier.preprocess = self._preprocess(classifier.preprocess)
        if classifier.open_vocabulary:
            for key in self.options.keys() & {"names", "head"}:
                raise InputError(f"classifier: {key} is stated in {self.text!r}, whose classes are any texts")
            return classifier
        count = 1 if classifier.binary else len(classifier.names)
        if (head := self.options.get("head")) is not None:
            # One logit with a sigmoid is a binary head, whatever it is called.
            if head not in (("binary", "multilabel") if count == 1 else ("softmax", "multilabel")):
                fit = "binary" if count == 1 else "softmax or multilabel"
                raise InputError(f"classifier: head must be {fit} for {self.text!r}, of {count} logits, got {head}")
            classifier.multilabel = head == "multilabel" and count > 1
        if "names" in self.options:
            names = self._names(count)
            classifier.names = (f"not {names[0]}", *names) if classifier.binary and len(names) == 1 else names
        return classifier

    def _preprocess(self, read: Preprocess) -> Preprocess:
        """Returns the preprocessing as stated, and for the rest as read."""
        stated = {each.name: self.options[each.name] for each in fields(Preprocess) if each.name in self.options}
        word = self.options.get("preprocess")
        if word == "raw":
            read = replace(RAW, channels=read.channels)
        elif word == "imagenet" and not isinstance(read, Unstated):
            published = IMAGENET.grey() if read.channels == "grey" else IMAGENET
            read = replace(read, mean=published.mean, std=published.std)
        elif word == "imagenet":
            read = read.published()
        elif isinstance(read, Unstated) and (given := stated.keys() & {"mean", "std"}):
            if len(given) == 1:
                raise InputError(f"classifier: {given.pop()} is stated alone in {self.text!r}; state both mean and std")
            read = Preprocess(size=read.size, channels=read.channels)
        mean, std = (stated.get(key, getattr(read, key)) for key in ("mean", "std"))
        if len(mean) != len(std) and 1 in (len(mean), len(std)):
            stated |= {"mean": mean * max(1, len(std) // len(mean)), "std": std * max(1, len(mean) // len(std))}
        return replace(read, **stated)

    def _names(self, count: int) -> tuple[str, ...]:
        """Returns the names that the spec states, or a file; a network with one logit may have one or two."""
        file, classes = self.options["names"], max(count, 2)
        try:
            listed = "," in file and not Path(file).exists()
            lines = file.split(",") if listed else read_text(Path(file)).splitlines()
            names = tuple(line.strip() for line in lines if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"classifier: {self.text!r} has names that cannot be read ({one_line(error)})") from error
        if len(names) not in (count, classes):
            raise InputError(
                f"classifier: {file} must have {classes} names, one a class of {self.text!r}, got {len(names)}"
            )
        return names


def read_spec(text: str, given: str, own: Collection[str] | None = ()) -> Spec:
    """Returns a spec; ``given`` is the text behind its source, ``own`` the source's own keys, None for any."""
    keys = own or ()
    if own is None:
        keys = [key for part in given.partition("?")[2].split("&") if (key := part.partition("=")[0]).isidentifier()]
    is_path = "?" in given and os.path.exists(given)  # of a path that is too long, Path would raise
    name, options = (given, {}) if is_path else split_options(given, (*keys, *KEYS))
    for key, value in options.items():
        # Of a source that takes any, an empty value is its own to judge.
        if not value and (own is not None or key in KEYS):
            raise InputError(f"classifier: {key} needs a value, as in {key}=VALUE, got none in {text!r}")
    parsed = {key: KEYS[key](key, value) if key in KEYS else value for key, value in options.items()}
    return Spec(text=text, name=name, options=parsed)


def _choice(*known: str) -> Callable[[str, str], str]:
    def chosen(key: str, text: str) -> str:
        if text not in known:
            raise unknown(key, text, known)
        return text

    return chosen


def _pixels(key: str, text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise InputError(f"classifier: {key} must be a number of pixels, at least 1, got {text!r}")
    return int(text)


def _numbers(key: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"classifier: {key} must be numbers separated by commas, got {text!r}")
    return numbers


def _share(key: str, text: str) -> float | None:
    return None if text == "none" else _numbers(key, text)[0]


KEYS: dict[str, Callable[[str, str], Any]] = {
    "preprocess": _choice("imagenet", "raw"),
    "size": _pixels,
    "mean": _numbers,
    "std": _numbers,
    "interpolation": _choice(*get_args(Interpolation)),
    "crop": _share,
    "channels": _choice(*get_args(Channels)),
    "names": lambda _, text: text,
    "head": _choice("softmax", "binary", "multilabel"),
    "weights": lambda _, text: text,
}
"""The options of every classifier, and what reads their text."""
