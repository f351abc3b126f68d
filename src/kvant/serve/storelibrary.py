"""The models of the local store, as a gateway looks them up."""

import builtins
import tempfile
from pathlib import Path

from kvant.errors import KvantError, ModelNameError, ModelNotFoundError
from kvant.files import CHUNK_BYTES
from kvant.formats.gguf.companions import projector_for
from kvant.formats.gguf.kinds import CLIP
from kvant.formats.gguf.reader import read_gguf
from kvant.hub.names import ModelName
from kvant.hub.store import Store, StoredModel
from kvant.serve.library import Facts, ModelFile, facts


class StoreLibrary:
    """Every model of a store, by its shortest name with its tag; damaged ones are left out of the list.

    A projector is a model of the same name under a tag that begins with `mmproj`; it is no model of its own here. What
    a header says is read once per digest. A model that is kept in parts is listed without being put together.

    Args:
        store: The store; kvant's own by default.

    Attributes:
        store: It; what requests change is changed there.
    """

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store.open()
        self._facts: dict[str, Facts] = {}

    def list(self) -> list[ModelFile]:
        """Return all models, by name."""
        found = []
        for model in self.store.list():
            try:
                file = self._file(model)
                found += [file] * (file.facts.architecture != CLIP)
            except (KvantError, OSError):  # fsck says what is wrong with it
                continue
        return found

    def find(self, name: str) -> ModelFile:
        """Return one model, with its file ready to be read.

        Raises:
            ModelNotFoundError: There is none of that name.
            StoreError: It is damaged.
        """
        try:
            wanted = ModelName.parse(name)
        except ModelNameError as error:
            raise ModelNotFoundError(f"model {name[:200]!r}: is not there, and is no name. {error}") from None
        file = self._file(self.store.find(wanted))
        if file.facts.architecture == CLIP:
            raise ModelNotFoundError(
                f"model {name[:200]!r}: is a projector, which lets the other tags of its name see."
            )
        return file

    def _file(self, model: StoredModel) -> ModelFile:
        known = self._facts.get(model.digest)
        if known is None:
            known = facts(read_gguf(model.path)) if model.path.exists() else self._facts_in_parts(model)
            self._facts[model.digest] = known
        return ModelFile(
            name=model.name.tagged, path=model.path, digest=model.digest, size_bytes=model.size_bytes,
            modified_at=model.modified_at, settings=model.settings, facts=known,
            projector=projector_for(model.path, known.embedding_length) if known.architecture != CLIP else None,
        )  # fmt: skip

    def _facts_in_parts(self, model: StoredModel) -> Facts:
        """Read the headers of a model that is kept in parts, as files that hold nothing else: the rest is a hole."""
        objects = self.store.objects
        layouts = objects.layouts(model.digest)
        with tempfile.TemporaryDirectory(prefix="kvant-header-", ignore_cleanup_errors=True) as directory:
            paths = _names(Path(directory), len(layouts))
            for layout, path in zip(layouts, paths, strict=True):
                source, offset = objects.place(layout.pieces[0].digest)
                _copy_start(source, offset, layout.pieces[0].size, path, layout.size)
            return facts(read_gguf(paths[0]))


def _names(directory: Path, n: int) -> builtins.list[Path]:
    if n == 1:
        return [directory / "model.gguf"]
    return [directory / f"model-{number:05d}-of-{n:05d}.gguf" for number in range(1, n + 1)]


def _copy_start(source: Path, offset: int, length: int, path: Path, size: int) -> None:
    with source.open("rb") as file, path.open("wb") as out:
        file.seek(offset)
        while length > 0 and (chunk := file.read(min(length, CHUNK_BYTES))):
            out.write(chunk)
            length -= len(chunk)
        out.truncate(size)
