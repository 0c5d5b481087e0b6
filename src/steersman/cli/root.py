"""The command ``steersman``: how it prints, and how it fails: in one line on standard error, with exit code 2.

A command imports what it runs when it runs, so that no help text waits for torch.
"""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from steersman.errors import InputError, Notice, one_line, require
from steersman.lab.profiling import keep_freed
from steersman.lab.stop import Interrupted, Interruptible, Stopped

__all__ = ["LAB", "Commands", "Terminal", "app", "main", "require_lab"]

LAB = ("jinja2", "matplotlib", "optuna", "scipy", "torch_fidelity")
"""What the extra ``lab`` installs: the packages of measuring, comparing and plotting."""

WIDEST = 1000  # characters of a table's line in a file or a pipe


class _Command(TyperCommand):
    """A command that refuses an option given twice, of which typer would take the last in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for parameter, times in Counter(given).items():
                if times > 1 and not getattr(parameter, "multiple", False):
                    raise InputError(f"{parameter.opts[0]} must be given once, got it {times} times")
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """A group of commands that take each option once, but for those that are to be repeated."""

    def command(self, name: str | None = None, **settings: Any) -> Any:  # noqa: ANN401
        """Registers a command."""
        return super().command(name, cls=_Command, **settings)


app = Commands(
    name="steersman",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        Terminal().print(f"steersman {version('steersman')}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Steer any diffusion model with any classifier, without training either."""


# The base of all complaints about the command line itself, which newer versions of typer do not take from click.
Usage: type[Exception] = typer.BadParameter.__mro__[1]


def require_lab(command: str) -> None:
    """Refuses a command where the packages of the extra ``lab`` are not installed."""
    require("lab", *LAB, what=f"steersman {command}")


class Terminal(Console):
    """A console that prints text as it is: names from outside hold neither markup nor emoji, and lines stay whole."""

    def __init__(self, *, quiet: bool = False, stderr: bool = False) -> None:
        super().__init__(quiet=quiet, stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = WIDEST

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[str | Text]], *, texts: int = 1, title: str | None = None
    ) -> None:
        """Prints a table; the first columns hold texts, the others numbers, which are aligned to the right."""
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index < texts else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.print(table, soft_wrap=False)

    def progress(self) -> Progress:
        """Returns a progress bar, which is gone when it ends."""
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        # Steps with and without guidance differ in speed; a mean over minutes keeps the time left from jumping.
        return Progress(*columns, TimeRemainingColumn(), console=self, transient=True, speed_estimate_period=600)

    def lost(self, names: Sequence[str]) -> None:
        """Names the images that became non-finite, if there are any."""
        if names:
            self.print(f"non-finite images, not written: {', '.join(names)}", style="red")


def main() -> None:
    """Runs the command line, and exits."""
    keep_freed()
    warnings.showwarning = _show
    try:
        with Interruptible():
            code = app(prog_name="steersman", standalone_mode=False)
        sys.exit(code)
    except InputError as error:
        _fail(str(error), 2)
    except Usage as error:
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        _fail(" ".join(message.split()), 2)
    except Stopped as stopped:
        _fail(str(stopped), stopped.code)
    except BrokenPipeError:  # whoever read what is printed has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder without rights: nothing is wrong with the program
        if error.strerror is None:
            raise
        _fail(f"{str(error.filename)!r}: {error.strerror}" if error.filename else error.strerror, 2)
    except Interrupted as interrupted:
        _fail("interrupted; the same command goes on with what is not finished", interrupted.code)
    except (RuntimeError, MemoryError) as error:
        from steersman.batching import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _fail(
            f"the device's memory does not hold the batch ({one_line(error)}); use a smaller --batch-size, or a device "
            "with more memory",
            2,
        )


def _fail(message: str, code: int) -> None:
    if message:  # a bare "steersman" has printed its help
        _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    Terminal(stderr=True).print(f"steersman: {message}")


def _show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: object) -> None:
    """Shows a warning as Python does, and a notice without the place in the code that it comes from."""
    if issubclass(category, Notice):
        _say(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))
