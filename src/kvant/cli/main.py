"""The `kvant` command: one module per subcommand; each imports its heavy parts when it is called."""

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from kvant._version import __version__
from kvant.cli import consent, console, interrupt
from kvant.cli.advise import advise
from kvant.cli.bench import bench
from kvant.cli.calibrate import calibrate
from kvant.cli.convert import convert
from kvant.cli.copy import copy
from kvant.cli.create import create
from kvant.cli.evaluate import evaluate
from kvant.cli.export import export
from kvant.cli.fsck import fsck
from kvant.cli.gc import gc
from kvant.cli.import_ import import_
from kvant.cli.inspect import inspect
from kvant.cli.key import key
from kvant.cli.list import list_
from kvant.cli.optimize import optimize
from kvant.cli.parity import parity
from kvant.cli.pull import pull
from kvant.cli.quantize import quantize
from kvant.cli.rebuild import rebuild
from kvant.cli.rm import rm
from kvant.cli.run import run
from kvant.cli.search import search
from kvant.cli.serve import serve
from kvant.cli.show import show
from kvant.cli.top import top
from kvant.errors import ConverterMissingError, KvantError
from kvant.files import check_path_name, is_text, printable

app = typer.Typer(
    name="kvant",
    help="Make the best small version of a language model for a device, prove how good it is, and ship it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FAILED, INTERRUPTED = 1, 130

CONTINUED = frozenset({"calibrate", "evaluate", "optimize", "pull", "rebuild"})
"""Commands of which what is done is kept, so that the same command goes on from there; `quantize` says its own word."""


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a command raises into one line on standard error and an exit status.

    1 failed, 130 interrupted; wrong use (2) is typer's. A defect of kvant's own keeps its traceback.
    """

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            _check_text((*args, *kwargs.values()))
            return command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output has seen enough
            raise typer.Exit(FAILED) from None
        except ConverterMissingError as error:
            if consent.agreed(error.plan):
                return call(*args, **kwargs)
            console.fail(str(error))
            raise typer.Exit(FAILED) from None
        except KvantError as error:
            console.fail(str(error))
            raise typer.Exit(FAILED) from None
        except OSError as error:
            console.fail(f"{error.filename or 'input or output'}: {error.strerror or error}.")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            kept = " Run the same command again to continue." if command.__name__ in CONTINUED else ""
            console.fail(f"interrupted; nothing is left half-written.{kept}")
            raise typer.Exit(INTERRUPTED) from None

    return call


def _check_text(values: Iterable[Any]) -> None:
    """Check what was given to a command: names and texts that are not UTF-8 fit in nothing that kvant writes.

    Raises:
        KvantError: One is not.
    """
    for value in values:
        if isinstance(value, Path):
            check_path_name(value)
        elif isinstance(value, str) and not is_text(value):
            raise KvantError(f"{printable(value)}: this is not UTF-8. Give it in that encoding.")
        elif isinstance(value, list | tuple):
            _check_text(value)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.say(f"kvant {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Make the best small version of a language model for a device, prove how good it is, and ship it."""


# In alphabetical order; a command's name is its function's, its help its docstring.
COMMANDS: tuple[Callable[..., Any], ...] = (
    advise, bench, calibrate, convert, copy, create, evaluate, export, fsck, gc, import_, inspect, key, list_, optimize,
    parity, pull, quantize, rebuild, rm, run, search, serve, show, top,
)  # fmt: skip
for _command in COMMANDS:
    app.command(_command.__name__.rstrip("_"))(guarded(_command))


def main() -> None:
    """Run the command line."""
    # NumPy's BLAS starts a thread per core that spins beside our own; nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    interrupt.watch()
    from kvant.runtime.sandbox.spawn import shield

    shield()
    app()


if __name__ == "__main__":
    main()
