"""The table of routes as an OpenAPI document, with the typed messages as its schemas, at /openapi.json.

Source: OpenAPI 3.1.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvant._version import __version__
from kvant.serve.endpoints import JSON, NDJSON, PUBLIC, SSE, Endpoint
from kvant.serve.gateway import gateway
from kvant.serve.wording import Api


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


_ERRORS: dict[Api, type] = {"ollama": OllamaError, "openai": OpenAIError, "anthropic": AnthropicError}
_STREAMED: dict[str, dict[str, Any]] = {
    NDJSON: {"type": "string"},
    SSE: {
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
        "required": ["data"],
    },
}
"""Schemas of what streams; that of server-sent events describes one event, as before OpenAPI 3.2."""

NO_EFFECT = {
    "Ollama": {"shift", "insecure"},
    "OpenAI": {
        "user", "metadata", "store", "service_tier", "verbosity", "safety_identifier", "prompt_cache_key", "include",
        "max_tool_calls",
    },
    "Anthropic": {"metadata", "service_tier", "inference_geo", "cache_control"},
}  # fmt: skip
"""Fields that are understood and change nothing here."""
REFUSED = {
    "Ollama": set[str](),
    "OpenAI": {"previous_response_id", "conversation", "background", "prompt", "echo", "best_of"},
    "Anthropic": set[str](),
}
"""Fields that are understood and refused where they ask for something."""

_SHORT = {
    "kvant.serve.api.ollama.types": "Ollama",
    "kvant.serve.api.openai.types": "OpenAI",
    "kvant.serve.api.openai.responses_types": "Responses",
    "kvant.serve.api.anthropic.types": "Anthropic",
    "kvant.hub.manifest": "Stored",
}
"""What names that several modules have begin with, by their modules."""

_STEP = re.compile(r"\{(\w+)(?::path)?\}")
_KEYS: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"key": []}]


def described(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Return what the document describes: all but pages."""
    return [endpoint for endpoint in endpoints if endpoint.summary]


def path_of(endpoint: Endpoint) -> str:
    """Return a path as the document writes it."""
    return _STEP.sub(r"{\1}", endpoint.path)


@functools.cache
def document(endpoints: tuple[Endpoint, ...]) -> dict[str, Any]:
    """Return the OpenAPI document of a table of routes."""
    text = msgspec.json.encode(_document(described(endpoints))).decode()
    for module, short in _SHORT.items():
        text = text.replace(f"{module}.", short)
    made: dict[str, Any] = msgspec.json.decode(text)
    return made


def _document(endpoints: list[Endpoint]) -> dict[str, Any]:
    types = [kind for endpoint in endpoints for kind in (endpoint.request, endpoint.answer) if kind]
    unique = list(dict.fromkeys([*types, *_ERRORS.values()]))
    schemas, components = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
    known = dict(zip(unique, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(path_of(endpoint), {})[endpoint.method.lower()] = _operation(endpoint, known)
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
        "security": _KEYS,
    }


def _operation(endpoint: Endpoint, known: dict[type, Any]) -> dict[str, Any]:
    path, method = path_of(endpoint), endpoint.method.lower()
    error = {JSON: {"schema": known[_ERRORS[endpoint.dialect.api]]}}
    made: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": f"{method}{path.replace('/', '_').strip('{}')}",
        "tags": [endpoint.heading],
        "responses": {
            "200": {"description": "The answer."} | _content(endpoint, known),
            "default": {"description": "An error, told in the API's own form.", "content": error},
        },
    }
    if endpoint.request:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": known[endpoint.request]}}}
    elif endpoint.is_upload and method == "post":
        made["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    if names := _STEP.findall(path):
        made["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if endpoint.scope == PUBLIC:
        made["security"] = []
    return made


def _content(endpoint: Endpoint, known: dict[type, Any]) -> dict[str, Any]:
    """Return what an answer holds, whole and as a stream."""
    if not endpoint.media:
        return {}
    schema: dict[str, Any] = {"type": "object"} if endpoint.media == JSON else {"type": "string"}
    content = {endpoint.media: {"schema": known[endpoint.answer] if endpoint.answer else schema}}
    if endpoint.stream:
        content[endpoint.stream] = {"schema": _STREAMED[endpoint.stream]}
    return {"content": content}


async def openapi(request: Request) -> Response:
    """GET /openapi.json; with the path below which a proxy shows the gateway, if there is one."""
    here = gateway(request)
    prefix = here.settings.root_path
    servers = {"servers": [{"url": prefix}]} if prefix else {}
    return Response(msgspec.json.encode(document(tuple(here.endpoints)) | servers), media_type=JSON)
