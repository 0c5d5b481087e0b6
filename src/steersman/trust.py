"""Code that settings name, as ``module:PACKAGE.NAME:FUNCTION``.

Loading it runs it. In a call or on the command line that is the user's own word; in a file (a run, a recipe, a
reproduction) it is its author's, so that the file is refused unless the user has named the same code (``--trust``).
"""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

from steersman.errors import InputError, one_line, shown, unknown

__all__ = ["CODE", "call_function", "code_in", "import_function", "refuse_code"]

CODE = "module:"
"""The beginning of a text that names code."""


def code_in(content: object) -> Iterator[str]:
    """Yields all texts in nested settings that name code."""
    if isinstance(content, str):
        if content.strip().startswith(CODE):
            yield content
    elif isinstance(content, Mapping):
        for pair in content.items():
            yield from code_in(pair)
    elif isinstance(content, list | tuple | set | frozenset):
        for value in content:
            yield from code_in(value)


def refuse_code(content: object, place: object, trusted: Collection[str]) -> None:
    """Refuses settings of a file that name code beside the trusted."""
    for text in code_in(content):
        if text not in trusted:
            raise InputError(
                f"{str(place)!r} names code to import and run, {shown(text)}; if you trust it, add --trust {text[:80]}"
            )


def import_function(name: str, kind: str) -> Callable[..., object]:
    """Returns the function or class ``PACKAGE.NAME:FUNCTION``; ``kind`` says in messages what it is for.

    The module is installed or lies in the current folder.
    """
    module_name, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"{kind} must be given as module:PACKAGE.NAME:FUNCTION, got 'module:{name}'")
    with _current_folder():
        try:
            module = import_module(module_name)
        except Exception as error:  # the user's own code may fail in any way
            raise InputError(f"{kind}: module {module_name!r} cannot be imported ({one_line(error)})") from error
    if not callable(getattr(module, function, None)):
        offered = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown(f"function of module {module_name!r}", function, offered)
    return getattr(module, function)


def call_function(name: str, kind: str) -> object:
    """Returns what the function ``PACKAGE.NAME:FUNCTION`` returns; ``kind`` says in messages what that is."""
    function = import_function(name, kind)
    with _current_folder():
        try:
            return function()
        except InputError:
            raise
        except Exception as error:  # the user's own code may fail in any way
            raise InputError(f"{kind}: {name.replace(':', '.')}() failed ({one_line(error)})") from error


@contextmanager
def _current_folder() -> Iterator[None]:
    """Adds the current folder to the import path, last, so that it hides no other module."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before
