"""Which options were given on the command line: one that would not be used is refused."""

import typer


def is_given(options: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line, and is not its default."""
    source = options.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse(options: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that would not be used.

    Raises:
        BadParameter: One was given.
    """
    for parameter in options.command.params:
        if parameter.name in names and is_given(options, parameter.name):
            raise typer.BadParameter(f"{parameter.opts[0]}: {why}. Leave it out.")
