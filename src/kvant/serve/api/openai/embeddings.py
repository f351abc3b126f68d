"""OpenAI's API: /v1/embeddings."""

import base64
import struct

from starlette.requests import Request
from starlette.responses import Response

from kvant.generate.sampling import unknown
from kvant.serve.api.answer import Answer, Output
from kvant.serve.api.embeddings import embed
from kvant.serve.api.keepalive import seconds
from kvant.serve.api.openai.prompts import many
from kvant.serve.api.openai.sampling import context_of
from kvant.serve.api.openai.types import EmbeddingRequest
from kvant.serve.api.wire import model_file, note_ignored, read
from kvant.serve.wording import OPENAI


async def embeddings(request: Request) -> Response:
    """POST /v1/embeddings."""
    body = await read(request, EmbeddingRequest)
    note_ignored(request, unknown(body.options))
    file = await model_file(request, body.model)
    inputs = many(body.input, "input", 2048)

    async def run(out: Output) -> None:
        made = await embed(
            request, file, inputs, dimensions=body.dimensions, context=context_of(body, file),
            keep_alive=seconds(body.keep_alive),
        )  # fmt: skip
        data = [
            {"object": "embedding", "index": i, "embedding": _packed(vector) if base64_wanted else vector}
            for i, vector in enumerate(made.vectors)
        ]
        usage = {"prompt_tokens": made.n_tokens, "total_tokens": made.n_tokens}
        await out.whole({"object": "list", "model": body.model, "data": data, "usage": usage})

    base64_wanted = body.encoding_format == "base64"
    return Answer(run, OPENAI)


def _packed(vector: list[float]) -> str:
    """Return float32 numbers, little-endian, in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
