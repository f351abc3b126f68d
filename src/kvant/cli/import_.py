"""`kvant import`: put a file into the store."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.errors import FormatError, ModelNameError, OutputExistsError
from kvant.units import format_bytes

if TYPE_CHECKING:
    from kvant.hub.manifest import ModelSettings
    from kvant.hub.store import Store, StoredModel

_VARIANT = re.compile(r"(?P<model>.+)[-._](?P<tag>(?:I?Q|TQ|BF|F|MXFP)\d\w*)", re.IGNORECASE)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def import_(
    options: typer.Context,
    file: Annotated[Path, typer.Argument(help="A GGUF file, any shard of one, or a bundle.", show_default=False)],
    name: Annotated[
        str | None, typer.Argument(help="What to call it; by default what its file or bundle says.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take a name that another model has.")] = False,
    move: Annotated[bool, typer.Option("--move", help="Take the GGUF file away instead of copying it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the models as JSON.")] = False,
) -> None:
    """Put a GGUF file, or a bundle that `kvant export` wrote, into the store.

    Every byte is hashed. Tensors that are in the store already are not kept twice. Without a name, the file's name is
    taken: `SmolLM2-135M-Q4_K_M.gguf` becomes `smollm2-135m:Q4_K_M`. A passport that `kvant optimize` wrote beside the
    file comes with it.

    \b
    Examples:
      kvant import SmolLM2-135M-Q4_K_M.gguf
      kvant import model-00001-of-00003.gguf me/model:q8
      kvant import models.tar
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.cli.stored import as_document
    from kvant.hub.bundle import is_bundle
    from kvant.hub.store import Store

    if not file.is_file():
        raise FormatError(f"{file}: is not a file. Give the path of a GGUF file or a bundle.")
    bundled = is_bundle(file)
    if bundled:
        refuse(options, ("move",), "is for GGUF files, and this is a bundle, which is copied from")
    store = Store.open()
    before = store.usage()
    with console.progress(quiet=as_json) as progress:
        if bundled:
            models = list(store.import_bundle(file, progress, name=name, overwrite=overwrite))
        else:
            target = name or name_of_file(file)
            _check_free(store, target, overwrite=overwrite)
            models = [store.import_file(file, target, _settings(file), progress=progress, move=move)]
    if as_json:
        console.print_json([as_document(model) for model in models])
        return
    grown = store.usage() - before
    _print(models, grown)


def _print(models: "list[StoredModel]", grown: int) -> None:
    for model in models:
        console.say(f"{model.name.tagged} is sha256:{model.digest[:12]}, {format_bytes(model.size_bytes)}.")
    shared = sum(model.size_bytes for model in models) - grown
    if shared > 1 << 20:
        console.say(f"The store grew by {format_bytes(max(grown, 0))}; it had the rest already.")


def _settings(file: Path) -> "ModelSettings | None":
    """What belongs to a file beside its weights: where it is from, and the passport beside it; None without one."""
    from kvant.formats.gguf.reader import read_gguf
    from kvant.hub.manifest import ModelSettings
    from kvant.hub.passports import beside

    passport = beside(file, sum(part.stat().st_size for part in read_gguf(file).files))
    source = str(file).encode(errors="replace").decode()
    return None if passport is None else ModelSettings(source=source, passport=passport)


def _check_free(store: "Store", name: str, *, overwrite: bool) -> None:
    if store.has(name) and not overwrite:
        raise OutputExistsError(f"{name}: is in the store already. Choose another name or pass --overwrite.")


def name_of_file(file: Path) -> str:
    """Return the name that a file's name suggests: what looks like a variant becomes the tag.

    Raises:
        ModelNameError: None of it can be a name.
    """
    stem = _SHARD.sub("", file.name.removesuffix(".gguf"))
    match = _VARIANT.fullmatch(stem)
    model, tag = (match["model"], match["tag"]) if match else (stem, "latest")
    model = re.sub(r"[^a-z0-9_.-]+|\.{2,}", "-", model.lower()).strip("-.")
    if not model:
        raise ModelNameError(f"{file.name}: says no name for the model. Give one after it.")
    return f"{model}:{tag}"
