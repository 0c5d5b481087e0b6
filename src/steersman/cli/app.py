"""The command ``steersman`` and how it fails: one line on standard error, exit code 2."""

import sys

import typer
from rich.console import Console

from steersman.errors import InputError

__all__ = ["app", "main"]

app = typer.Typer(
    name="steersman",
    help="Steer any diffusion model with any classifier, without training either.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the command line."""
    try:
        app()
    except InputError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"steersman: {error}", markup=False)
        sys.exit(2)
