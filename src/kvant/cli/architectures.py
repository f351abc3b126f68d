"""`kvant convert --list-architectures`: which classes become a GGUF, and who converts them."""

from kvant.cli import console


def show(*, json: bool) -> None:
    """Print every class with its architecture and its converter."""
    from kvant.recipes.convert.architectures import architectures

    rows = architectures()
    if json:
        console.print_json(rows)
        return
    console.table(
        "", ("class", "architecture", "converter", "projector"),
        [(row.name, row.architecture, row.converter, "yes" if row.has_projector else "") for row in rows], left=4,
    )  # fmt: skip
    native = sum(row.converter == "native" for row in rows)
    console.say(
        f"{native} classes by kvant itself, {len(rows) - native} by upstream's converter, which is installed when "
        f"it is first needed."
    )
