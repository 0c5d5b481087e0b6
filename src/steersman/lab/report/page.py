"""A page that stands alone: text, tables and pictures in one HTML file, without scripts or anything outside it.

All text is escaped; only pictures that `steersman.lab.report.images` made stand as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steersman.files import replacing

__all__ = ["Page", "Picture", "Section", "Table", "write_page"]

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text.

    Attributes:
        rows: Cells of each.
        header: The columns' names; none for no header.
        caption: What stands above it.
        numbers: How many columns at the end hold numbers and stand to the right.
        folded: Whether it opens with a tap on its caption.
    """

    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    caption: str = ""
    numbers: int = 0
    folded: bool = False

    @property
    def right(self) -> list[bool]:
        """Whether each column stands to the right."""
        width = len(self.header or next(iter(self.rows), ()))
        return [place >= width - self.numbers for place in range(width)]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as a data URI, and what it shows."""

    data: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading.
        tables: Its tables, first.
        pictures: Then pictures as large as there is room.
        thumbs: Then small ones, side by side.
    """

    title: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    thumbs: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page.

    Attributes:
        kind: What it reports of, above the title.
        title: Its title.
        lines: What stands below, a paragraph each.
        sections: Its parts.
    """

    kind: str
    title: str
    lines: Sequence[str] = ()
    sections: Sequence[Section] = ()


def write_page(path: Path, page: Page) -> None:
    """Writes a page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("steersman.lab.report", ".")
    template = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(TEMPLATE)
    with replacing(path) as beside:
        beside.write_text(template.render(page=page), encoding="utf-8")
