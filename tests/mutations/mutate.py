"""Damage to files: what happens to them on disks, in transfers and in editors, and what somebody means ill with."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import yaml

__all__ = ["Mutation", "mutations"]

HEAD = 3000  # bytes at either end, where most formats have their structure
NUMBERS = (b"0", b"1", b"7", b"-3", b"33", b"1000000000", b"1000000000000", b"1e308", b"9" * 5000)
VALUES = (
    *(None, True, False, -1, 0, 1, 3, 17, 10**6, 10**9, 10**12, 10**30, 0.1, -2.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), "", "x", "os.system", "a\nb\rc\u2028d", "x" * 3000, "0" * 5000),
    *([], {}, [1, 2], [1e9] * 3, ["a", None], {"a": 1}, {"0": "a"}, [[[]]], 100 * "[" + 100 * "]"),
)


@dataclass(frozen=True)
class Mutation:
    """What became of a file.

    Attributes:
        kind: How it was damaged.
        content: What is in it now; None where there is a directory or a pipe in its place.
        structure: Whether the damage is surely not among the values of weights.
    """

    kind: str
    content: bytes | None
    structure: bool


def mutations(content: bytes, others: list[bytes], chance: Random) -> Iterator[Mutation]:
    """Yields mutations of a file without end, each of one of the kinds in turn.

    Args:
        content: What was in it.
        others: What is in files of other formats.
        chance: What draws.
    """
    text = _is_text(content)
    while True:
        for kind, change in KINDS.items():
            changed = change(content, chance)
            if changed != content:
                yield Mutation(kind, changed, text or kind == "value")
        yield Mutation("other format", chance.choice(others), True)
        if chance.random() < 0.2:
            yield Mutation("empty", b"", True)
            yield Mutation("directory", None, True)
            yield Mutation("pipe", None, True)
            yield Mutation("text", b"<html>not found</html>\n", True)
            yield Mutation("deep", 200_000 * chance.choice((b"[", b'{"a":', b"- ", b"(")), True)


def _slice(content: bytes, chance: Random) -> tuple[int, int]:
    """Returns the ends of a slice of any length, small ones most often."""
    size = len(content)
    span = min(size, HEAD)
    start = chance.choice((chance.randrange(span), size - 1 - chance.randrange(span), chance.randrange(size)))
    return start, min(size, start + int(2 ** chance.uniform(0, max(1, size.bit_length()))))


def _truncated(content: bytes, chance: Random) -> bytes:
    return content[: _slice(content, chance)[0]]


def _flipped(content: bytes, chance: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[_slice(content, chance)[0]] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _overwritten(content: bytes, chance: Random) -> bytes:
    start, end = _slice(content, chance)
    run = chance.choice((bytes(end - start), b"\xff" * (end - start), chance.randbytes(end - start)))
    return content[:start] + run + content[end:]


def _deleted(content: bytes, chance: Random) -> bytes:
    start, end = _slice(content, chance)
    return content[:start] + content[end:]


def _inserted(content: bytes, chance: Random) -> bytes:
    start, _ = _slice(content, chance)
    return content[:start] + chance.randbytes(chance.randrange(1, 40)) + content[start:]


def _duplicated(content: bytes, chance: Random) -> bytes:
    start, end = _slice(content, chance)
    return content[:end] + content[start:]


def _renumbered(content: bytes, chance: Random) -> bytes:
    """With another number in place of one that is written out."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:100_000]))
    if not found:
        return content
    one = chance.choice(found)
    return content[: one.start()] + chance.choice(NUMBERS) + content[one.end() :]


def _revalued(content: bytes, chance: Random) -> bytes:
    """With another value in place of one of JSON, of YAML, or of a safetensors' header; or without one."""
    if _is_text(content):
        kind = json if content.lstrip()[:1] in (b"{", b"[") else yaml
        lines = content.splitlines() if kind is json and content.count(b"\n{") else [content]  # JSON, one a line
        place = chance.randrange(len(lines))
        lines[place] = _with_another(lines[place], kind, chance)
        return b"\n".join(lines) + b"\n" * (len(lines) > 1)
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    if not header.startswith(b"{"):
        return content
    changed = _with_another(header, json, chance)
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


def _with_another(text: bytes, kind, chance: Random) -> bytes:
    whole = json.loads(text) if kind is json else yaml.safe_load(text)
    places = list(_places(whole))
    if chance.random() < 0.05 or not places:
        whole = chance.choice(VALUES)
    else:
        inside, key = chance.choice(places)
        if chance.random() < 0.1:
            del inside[key]
        else:
            inside[key] = chance.choice(VALUES)
    return (json.dumps(whole) if kind is json else yaml.safe_dump(whole)).encode()


def _places(value) -> Iterator[tuple]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


KINDS = {
    "value": _revalued,
    "flip": _flipped,
    "number": _renumbered,
    "truncate": _truncated,
    "overwrite": _overwritten,
    "delete": _deleted,
    "insert": _inserted,
    "duplicate": _duplicated,
}
