"""Which options were given on the command line: one that would not be used is refused."""

import typer


def name_of(options: typer.Context, option: str) -> str:
    """Return the name that a command's function has for an option, or for an argument by that very name."""
    return next(p.name for p in options.command.params if p.name is not None and option in p.opts)


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
