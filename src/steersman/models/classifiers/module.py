"""One's own classifier, by the name of a function that makes it: ``module:PACKAGE.NAME:FACTORY``.

The function takes no arguments and returns a `Classifier`; or a network with the names of its classes as ``names``,
which maps images in [-1, 1], at the sample's own size, to logits: of a softmax, or as its attribute ``binary`` or
``multilabel`` says. The module is installed, or lies in the current
folder; it alone is imported, and runs as any program does.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

from torch import nn

from steersman.errors import InputError, one_line, unknown
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.preprocess import RAW
from steersman.models.classifiers.stated import NOTHING, Stated

__all__ = ["imported", "load_module", "make"]


def load_module(name: str, stated: Stated = NOTHING) -> Classifier:
    """Returns the classifier that a function makes.

    Args:
        name: ``PACKAGE.NAME:FACTORY``.
        stated: What else its spec says.

    Raises:
        InputError: The module or the function is not there, fails, or makes something else.
    """
    made = make(name)
    if isinstance(made, Classifier):
        return made
    called = name.replace(":", ".")
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise InputError(f"classifier: {called}() must return a Classifier, or a network with names, got a {kind}")
    names = getattr(made, "names", None)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(each, str) for each in names):
        raise InputError(
            f"classifier: the network of {called}() must have names, a list of its classes' names, got none"
        )
    binary, multilabel = (bool(getattr(made, head, False)) for head in ("binary", "multilabel"))
    return Classifier(made, preprocess=RAW, names=names, binary=binary, multilabel=multilabel)


def make(name: str, kind: str = "classifier") -> object:
    """Returns what a function makes.

    Args:
        name: ``PACKAGE.NAME:FACTORY``.
        kind: What it is to make, for the messages.

    Raises:
        InputError: The module or the function is not there, or fails.
    """
    factory = imported(name, kind)
    with _current_folder():
        try:
            return factory()
        except InputError:
            raise
        except Exception as error:  # it is the user's own code, which may fail in any way
            raise InputError(f"{kind}: {name.replace(':', '.')}() failed ({one_line(error)})") from error


def imported(name: str, kind: str) -> Callable[..., object]:
    """Returns a function or class by its name.

    Args:
        name: ``PACKAGE.NAME:FUNCTION``.
        kind: What it is for, for the messages.

    Raises:
        InputError: The module or what is wanted of it is not there.
    """
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise InputError(f"{kind} must be given as module:PACKAGE.NAME:FUNCTION, got 'module:{name}'")
    with _current_folder():
        try:
            found = import_module(module)
        except Exception as error:  # it is the user's own code, which may fail in any way
            raise InputError(f"{kind}: module {module!r} cannot be imported ({one_line(error)})") from error
    if not callable(getattr(found, function, None)):
        offered = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
        raise unknown(f"function of module {module!r}", function, offered)
    return getattr(found, function)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Lets modules be found in the current folder too, after all others, so that it hides none."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before
