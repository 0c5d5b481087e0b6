"""Tables as Markdown, to read and to paste."""

from collections.abc import Sequence

__all__ = ["markdown"]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """Returns a table as Markdown.

    Args:
        header: The columns' names.
        rows: As many cells each.
        texts: How many columns, the first ones, are of texts; the others are of numbers, which stand to the right.
    """
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines) + "\n"
