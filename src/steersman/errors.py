"""Errors in what a user gave, in one line: the problem, the value, the fix. Notices are warnings in one line."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from reprlib import Repr

__all__ = ["LONGEST", "InputError", "Notice", "about", "notice", "one_line", "require", "shown", "unknown"]

LONGEST, GIVEN = 600, 80  # characters of a message, and of a file's own text in it

_SHORT = Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = GIVEN


class InputError(ValueError):
    """A setting, name or file that cannot be used; the command line prints it and exits with 2.

    Example:
        >>> import steersman as sm
        >>> try:
        ...     sm.load_recipe("nrgc")
        ... except sm.InputError as error:
        ...     print(error)
        unknown recipe 'nrgc'; did you mean 'nrcg'...
    """


class Notice(UserWarning):
    """A warning of something that a user should know about a run; the command line prints it as one line."""


def notice(text: str) -> None:
    """Warns the user in one line; the same text is shown once, as Python's warnings are."""
    warnings.warn(text, Notice, stacklevel=2)


def shown(value: object) -> str:
    """Returns a value's representation, shortened for a message."""
    text = _SHORT.repr(value)
    return text if len(text) <= 2 * GIVEN else f"{text[: 2 * GIVEN]}…"


def one_line(error: Exception) -> str:
    """Returns the message of an error of another library or of the system in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:LONGEST]}" if lines else type(error).__name__


def require(extra: str, *packages: str, what: str) -> None:
    """Refuses, before anything begins, what needs an optional package that is not installed, and names the extra."""
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f"{what} needs {package.replace('_', '-')}; run pip install 'steersman[{extra}]'")


@contextmanager
def about(kind: str, place: object) -> Iterator[None]:
    """Turns any error within into an `InputError` that names the kind (such as ``denoiser``) and place of a file."""
    try:
        yield
    except InputError as error:
        text = " ".join(str(error).split())
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
        raise InputError(text if str(place) in text else f"{kind}: {str(place)!r} cannot be used; {text}") from error
    except Exception as error:  # a damaged file can fail a library anywhere
        raise InputError(f"{kind}: {str(place)!r} cannot be read ({one_line(error)})") from error


def unknown(kind: str, given: object, known: Iterable[str], *, most: int = 12) -> InputError:
    """Returns the error for a name that is not known, with the nearest names, and at most ``most`` of all."""
    names = list(known)
    folded = {name.lower(): name for name in reversed(names)}
    text = str(given) if len(str(given)) <= GIVEN else f"{str(given)[:GIVEN]}…"
    near = [folded[name] for name in get_close_matches(text.lower(), folded, n=3, cutoff=0.5)]
    listed = ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return InputError(f"unknown {kind} {text!r}; {hint}known: {listed}")
