"""Which models a gateway has: their files, their settings, and what their headers say."""

import hashlib
import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from kvant.errors import KvantError, ModelNotFoundError
from kvant.formats.gguf.companions import Projector, projector_for, projectors_beside
from kvant.formats.gguf.kinds import check_kind, makes_vectors, reranks
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.spec import SHARD_NAME
from kvant.generate.templates import abilities
from kvant.hub.manifest import ModelSettings
from kvant.metadata import StringArray
from kvant.model import Model
from kvant.quant.presets import PRESETS
from kvant.tensors import n_bytes

_MAX_VALUE_CHARS = 16384
_MAX_ITEMS = 16
_TEMPLATE = "tokenizer.chat_template"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file's header says.

    Attributes:
        architecture: llama.cpp's name of it.
        parameters: Weights.
        context_length: Tokens it was trained for; 0 if not told.
        embedding_length: Numbers in a hidden state; 0 if not told.
        quantization: The preset's name, or the most used block type's.
        types: Tensors of every block type.
        type_bytes: Bytes of every block type.
        has_template: Whether it has a chat template.
        capabilities: `completion`, `embedding`, `tools`, ..., as Ollama names them.
        metadata: The header's values; long texts and arrays are cut.
    """

    architecture: str
    parameters: int
    context_length: int
    embedding_length: int
    quantization: str
    types: dict[str, int]
    type_bytes: dict[str, int]
    has_template: bool
    capabilities: list[str]
    metadata: dict[str, Any]


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be served.

    Attributes:
        name: What a client calls it.
        path: Its GGUF file, or the first of its shards.
        digest: SHA-256 hex that changes when the model does.
        size_bytes: Bytes of its files, without the projector's.
        modified_at: When it last changed, UTC.
        settings: What was set for it.
        facts: What its header says.
        projector: What lets it see or hear.
    """

    name: str
    path: Path
    digest: str
    size_bytes: int
    modified_at: datetime
    settings: ModelSettings
    facts: Facts
    projector: Projector | None = None

    @property
    def identity(self) -> str:
        """What changes when the model or its projector does."""
        seen = self.projector
        return f"{self.digest} {seen.path} {seen.size_bytes}" if seen else self.digest

    @property
    def total_bytes(self) -> int:
        """Bytes of its files and its projector's."""
        return self.size_bytes + (self.projector.size_bytes if self.projector else 0)

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, in Ollama's words; a template of its settings counts in place of its own."""
        known, template = self.facts.capabilities, self.settings.template
        if template is not None and "completion" in known:
            known = ["completion", *abilities(template)]
        return known + (self.projector.abilities if self.projector and "completion" in known else [])


class Library(Protocol):
    """Where a gateway looks models up."""

    def list(self) -> list[ModelFile]:
        """Return all models, by name."""
        ...

    def find(self, name: str) -> ModelFile:
        """Return one model.

        Raises:
            ModelNotFoundError: There is none of that name.
        """
        ...


