"""What stands after a name, ``NAME?KEY=VALUE&KEY=VALUE``: options of what is loaded by one string."""

from collections.abc import Iterable

from steersman.errors import unknown

__all__ = ["split_options"]


def split_options(text: str, allowed: Iterable[str], kind: str = "option") -> tuple[str, dict[str, str]]:
    """Returns the name and its options by key, whose values may be empty.

    A value may be a path with ``&`` in it: what cannot be an option goes on with the value before it.

    Args:
        text: The name and its options.
        allowed: The keys that there are.
        kind: What a key is called in the error.

    Raises:
        InputError: A key is unknown.
    """
    name, _, given = text.partition("?")
    options: dict[str, str] = {}
    last = None
    for each in filter(None, given.split("&")):
        key, equals, value = each.partition("=")
        if key in allowed:
            options[key], last = value, key
        elif last is not None and options[last] and not (equals and key.isidentifier()):
            options[last] += f"&{each}"
        else:
            raise unknown(kind, key, allowed)
    return name, options
