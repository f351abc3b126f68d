"""Names of answers and of their parts, as OpenAI and Anthropic form them."""

import secrets


def new_id(kind: str) -> str:
    """Return an id that was never given."""
    return f"{kind}{'-' if kind.endswith('cmpl') else '_'}{secrets.token_hex(12)}"
