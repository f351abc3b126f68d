"""The APIs as an OpenAPI document, made from the typed messages, at /openapi.json.

Source: OpenAPI 3.1.
"""

import functools
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvant._version import __version__
from kvant.serve.api import anthropic_types, cards, ollama_types, openai_types, responses_types
from kvant.serve.wording import Api, api_of


class OllamaError(msgspec.Struct):
    """An error of Ollama's API."""

    error: str


class OpenAIErrorDetail(msgspec.Struct):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(msgspec.Struct):
    """An error of OpenAI's API."""

    error: OpenAIErrorDetail


class AnthropicErrorDetail(msgspec.Struct):
    """What is wrong."""

    type: str
    message: str


class AnthropicError(msgspec.Struct):
    """An error of Anthropic's API."""

    error: AnthropicErrorDetail
    type: str = "error"


class TokenCount(msgspec.Struct):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


class Models(msgspec.Struct):
    """The answer of /v1/models."""

    data: list[openai_types.ListedModel]
    object: str = "list"


class Tags(msgspec.Struct):
    """The answer of /api/tags."""

    models: list[ollama_types.ListedModel]


class Running(msgspec.Struct):
    """The answer of /api/ps."""

    models: list[ollama_types.RunningModel]


class Version(msgspec.Struct):
    """The answer of /api/version."""

    version: str
    kvant: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of an API.

    Attributes:
        path: Where.
        method: How.
        summary: What for.
        request: Body, if there is one.
        answer: Body of the answer; None for one without a fixed type here.
        stream: Media type of an answer that streams.
    """

    path: str
    method: str
    summary: str
    request: type | None = None
    answer: type | None = None
    stream: str | None = None


_O, _A, _R = ollama_types, anthropic_types, responses_types
_LINES, _EVENTS = "application/x-ndjson", "text/event-stream"
_STREAMED: dict[str, dict[str, Any]] = {
    _LINES: {"type": "string"},
    _EVENTS: {
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
        "required": ["data"],
    },
}
"""Schemas of what streams; that of server-sent events describes one event, as before OpenAPI 3.2."""

OPERATIONS = (
    Operation("/api/generate", "post", "Continue or answer a text", _O.GenerateRequest, _O.GenerateResponse, _LINES),
    Operation("/api/chat", "post", "Answer a conversation", _O.ChatRequest, _O.ChatResponse, _LINES),
    Operation("/api/embed", "post", "Vectors of texts", _O.EmbedRequest, _O.EmbedResponse),
    Operation("/api/embeddings", "post", "Vector of a text, the older form", _O.EmbeddingsRequest),
    Operation("/api/show", "post", "What a model is", _O.ShowRequest, _O.ShowResponse),
    Operation("/api/tags", "get", "Models there are", None, Tags),
    Operation("/api/ps", "get", "Models that are loaded", None, Running),
    Operation("/api/version", "get", "Version of Ollama whose API this is", None, Version),
    Operation("/v1/chat/completions", "post", "Answer a conversation", openai_types.ChatRequest,
              openai_types.ChatCompletion, _EVENTS),
    Operation("/v1/completions", "post", "Continue texts", openai_types.CompletionRequest, None, _EVENTS),
    Operation("/v1/embeddings", "post", "Vectors of texts", openai_types.EmbeddingRequest),
    Operation("/v1/responses", "post", "Answer a conversation", _R.ResponsesRequest, None, _EVENTS),
    Operation("/v1/models", "get", "Models there are", None, Models),
    Operation("/api/v0/models", "get", "The same, where LM Studio has it", None, Models),
    Operation("/v1/models/{name}", "get", "One model", None, openai_types.ListedModel),
    Operation("/v1/messages", "post", "Answer a conversation", _A.MessagesRequest, None, _EVENTS),
    Operation("/v1/messages/count_tokens", "post", "Tokens of a prompt", _A.CountRequest, TokenCount),
    Operation("/api/kvant/cards", "get", "What all models are, hold and were measured to lose", None, cards.Cards),
    Operation("/api/kvant/cards/{name}", "get", "The same of one model", None, cards.Card),
)  # fmt: skip

NO_EFFECT = {
    "Ollama": {"shift"},
    "OpenAI": {
        "user", "metadata", "store", "service_tier", "verbosity", "safety_identifier", "prompt_cache_key", "include",
        "max_tool_calls",
    },
    "Anthropic": {"metadata", "service_tier", "inference_geo", "cache_control"},
}  # fmt: skip
"""Fields that are understood and change nothing here."""
REFUSED = {
    "Ollama": {"images"},
    "OpenAI": {"previous_response_id", "conversation", "background", "prompt", "echo", "best_of"},
    "Anthropic": set[str](),
}
"""Fields that are understood and refused where they ask for something."""

_SHORT = {
    "ollama_types": "Ollama",
    "openai_types": "OpenAI",
    "responses_types": "Responses",
    "anthropic_types": "Anthropic",
}


@functools.cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    text = msgspec.json.encode(_document()).decode()
    for module, short in _SHORT.items():  # names that several modules have are told apart by their modules
        text = text.replace(f"kvant.serve.api.{module}.", short)
    made: dict[str, Any] = msgspec.json.decode(text)
    return made


def _document() -> dict[str, Any]:
    types = [kind for operation in OPERATIONS for kind in (operation.request, operation.answer) if kind]
    types += [OllamaError, OpenAIError, AnthropicError]
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
    known = dict(zip(unique, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, known)
    return {
        "openapi": "3.1.0",
        "info": {"title": "kvant", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(operation: Operation, known: dict[type, Any]) -> dict[str, Any]:
    answer = known[operation.answer] if operation.answer else {"type": "object"}
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if operation.stream:
        content[operation.stream] = {"schema": _STREAMED[operation.stream]}
    error = {"application/json": {"schema": known[_error_of(operation.path)]}}
    made: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}{operation.path.replace('/', '_').strip('{}')}",
        "tags": [heading(operation.path)],
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "default": {"description": "An error, told in the API's own form.", "content": error},
        },
    }
    if operation.request:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": known[operation.request]}}}
    if "{name}" in operation.path:
        made["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return made


def heading(path: str) -> str:
    """Return under which heading a path stands: its API's, or that of what is kvant's alone."""
    return "kvant" if path.startswith("/api/kvant/") else _TAGS[api_of(path)]


def _error_of(path: str) -> type:
    return _ERRORS[api_of(path)]


_TAGS: dict[Api, str] = {"ollama": "Ollama", "openai": "OpenAI", "anthropic": "Anthropic"}
_ERRORS: dict[Api, type] = {"ollama": OllamaError, "openai": OpenAIError, "anthropic": AnthropicError}


@functools.cache
def _body(prefix: str) -> bytes:
    """Return the document as text; with the path below which a proxy shows the gateway, if there is one."""
    servers = {"servers": [{"url": prefix}]} if prefix else {}
    return msgspec.json.encode(document() | servers)


async def openapi(request: Request) -> Response:
    """GET /openapi.json."""
    return Response(_body(request.app.state.kvant.settings.root_path), media_type="application/json")


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [Route("/openapi.json", openapi, methods=["GET"])]
