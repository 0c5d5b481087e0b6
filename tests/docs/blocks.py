"""The code blocks of the pages, as they stand there, and the commands of a shell block."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A code block: its language, its text, and the number of its first line."""

    language: str
    text: str
    line: int


def blocks(page):
    """Returns the code blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in FENCE.finditer(text)]


def commands(text):
    """Returns the commands of a shell block, each as its words; a quotation or a backslash may end a line later."""
    found, held = [], ""
    for line in text.splitlines():
        held += line
        if held.endswith("\\"):
            held = held[:-1]
            continue
        try:
            words = shlex.split(held, comments=True)
        except ValueError:  # a quotation is open
            held += "\n"
            continue
        held = ""
        while "&&" in words:
            place = words.index("&&")
            found.append(words[:place])
            words = words[place + 1 :]
        if words:
            found.append(words)
    assert not held, f"{held!r} does not end"
    return found
