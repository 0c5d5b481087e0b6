"""Published models: from a folder, else from the cache of the hub or of torch, else downloaded into it.

Nothing is asked for that is in a cache. Without a network, or with ``HF_HUB_OFFLINE=1``, one question of ten seconds at
most ends in a line that says what to download and where to put it.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib import request
from urllib.parse import urlparse

import torch

from steersman.errors import InputError, about, one_line, require
from steersman.files import regular, regular_below

__all__ = ["check_digest", "check_whole", "fetched", "hub_file", "hushed", "load_pretrained", "quiet"]

Loaded = TypeVar("Loaded")

PATIENCE = 10  # seconds for an answer, where the libraries wait without end or try again and again


def load_pretrained(spec: str, name: str, read: Callable[..., Loaded], *, kind: str = "classifier") -> Loaded:
    """Returns a model by a library's loader: of a folder, or of an id on the hub."""

    def tried(**where: bool) -> Loaded:
        try:
            return read(name, **where)
        except InputError:
            raise
        except Exception as error:  # a folder may be damaged in any way
            raise InputError(f"{kind}: {spec!r} cannot be read ({one_line(error)})") from error

    if Path(name).is_dir():
        with about(kind, name):
            regular_below(Path(name))
        return tried(local_files_only=True)
    source = spec.partition(name)[0]
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(
            f"{kind} must be {source}FOLDER of a folder that exists, or {source}ID of the hub, got {spec!r}"
        )
    return _from_hub(
        name,
        tried,
        lacking=f"{kind}: {spec!r} is neither a folder nor in the hub's cache, and the hub does not give it",
        remedy=f"where there is a network, run hf download {name} --local-dir FOLDER, and give {source}FOLDER",
    )


def hub_file(spec: str, repository: str, file: str) -> Path:
    """Returns the path of a file of a classifier's repository in the hub's cache, downloaded where it is not there."""
    from huggingface_hub import hf_hub_download

    return _from_hub(
        repository,
        lambda **where: Path(hf_hub_download(repository, file, **where)),
        lacking=f"classifier: {spec!r} is not in the hub's cache, and the hub does not give it",
        remedy=f"where there is a network, run hf download {repository} {file}, and try again",
    )


def _from_hub(repository: str, read: Callable[..., Loaded], *, lacking: str, remedy: str) -> Loaded:
    """Returns what is read from the hub's cache, else from the hub, where that has it."""
    from huggingface_hub import HfApi

    try:
        return read(local_files_only=True)
    except Exception:  # not in the cache, which the loaders say in classes of their own
        try:
            HfApi().model_info(repository, timeout=PATIENCE)
        except Exception as error:
            raise InputError(f"{lacking} ({type(error).__name__}); {remedy}") from error
    try:
        return read(local_files_only=False)
    except InputError:
        raise
    except Exception as error:  # the network fails in its own classes
        raise InputError(f"{lacking} ({one_line(error)}); {remedy}") from error


def fetched(spec: str, url: str) -> Path:
    """Returns a published file in torch's cache, fetched where it is not there yet, and checked by its digest."""
    from huggingface_hub import constants

    path = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlparse(url).path).name)
    named = re.search(r"-([0-9a-f]{8,64})\.", path.name)  # the first digits of its SHA-256, where its name says them
    digest = named[1] if named else ""
    if not path.is_file():
        try:
            if constants.HF_HUB_OFFLINE:
                raise ConnectionError("HF_HUB_OFFLINE is set")
            request.urlopen(request.Request(url, method="HEAD"), timeout=PATIENCE).close()
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest or None)
        except Exception as error:  # the network fails in its own classes
            raise InputError(
                f"classifier: the weights of {spec!r} cannot be fetched ({one_line(error)}); save {url} as {path}"
            ) from error
    check_digest(path, digest, remedy=f"save {url} there")
    return path


def check_digest(path: Path, expected: str, *, remedy: str) -> None:
    """Refuses a file whose SHA-256 does not begin with these digits."""
    with about("classifier", path), regular(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(expected):
            raise InputError(
                f"classifier: {path} is damaged: SHA-256 must be {expected[:8]}…, got {digest[:8]}…; {remedy}"
            )


def check_whole(model: str, info: Mapping[str, Any]) -> None:
    """Refuses a model whose weights are incomplete, by the library's loading info; the rest would be random."""
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{model} lacks the weights {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}")


@contextmanager
def quiet(source: str, *, kind: str = "classifier") -> Iterator[Any]:
    """Yields transformers without its messages and progress bars, or says which extra has it."""
    require("text", "transformers", what=f"{kind}: {source}")
    import transformers

    with hushed(transformers.utils.logging):
        yield transformers


@contextmanager
def hushed(logging: Any) -> Iterator[None]:  # noqa: ANN401
    """Turns off the messages and progress bars of transformers or diffusers."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
