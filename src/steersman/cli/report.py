"""``steersman report``: one page about a folder."""

from pathlib import Path
from typing import Annotated

from steersman.cli.options import argument
from steersman.cli.root import Terminal, require_lab

__all__ = ["report"]


def report(folder: Annotated[Path, argument("Folder of a run, a sweep, a tune or an analysis.")]) -> None:
    """Write a folder's settings, tables, plots and images into one HTML file, which needs no internet access.

    Example: steersman report balls
    """
    require_lab("report")
    from steersman.lab.report.page import report

    Terminal().print(str(report(folder)))
