"""The APIs a gateway speaks: one module each, with its own `routes()`."""

from starlette.routing import Route

from kvant.serve.api import (
    anthropic,
    cards,
    ollama,
    ollama_manage,
    ollama_models,
    openai,
    openai_responses,
    openai_text,
    openapi,
)

MODULES = (cards, ollama, ollama_models, ollama_manage, openai, openai_text, openai_responses, anthropic, openapi)


def routes() -> list[Route]:
    """Return the routes of all APIs."""
    return [route for module in MODULES for route in module.routes()]
