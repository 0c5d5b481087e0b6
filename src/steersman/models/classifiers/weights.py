"""What classifiers with weights in a file share: the file if it is published, the names of the classes, a card beside.

A published file whose name carries the first digits of its SHA-256 is checked each time that it is read, not only when
it is fetched.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from steersman.errors import InputError, about, one_line
from steersman.files import read_json, read_text
from steersman.models.meta import no_larger_than, weights_size

__all__ = ["LARGEST", "beside", "class_names", "fetched", "fixed_size", "held", "misfit"]

LARGEST = 4096  # pixels across

_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.")


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
            raise InputError(f"num_labels must be at most {size}, the number of bytes of the weights, got {labels}")
    with no_larger_than(4 * size):  # built without memory and then filled, with numbers of a byte and more
        yield


def beside(weights: Path) -> dict[str, Any]:
    """Returns the card of a training that wrote weights, which it left in the same folder; else nothing."""
    card = weights.with_name("card.json")
    if weights.name != "model.safetensors" or not card.is_file():
        return {}
    with about("card", card):
        return read_json(card)


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
                f"classifier: the weights of {spec!r} cannot be fetched ({one_line(error)}); save {url} as {path}"
            ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise InputError(
            f"classifier: {path} is damaged: SHA-256 must be {expected[:8]}…, got {digest[:8]}…; save {url} there"
        )
    return path


def _fetch(url: str, path: Path, digest: str) -> None:
    from urllib.request import Request, urlopen

    # Torch waits for an answer without end.
    urlopen(Request(url, method="HEAD"), timeout=10).close()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(url, str(path), hash_prefix=digest or None)


def fixed_size(build: Callable[[int], nn.Module], state: Mapping[str, Tensor], side: int) -> int:
    """Returns the side of the images that weights are for, of a network that knows the places in an image of one size.

    A place is known by a row of a table, so that a table of another length is of another side. How the one follows from
    the other differs from network to network: each that it may be is built, and the one that the weights fit is taken.

    Args:
        build: Builds the network for a side, without memory for its weights.
        state: The weights.
        side: The network's usual side.

    Returns:
        The side; the usual one where none fits, or where nothing depends on it.
    """
    own = build(side).state_dict()
    differ = [name for name, value in own.items() if name in state and value.shape != state[name].shape]
    candidates = {
        other: None
        for name in differ[:1]
        for was, now in zip(own[name].shape, state[name].shape, strict=False)
        if was != now
        for other in _sides(side, was, now)
    }
    for other in candidates:
        try:
            found = build(other).state_dict()
        except Exception:  # no side of that network, which it may say in any way
            continue
        if all(value.shape == found[name].shape for name, value in state.items() if name in found):
            return other
    return side


def _sides(side: int, was: int, now: int) -> Iterator[int]:
    """Yields the sides at which a table of as many rows as ``was`` at another side may have as many as ``now``."""
    shares = [now / was]  # a row for each place along an edge
    shares += [
        ((now - more) / (was - more)) ** 0.5 for more in range(3) if was > more < now
    ]  # for each place, and more
    shares += [  # for each shift from one place to another, and more
        ((now - more) ** 0.5 + 1) / ((was - more) ** 0.5 + 1) for more in (0, 3) if was > more < now
    ]
    for share in shares:
        if abs(side * share - round(side * share)) < 1e-6 and 1 <= side * share <= LARGEST:
            yield round(side * share)


def misfit(spec: str, error: Exception) -> InputError:
    """Returns the error for weights which are not the network's, from what is said of them."""
    text = " ".join(str(error).split())
    said = text if isinstance(error, InputError) else text.partition(": ")[2]
    said = said if len(said) <= 300 else f"{said[:300]}…"
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
        raise InputError(f"classifier: {file} must have {classes} names, one a class of {spec!r}, got {len(names)}")
    return names
