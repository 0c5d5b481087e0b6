"""Input that cannot be used, said in one line: what is wrong, what was given, what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["InputError", "one_line", "unknown"]


class InputError(ValueError):
    """A setting, name or file that cannot be used; the command line prints it and exits with 2."""


def one_line(error: Exception) -> str:
    """Returns what another library's error says, in a line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


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
    near = [folded[name] for name in get_close_matches(str(given).lower(), folded, n=3, cutoff=0.5)]
    listed = ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return InputError(f"unknown {kind} {str(given)!r}; {hint}known: {listed}")
