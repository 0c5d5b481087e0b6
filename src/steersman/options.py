"""What stands after a name, ``NAME?KEY=VALUE&KEY=VALUE``: options of what is loaded by one string."""

from collections.abc import Iterable

from steersman.errors import unknown

__all__ = ["split_options"]


def split_options(text: str, allowed: Iterable[str], kind: str = "option") -> tuple[str, dict[str, str]]:
    """Returns the name and its options by key, whose values may be empty.

    Args:
        text: The name and its options.
        allowed: The keys that there are.
        kind: What a key is called in the error.

    Raises:
        InputError: A key is unknown.
    """
    name, _, given = text.partition("?")
    options = {}
    for each in filter(None, given.split("&")):
        key, _, value = each.partition("=")
        if key not in allowed:
            raise unknown(kind, key, allowed)
        options[key] = value
    return name, options
