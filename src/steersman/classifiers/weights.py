"""What classifiers with weights in a file share: the file if it is published, the names of the classes, the options.

A published file whose name carries the first digits of its SHA-256 is checked each time that it is read, not only when
it is fetched.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import torch

from steersman.classifiers.preprocess import Preprocess
from steersman.errors import InputError, one_line
from steersman.files import read_json, read_text
from steersman.meta import no_larger_than, weights_size
from steersman.options import split_options

__all__ = ["class_names", "fetched", "held", "misfit", "read_options", "uncropped"]

_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.")


def read_options(spec: str, text: str, allowed: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Returns a name and its options, from ``NAME?KEY=VALUE&KEY=VALUE``.

    Raises:
        InputError: An option is unknown, or has no value.
    """
    name, options = split_options(text, allowed)
    for key, value in options.items():
        if not value:
            raise InputError(f"classifier: {spec!r} gives {key} no value; allowed: {key}=VALUE")
    return name, options


@contextmanager
def held(name: str) -> Iterator[None]:
    """Holds what the settings in a folder claim against its weights, while transformers loads it.

    Args:
        name: The folder; an id of the hub is not looked into.

    Raises:
        InputError: They claim more labels, or a larger network.
    """
    size = weights_size(Path(name))
    if not size:
        yield
        return
    settings = read_json(Path(name) / "config.json")
    for each in (settings, *(part for part in settings.values() if isinstance(part, dict))):
        if isinstance(labels := each.get("num_labels"), int | float) and labels > size:  # each gets a name
            raise InputError(f"num_labels: {labels} given; allowed: {size} at most, as the weights have bytes")
    with no_larger_than(4 * size):  # built without memory and then filled, with numbers of a byte and more
        yield


def uncropped(preprocess: Preprocess, options: Mapping[str, str]) -> Preprocess:
    """Returns the same preprocessing, without its crop where the option ``crop=none`` is given.

    Raises:
        InputError: Another value is given.
    """
    if "crop" not in options:
        return preprocess
    if options["crop"] != "none":
        raise InputError(f"classifier: crop={options['crop']} given; allowed: none")
    return replace(preprocess, crop=None)


def fetched(spec: str, url: str) -> Path:
    """Returns where a published file lies in torch's cache, fetched where it is not there yet.

    Raises:
        InputError: It cannot be fetched, or is damaged.
    """
    from huggingface_hub import constants

    path = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlparse(url).path).name)
    found = _DIGEST.search(path.name)
    expected = found[1] if found else ""
    if not path.is_file():
        try:
            if constants.HF_HUB_OFFLINE:
                raise ConnectionError("HF_HUB_OFFLINE is set")
            _fetch(url, path, expected)
        except Exception as error:  # the network fails in its own classes
            raise InputError(
                f"classifier: the weights of {spec!r} cannot be fetched ({one_line(error)}); allowed: {url} as {path}"
            ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise InputError(
            f"classifier: {path} is damaged: SHA-256 {digest[:8]}…, expected {expected[:8]}…; allowed: {url}"
        )
    return path


def _fetch(url: str, path: Path, digest: str) -> None:
    from urllib.request import Request, urlopen

    # Torch waits for an answer without end.
    urlopen(Request(url, method="HEAD"), timeout=10).close()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(url, str(path), hash_prefix=digest or None)


def misfit(spec: str, error: Exception) -> InputError:
    """Returns the error for weights which are not the network's, from what torch says of them."""
    said = " ".join(str(error).split()).partition(": ")[2]
    said = said if len(said) <= 200 else f"{said[:200]}…"
    return InputError(f"classifier: the weights of {spec!r} do not fit the network ({said or one_line(error)})")


def class_names(spec: str, count: int, file: str | None, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns a name for each of a network's classes, of which a network with one logit has two.

    Args:
        spec: What the user gave, for the messages.
        count: How many logits it has.
        file: A text file with a name a line, in the order of the logits; None for the known ones.
        known: Those that the weights come with; where there are none for as many classes, they are numbered.

    Raises:
        InputError: The file cannot be read, or has other than a name a class.
    """
    classes = max(count, 2)
    if file is None:
        return tuple(known) if len(known) in (count, classes) else tuple(map(str, range(classes)))
    try:
        names = tuple(line.strip() for line in read_text(Path(file)).splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"classifier: {spec!r} has names that cannot be read ({one_line(error)})") from error
    if len(names) not in (count, classes):
        raise InputError(f"classifier: {file} has {len(names)} names; allowed: {classes}, a class of {spec!r} each")
    return names
