"""Names of stored models on the command line: what they mean where a path may stand, and their completion."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kvant.errors import ModelNameError, ModelNotFoundError
from kvant.files import home

if TYPE_CHECKING:
    from kvant.hub.store import StoredModel

PREFIX = "store:"


def stored_model(given: Path) -> "StoredModel | None":
    """Return the stored model that an argument means: `store:NAME` always, `NAME` if there is no such path.

    None: the argument is a path, whether there is something or not.

    Raises:
        ModelNotFoundError: `store:NAME` names no model.
    """
    text = given.as_posix()
    if not text.startswith(PREFIX) and (given.exists() or not (home() / "store").is_dir()):
        return None
    from kvant.hub.names import ModelName
    from kvant.hub.store import Store

    try:
        name = ModelName.parse(text.removeprefix(PREFIX))
    except ModelNameError:
        if text.startswith(PREFIX):
            raise
        return None
    store = Store.open()
    if not text.startswith(PREFIX) and not store.has(name):
        return None
    return store.find(name)


def model_path(given: Path) -> Path:
    """Return the file of a stored model, or the path as it was given.

    Raises:
        ModelNotFoundError: It could be a name, but there is neither such a model nor such a path.
    """
    found = stored_model(given)
    if found is not None:
        return found.path
    if not given.exists() and _is_name(given.as_posix()):
        near = difflib.get_close_matches(given.as_posix(), [name.removesuffix(":latest") for name in _names()], n=2)
        guess = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ModelNotFoundError(
            f"{given}: there is no such file or directory, and no such model in the store. {guess}"
            "`kvant list` shows what is; "
            f"find it on the hub with `kvant search {given}` and fetch it with `kvant pull`."
        )
    return given


def _is_name(text: str) -> bool:
    from kvant.hub.names import ModelName

    try:
        ModelName.parse(text)
    except ModelNameError:
        return False
    return True


def complete_name(incomplete: str) -> list[str]:
    """Return the names in the store that start so."""
    return [name for name in _names() if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Return names, GGUF files and short names that start so."""
    before, _, start = incomplete.rpartition("/")
    directory = Path(before or ("/" if incomplete.startswith("/") else "."))
    found = set()
    if directory.is_dir():
        for entry in os.scandir(directory):
            if entry.name.startswith(start) and (entry.is_dir() or entry.name.endswith(".gguf")):
                end = "/" if entry.is_dir() else ""
                found.add(f"{incomplete.removesuffix(start)}{entry.name}{end}")
    from kvant.hub.sources.known import short_names

    stored = complete_name(incomplete)
    return sorted(found) + stored + [n for n in short_names() if n.startswith(incomplete) and n not in stored]


def _names() -> Iterator[str]:
    """Read the names from the directory that says them, without opening the store."""
    from kvant.hub.names import ModelName

    top = home() / "store" / "names"
    for path in sorted(top.glob("*/*/*/*.json")):
        host, namespace, model, tag = path.relative_to(top).parts
        try:
            host = host.replace("+", ":")
            yield str(ModelName(host=host, namespace=namespace, model=model, tag=tag.removesuffix(".json")))
        except ModelNameError:
            continue


def as_document(model: "StoredModel") -> dict[str, object]:
    """Return a model as it is printed as JSON."""
    return {
        "name": model.name.tagged,
        "digest": f"sha256:{model.digest}",
        "size_bytes": model.size_bytes,
        "modified_at": model.modified_at.isoformat(),
        "path": str(model.path),
        "is_readable": model.path.exists(),
        "source": model.settings.source,
    }