class DirectoryLibrary:
    """Every GGUF file under a directory; its name is its path there without `.gguf`, `:latest` is understood.

    Files that are no GGUF models are left out. Headers are read once, and again when a file changes. The digest covers
    path, size and time, not the weights: hashing those at every start would take minutes.

    Args:
        root: The directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Path, tuple[str, ModelFile]] = {}

    def list(self) -> list[ModelFile]:
        """Return all models, by name."""
        files = (self._open(path) for path in sorted(self.root.rglob("*.gguf")) if _is_first(path))
        return [file for file in files if file is not None]

    def find(self, name: str) -> ModelFile:
        """Return one model; names are looked up among those listed, never made into paths.

        Raises:
            ModelNotFoundError: There is none of that name.
        """
        wanted = name.removesuffix(":latest")
        for path in sorted(self.root.rglob("*.gguf")):
            if _is_first(path) and self._name(path) == wanted:
                file = self._open(path)
                if file is not None:
                    return file
        raise ModelNotFoundError(f"model {name[:200]!r}: is not there. See the list at /v1/models.")

    def _name(self, path: Path) -> str:
        stem = path.relative_to(self.root).with_suffix("").as_posix()
        match = SHARD_NAME.fullmatch(Path(stem).name + ".gguf")
        return (Path(stem).parent / match["stem"]).as_posix() if match else stem

    def _open(self, path: Path) -> ModelFile | None:
        """Return what is known of a file; None if it is no model, or not inside the directory."""
        try:
            if not path.resolve().is_relative_to(self.root.resolve()):
                return None
            status = path.stat()
            facts = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
            for projector in projectors_beside(path):
                status = projector.stat()
                facts += f"\0{projector}\0{status.st_size}\0{status.st_mtime_ns}"
            digest = hashlib.sha256(facts.encode()).hexdigest()
            known = self._known.get(path)
            if known is not None and known[0] == digest:
                return known[1]
            file = model_file(self._name(path), path, digest)
            if file.projector and not file.projector.path.resolve().is_relative_to(self.root.resolve()):
                file = msgspec.structs.replace(file, projector=None)
        except (KvantError, OSError):
            return None
        self._known[path] = (digest, file)
        return file


def _is_first(path: Path) -> bool:
    """Whether a file is a model's only or first shard."""
    match = SHARD_NAME.fullmatch(path.name)
    return match is None or int(match["number"]) == 1


def model_file(name: str, path: Path, digest: str, settings: ModelSettings | None = None) -> ModelFile:
    """Read a model's header.

    Raises:
        FormatError: The file is damaged, or holds no model.
    """
    model = read_gguf(path)
    check_kind(model)
    return ModelFile(
        name=name,
        path=path,
        digest=digest,
        size_bytes=sum(part.stat().st_size for part in model.files),
        modified_at=datetime.fromtimestamp(os.stat(path).st_mtime, UTC),  # noqa: PTH116
        settings=settings or ModelSettings(),
        facts=facts(model),
        projector=projector_for(path, model.hyper("embedding_length", 0)),
    )


def facts(model: Model) -> Facts:
    """Return what a model's header says, bounded in size."""
    types = Counter(tensor.block_type.name for tensor in model.tensors.values())
    sizes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        sizes[tensor.block_type.name] += n_bytes(tensor)
    template = model.get(_TEMPLATE)
    return Facts(
        architecture=model.architecture,
        parameters=model.n_weights,
        context_length=model.hyper("context_length", 0),
        embedding_length=model.hyper("embedding_length", 0),
        quantization=_quantization(model, types),
        types=dict(types.most_common()),
        type_bytes=dict(sizes.most_common()),
        has_template=isinstance(template, str),
        capabilities=_capabilities(model, template if isinstance(template, str) else ""),
        metadata={key: _shown(value.value) for key, value in model.metadata.items()},
    )


def _quantization(model: Model, types: Counter[str]) -> str:
    number = model.get("general.file_type")
    for preset in PRESETS.values():
        if isinstance(number, int) and preset.file_type == number:
            return preset.name
    sizes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        if len(tensor.shape) > 1:
            sizes[tensor.block_type.name] += 1
    return (sizes or types).most_common(1)[0][0] if types else "unknown"


def _capabilities(model: Model, template: str) -> list[str]:
    """What a model can do, in Ollama's words, told by its kind and by what its template mentions; `rerank` is ours."""
    if reranks(model):
        return ["rerank"]
    if makes_vectors(model) or model.get(f"{model.architecture}.pooling_type") is not None:
        return ["embedding"]
    return ["completion", *abilities(template)]


def _shown(value: object) -> Any:
    """A header's value for people and JSON: long texts and arrays are cut."""
    if isinstance(value, str):
        return value[:_MAX_VALUE_CHARS]
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, StringArray):
        return [str(value[i])[:256] for i in range(min(len(value), _MAX_ITEMS))]
    if hasattr(value, "tolist"):
        return value[:_MAX_ITEMS].tolist()  # type: ignore[index]
    return None
