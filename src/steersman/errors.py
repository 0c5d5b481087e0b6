"""Input that cannot be used, said in one line: what is wrong, what was given, what is allowed.

What can be used, but otherwise than one may expect, is a `Notice`: a warning that the command line prints as one line.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from reprlib import Repr

__all__ = ["LONGEST", "InputError", "Notice", "about", "notice", "one_line", "require", "shown", "unknown"]

LONGEST, GIVEN = 600, 80  # characters of a line, and of what a file gives in it

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
    """What a user should know of a run that goes on."""


def notice(text: str) -> None:
    """Warns the user, in one line; the same text is shown once, as Python's warnings are."""
    warnings.warn(text, Notice, stacklevel=2)


def shown(value: object) -> str:
    """Returns a value as a message shows it, shortened where it is long."""
    said = _SHORT.repr(value)
    return said if len(said) <= 2 * GIVEN else f"{said[: 2 * GIVEN]}…"


def one_line(error: Exception) -> str:
    """Returns what another library's error says, or the system, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:LONGEST]}" if said else type(error).__name__


def require(extra: str, *packages: str, what: str) -> None:
    """Refuses, before anything begins, what needs an optional package that is not installed, and names the extra."""
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f"{what} needs {package.replace('_', '-')}; run pip install 'steersman[{extra}]'")


@contextmanager
def about(kind: str, place: object) -> Iterator[None]:
    """Turns whatever goes wrong with a file into one line that names it, however the file was damaged.

    Args:
        kind: What is read, such as ``denoiser``.
        place: The file or the folder.

    Raises:
        InputError: Something went wrong.
    """
    try:
        yield
    except InputError as error:
        said = " ".join(str(error).split())
        said = said if len(said) <= LONGEST else f"{said[:LONGEST]}…"
        raise InputError(said if str(place) in said else f"{kind}: {str(place)!r} cannot be used; {said}") from error
    except Exception as error:  # a damaged file can fail a library anywhere
        raise InputError(f"{kind}: {str(place)!r} cannot be read ({one_line(error)})") from error


def unknown(kind: str, given: object, known: Iterable[str], *, most: int = 12) -> InputError:
    """Returns the error for a name that is not among the known ones, nearest names first.

    Args:
        kind: What the name stands for, such as ``"recipe"``.
        given: The name that was given.
        known: All names that would have been accepted.
        most: The largest number of known names that the message lists in full.
    """
    names = list(known)
    folded = {name.lower(): name for name in reversed(names)}
    said = str(given) if len(str(given)) <= GIVEN else f"{str(given)[:GIVEN]}…"
    near = [folded[name] for name in get_close_matches(said.lower(), folded, n=3, cutoff=0.5)]
    listed = ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return InputError(f"unknown {kind} {said!r}; {hint}known: {listed}")
