"""The command ``steersman`` and how it fails: one line on standard error, exit code 2."""

import functools
import os
import sys
import warnings
from collections.abc import Callable

import typer
from rich.console import Console

from steersman.errors import InputError, Notice, one_line, require
from steersman.lab.speed.profiling import keep_freed
from steersman.lab.stop import Interrupted, Interruptible, Stopped

__all__ = ["LAB", "app", "in_lab", "main"]

LAB = ("jinja2", "matplotlib", "optuna", "scipy", "torch_fidelity")
"""What the extra ``lab`` installs: the packages of measuring, comparing and plotting."""

app = typer.Typer(
    name="steersman",
    help="Steer any diffusion model with any classifier, without training either.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Usage: type[Exception] = typer.BadParameter.__mro__[1]
"""The base of all complaints about the command line itself."""


def in_lab(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command that is refused at its start where the packages of the extra ``lab`` are not installed."""

    @functools.wraps(command)
    def checked(*args: object, **kwargs: object) -> None:
        require("lab", *LAB, what=f"steersman {command.__name__}")
        command(*args, **kwargs)

    return checked


def main() -> None:
    """Runs the command line, and exits."""
    keep_freed()
    warnings.showwarning = _show
    try:
        with Interruptible():
            code = app(standalone_mode=False)
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
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"steersman: {message}", markup=False)


def _show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: object) -> None:
    """Shows a warning as Python does, and a notice without the place in the code that it comes from."""
    if issubclass(category, Notice):
        _say(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))
