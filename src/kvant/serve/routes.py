"""The table of routes: everything that a gateway can be asked.

One row says where and how, who may, in whose words errors are told, and what is taken and given. What is mounted, which
scope a key needs, how a refusal is worded and what the OpenAPI document and docs/reference/apis.md say, is read here.
"""

from functools import partial

from kvant.serve import page, probes
from kvant.serve.api import cards
from kvant.serve.api.anthropic import messages
from kvant.serve.api.anthropic import types as anthropic
from kvant.serve.api.ollama import generate, manage, manage_types
from kvant.serve.api.ollama import models as ollama_models
from kvant.serve.api.ollama import types as ollama
from kvant.serve.api.openai import chat, completions, embeddings, models, rerank, responses, responses_types
from kvant.serve.api.openai import types as openai
from kvant.serve.endpoints import NDJSON, PUBLIC, SSE, Endpoint
from kvant.serve.metrics import CONTENT_TYPE
from kvant.serve.openapi import openapi
from kvant.serve.status import GatewayStatus
from kvant.serve.wording import ANTHROPIC, OLLAMA, OPENAI

_kvant = partial(Endpoint, heading="kvant", dialect=OPENAI)
_cards = partial(Endpoint, heading="kvant", dialect=OLLAMA, scope="inference")
_ollama = partial(Endpoint, heading="Ollama", dialect=OLLAMA, scope="inference")
_manage = partial(Endpoint, heading="Ollama", dialect=OLLAMA, scope="manage")
_openai = partial(Endpoint, heading="OpenAI", dialect=OPENAI, scope="inference")
_anthropic = partial(Endpoint, heading="Anthropic", dialect=ANTHROPIC, scope="inference")

ROUTES: tuple[Endpoint, ...] = (
    _ollama("POST", "/api/generate", generate.generate, "Continue or answer a text", ollama.GenerateRequest,
            ollama.GenerateResponse, stream=NDJSON),
    _ollama("POST", "/api/chat", generate.chat, "Answer a conversation", ollama.ChatRequest, ollama.ChatResponse,
            stream=NDJSON),
    _ollama("POST", "/api/embed", ollama_models.embed, "Vectors of texts", ollama.EmbedRequest, ollama.EmbedResponse),
    _ollama("POST", "/api/embeddings", ollama_models.embeddings, "Vector of a text, the older form",
            ollama.EmbeddingsRequest),
    _ollama("POST", "/api/show", ollama_models.show, "What a model is", ollama.ShowRequest, ollama.ShowResponse),
    _ollama("GET", "/api/tags", ollama_models.tags, "Models there are", answer=ollama.Tags),
    _ollama("GET", "/api/ps", ollama_models.running, "Models that are loaded", answer=ollama.Running),
    _ollama("GET", "/api/version", ollama_models.version, "Version of Ollama whose API this is",
            answer=ollama.Version, scope=PUBLIC),
    _manage("POST", "/api/pull", manage.pull_model, "Get a model from the hub", manage_types.PullRequest,
            stream=NDJSON),
    _manage("POST", "/api/push", manage.push, "Nothing yet: there is nowhere to push to"),
    _manage("POST", "/api/create", manage.create_model, "Make a model from another one, or from uploaded files",
            manage_types.CreateRequest, stream=NDJSON),
    _manage("POST", "/api/copy", manage.copy, "Give a model a second name", manage_types.CopyRequest, media=""),
    _manage("DELETE", "/api/delete", manage.delete, "Remove a model", manage_types.DeleteRequest, media=""),
    _manage("HEAD", "/api/blobs/{digest:path}", manage.has_blob, "Whether a file was uploaded", media="",
            is_upload=True),
    _manage("POST", "/api/blobs/{digest:path}", manage.put_blob, "Upload a file", media="", is_upload=True),
    _openai("POST", "/v1/chat/completions", chat.chat, "Answer a conversation", openai.ChatRequest,
            openai.ChatCompletion, stream=SSE),
    _openai("POST", "/v1/completions", completions.completions, "Continue texts", openai.CompletionRequest,
            stream=SSE),
    _openai("POST", "/v1/embeddings", embeddings.embeddings, "Vectors of texts", openai.EmbeddingRequest),
    _openai("POST", "/v1/rerank", rerank.rerank, "Documents in the order in which they answer a query",
            openai.RerankRequest, openai.RerankResponse),
    _openai("POST", "/v1/responses", responses.responses, "Answer a conversation", responses_types.ResponsesRequest,
            stream=SSE),
    _openai("GET", "/v1/models", models.models, "Models there are", answer=openai.Models),
    _openai("GET", "/api/v0/models", models.models, "The same, where LM Studio has it", answer=openai.Models),
    _openai("GET", "/v1/models/{name:path}", models.model, "One model", answer=openai.ListedModel),
    _anthropic("POST", "/v1/messages", messages.messages, "Answer a conversation", anthropic.MessagesRequest,
               stream=SSE),
    _anthropic("POST", "/v1/messages/count_tokens", messages.count_tokens, "Tokens of a prompt",
               anthropic.CountRequest, anthropic.TokenCount),
    _cards("GET", "/api/kvant/cards", cards.cards, "What all models are, hold and were measured to lose",
           answer=cards.Cards),
    _cards("GET", "/api/kvant/cards/{name:path}", cards.card, "The same of one model", answer=cards.Card),
    _kvant("GET", "/health", probes.health, "Whether it lives", answer=probes.Health, scope=PUBLIC, is_probe=True),
    _kvant("GET", "/ready", probes.ready, "Whether it takes requests", answer=probes.Ready, scope=PUBLIC,
           is_probe=True),
    _kvant("GET", "/metrics", probes.metrics, "What is measured, for Prometheus", scope="metrics",
           media=CONTENT_TYPE.partition(";")[0]),
    _kvant("GET", "/kvant/status", probes.status, "What is loaded, running and waiting", answer=GatewayStatus,
           scope="metrics"),
    _kvant("GET", "/openapi.json", openapi, "This description", scope=PUBLIC),
    _kvant("GET", "/", ollama_models.root, scope=PUBLIC),
    _kvant("GET", "/ui", page.redirect, scope=PUBLIC),
    _kvant("GET", "/ui/", page.page, scope=PUBLIC),
    _kvant("GET", "/ui/{name}", page.page, scope=PUBLIC),
)  # fmt: skip
