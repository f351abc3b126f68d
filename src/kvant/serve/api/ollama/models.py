"""Ollama's API about models: tags, show, ps, version, embeddings.

Source: Ollama 0.32 server/routes.go, api/types.go.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from kvant._version import __version__
from kvant.errors import ModelfileError
from kvant.formats.gguf.reader import read_gguf
from kvant.generate.sampling import context_wanted, unknown
from kvant.hub.modelfile import modelfile_of, write_modelfile
from kvant.serve import page
from kvant.serve.api.answer import Answer, Output
from kvant.serve.api.embeddings import embed as compute
from kvant.serve.api.keepalive import seconds
from kvant.serve.api.ollama.library import find
from kvant.serve.api.ollama.types import (
    Details,
    EmbeddingsRequest,
    EmbedRequest,
    EmbedResponse,
    ListedModel,
    Running,
    RunningModel,
    ShowRequest,
    ShowResponse,
    Tags,
    Version,
)
from kvant.serve.api.wire import as_json, note_ignored, read
from kvant.serve.gateway import gateway
from kvant.serve.library import Facts, ModelFile
from kvant.serve.wording import OLLAMA

SPOKEN = "0.32.0"
"""Version of Ollama whose API this is; clients compare it with what they need."""
FOREVER = timedelta(days=36500)
_LONG = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")


async def root(request: Request) -> Response:
    """GET /: what Ollama says, which clients look for; a browser is sent to the web page."""
    if page.wants_page(request):
        return page.to_page(request)
    return PlainTextResponse("Ollama is running")


async def version(_: Request) -> Response:
    """GET /api/version."""
    return as_json(Version(SPOKEN, __version__))


async def tags(request: Request) -> Response:
    """GET /api/tags: the models there are."""
    files = await asyncio.to_thread(gateway(request).library.list)
    files.sort(key=lambda file: file.modified_at, reverse=True)
    return as_json(Tags([_listed(file) for file in files]))


async def running(request: Request) -> Response:
    """GET /api/ps: the models that are loaded, the longest to stay first."""
    now = datetime.now(UTC)
    models = []
    for loaded in gateway(request).scheduler.loaded():
        file = loaded.file
        models.append(
            RunningModel(
                name=tagged(file.name), model=tagged(file.name), size=loaded.size_bytes, digest=file.digest,
                details=details(file), expires_at=(loaded.expires_at or now + FOREVER).isoformat(), size_vram=0,
                context_length=loaded.context,
            )
        )  # fmt: skip
    models.sort(key=lambda model: model.expires_at, reverse=True)
    return as_json(Running(models))


async def show(request: Request) -> Response:
    """POST /api/show: what a model is."""
    body = await read(request, ShowRequest)
    file = await find(request, body.model or body.name or "")
    settings = file.settings
    info = {k: None if k in _LONG and not body.verbose else v for k, v in file.facts.metadata.items()}
    info["general.parameter_count"] = file.facts.parameters
    template = settings.template or str(file.facts.metadata.get("tokenizer.chat_template") or "")
    system = body.system if body.system is not None else settings.system or ""
    return as_json(
        ShowResponse(
            license="\n".join(settings.license),
            modelfile=_modelfile(file, template, system),
            parameters=_parameters(settings.parameters | (body.options or {})),
            template=template,
            system=system,
            details=details(file),
            messages=[{"role": m.role, "content": m.content} for m in settings.messages] or None,
            model_info=info,
            projector_info=_projector(file),
            tensors=await asyncio.to_thread(_tensors, file) if body.verbose else None,
            capabilities=file.capabilities,
            modified_at=file.modified_at.isoformat(),
        )
    )


async def embed(request: Request) -> Response:
    """POST /api/embed: vectors of texts."""
    body = await read(request, EmbedRequest)
    note_ignored(request, unknown(body.options))
    file = await find(request, body.model)
    texts = [body.input] * bool(body.input) if isinstance(body.input, str) else body.input

    async def run(out: Output) -> None:
        begun = time.perf_counter_ns()
        made = await compute(
            request, file, list(texts), dimensions=body.dimensions, keep_alive=seconds(body.keep_alive),
            context=context_wanted(file.settings.parameters, body.options or {}), truncate=body.truncate is not False,
        )  # fmt: skip
        await out.whole(
            EmbedResponse(
                model=body.model, embeddings=made.vectors, total_duration=time.perf_counter_ns() - begun,
                load_duration=int(made.load_s * 1e9), prompt_eval_count=made.n_tokens,
            )
        )  # fmt: skip

    return Answer(run, OLLAMA)


async def embeddings(request: Request) -> Response:
    """POST /api/embeddings: the vector of a text, in the older form."""
    body = await read(request, EmbeddingsRequest)
    note_ignored(request, unknown(body.options))
    file = await find(request, body.model)

    async def run(out: Output) -> None:
        made = await compute(
            request, file, [body.prompt] if body.prompt else [], keep_alive=seconds(body.keep_alive),
            context=context_wanted(file.settings.parameters, body.options or {}), truncate=body.truncate is not False,
        )  # fmt: skip
        await out.whole({"embedding": made.vectors[0] if made.vectors else []})

    return Answer(run, OLLAMA)


def tagged(name: str) -> str:
    """Return a name with its tag, as Ollama lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def details(file: ModelFile) -> Details:
    """Return what a model is, in a few words."""
    facts = file.facts
    return Details(
        parent_model="", format="gguf", family=facts.architecture, families=[facts.architecture],
        parameter_size=parameter_size(facts), quantization_level=facts.quantization,
        context_length=facts.context_length, embedding_length=facts.embedding_length,
    )  # fmt: skip


def parameter_size(facts: Facts) -> str:
    """Return a number of weights as Ollama writes it: 134.52M, 7.6B."""
    n = facts.parameters
    for unit, size, digits in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 0)):
        if n >= size:
            return f"{n / size:.{digits}f}{unit}"
    return str(n)


def _listed(file: ModelFile) -> ListedModel:
    return ListedModel(
        name=tagged(file.name), model=tagged(file.name), modified_at=file.modified_at.isoformat(),
        size=file.total_bytes, digest=file.digest, details=details(file), capabilities=file.capabilities,
    )  # fmt: skip


def _projector(file: ModelFile) -> dict[str, Any] | None:
    """Return what a model sees or hears by, under its keys in the file."""
    found = file.projector
    if found is None:
        return None
    return {
        "general.architecture": "clip", "clip.projector_type": found.kind, "clip.has_vision_encoder": found.sees,
        "clip.has_audio_encoder": found.hears, "general.size_bytes": found.size_bytes,
    }  # fmt: skip


def _parameters(parameters: dict[str, Any]) -> str:
    lines = []
    for name, value in parameters.items():
        for item in value if isinstance(value, list) else [value]:
            shown = msgspec.json.encode(item).decode() if not isinstance(item, int | float | bool) else str(item)
            lines.append(f"{name:<30} {shown}")
    return "\n".join(lines)


def _modelfile(file: ModelFile, template: str, system: str) -> str:
    """Return a Modelfile that would make this model; without texts that the language cannot say."""
    made = modelfile_of(file.name, file.settings)
    try:
        return write_modelfile(msgspec.structs.replace(made, template=template or None, system=system or None))
    except ModelfileError as error:
        return f"# {error}\nFROM {file.name}\n"


def _tensors(file: ModelFile) -> list[dict[str, Any]]:
    return [
        {"name": name, "type": tensor.block_type.name, "shape": [int(n) for n in tensor.shape]}
        for name, tensor in read_gguf(file.path).tensors.items()
    ]
