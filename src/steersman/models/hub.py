"""Models of the Hugging Face hub: from a folder, else from the cache, else downloaded into it.

The hub is never asked for what is in the cache. Without a network, or with ``HF_HUB_OFFLINE=1``, one question of ten
seconds at most ends in a line that says what to download and where to put it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from steersman.errors import InputError, about, one_line, require
from steersman.files import regular_below

__all__ = ["check_whole", "hub_file", "hushed", "load_pretrained", "quiet"]

Loaded = TypeVar("Loaded")


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
    try:
        return tried(local_files_only=True)
    except InputError:
        _ask(
            name,
            f"{kind}: {spec!r} is neither a folder nor in the hub's cache, and the hub does not give it",
            f"where there is a network, run hf download {name} --local-dir FOLDER, and give {source}FOLDER",
        )
    return tried(local_files_only=False)


def check_whole(model: str, info: Mapping[str, Any]) -> None:
    """Refuses a model whose weights are incomplete, by the library's loading info; the rest would be random."""
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{model} lacks the weights {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}")


def hub_file(spec: str, repository: str, file: str) -> Path:
    """Returns the path of a file of a classifier's repository in the hub's cache, downloaded where it is not there."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except Exception:  # not in the cache, which is said by several classes
        lacking = f"classifier: {spec!r} is not in the hub's cache, and the hub does not give it"
        remedy = f"where there is a network, run hf download {repository} {file}, and try again"
        _ask(repository, lacking, remedy)
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:
        raise InputError(f"{lacking} ({one_line(error)}); {remedy}") from error


def _ask(repository: str, lacking: str, remedy: str) -> None:
    """Refuses what the hub does not have, after one question, where the loaders would retry."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repository, timeout=10)
    except Exception as error:  # the network fails in its own classes
        raise InputError(f"{lacking} ({type(error).__name__}); {remedy}") from error


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
