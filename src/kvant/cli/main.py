"""The `kvant` command: one module per subcommand, loaded when it is called."""

import sys

import typer

from kvant.cli import console
from kvant.errors import KvantError

app = typer.Typer(
    name="kvant",
    help="Make the best small version of a language model for a device, prove how good it is, and ship it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; exit status 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    try:
        app()
    except KvantError as error:
        console.fail(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        console.fail("Interrupted. Nothing was left half-written; run the same command again to continue.")
        sys.exit(130)


if __name__ == "__main__":
    main()
