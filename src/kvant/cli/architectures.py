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
        "", ("class", "architecture", "converter"),
        [(f"{row.name} *" if row.has_projector else row.name, row.architecture, row.converter) for row in rows], left=3,
    )  # fmt: skip
    native = sum(row.converter == "native" for row in rows)
    console.say(
        f"{native} classes by kvant itself, {len(rows) - native} by upstream's converter, which is installed when "
        f"it is first needed. Upstream's converter makes a projector of those with a *, too."
    )
