"""Code that a file names: it is imported only where the user has named it too.

``module:PACKAGE.NAME:FUNCTION`` stands for what a function makes, and to load it is to run it. On the command line, or
in a call, it is the user's own word. In a file, a ``run.yaml``, a recipe or a reproduction, it is whoever's wrote it.
So what is read to be obeyed is searched for it, wherever in the file it stands, and refused unless the user has given
the same text (``--trust`` on the command line). What is read to be compared or shown is not.
"""

from collections.abc import Collection, Iterator, Mapping

from steersman.errors import InputError, shown

__all__ = ["CODE", "code_in", "refuse_code"]

CODE = "module:"
"""What a text begins with that names code."""


def code_in(content: object) -> Iterator[str]:
    """Yields all texts in nested settings that name code."""
    if isinstance(content, str):
        if content.strip().startswith(CODE):
            yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from code_in(key)
            yield from code_in(value)
    elif isinstance(content, list | tuple | set | frozenset):
        for value in content:
            yield from code_in(value)


def refuse_code(content: object, place: object, trusted: Collection[str]) -> None:
    """Refuses settings of a file that name code which the user has not named.

    Args:
        content: The settings.
        place: The file.
        trusted: What the user has named.

    Raises:
        InputError: They do.
    """
    for text in code_in(content):
        if text not in trusted:
            raise InputError(
                f"{str(place)!r} names code to import and run, {shown(text)}; if you trust it, add --trust {text[:80]}"
            )
