"""``steersman report``: one page of a folder."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "report"]

EPILOG = "Example: steersman report balls"


def report(folder: Annotated[Path, typer.Argument(help="Folder of a run, a sweep, a tune or an analysis.")]) -> None:
    """Write one HTML page about a folder: settings, tables, plots and images; it opens without internet access."""
    from rich.console import Console
    from rich.markup import escape

    from steersman.lab.report.folders import report

    path = report(folder)
    Console().print(escape(str(path)), soft_wrap=True, highlight=False)
