"""An engine's own tokenizer and chat template, asked once: `python tokenizer_worker.py`, one JSON document in and out.

It runs in whatever environment has the engine, where kvant need not be installed, so it imports nothing of kvant.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Answer the document on standard input."""
    request = json.load(sys.stdin)
    speakers = {"mlx": _mlx, "genai": _genai}
    tokenize, render, package = speakers[request["engine"]](request["path"])
    answer = {
        "engine": f"{package} {importlib.metadata.version(package)}",
        "ids": [tokenize(text) for text in request["texts"]],
        "prompts": [_rendered(render, messages) for messages in request["conversations"]],
    }
    json.dump(answer, sys.stdout)


def _mlx(path: str) -> tuple[Callable[[str], list[int]], Callable[[Any], str], str]:
    from pathlib import Path

    from mlx_lm.tokenizer_utils import load

    found = load(Path(path))

    def tokenize(text: str) -> list[int]:
        return [int(i) for i in found.encode(text, add_special_tokens=False)]

    def render(messages: Any) -> str:
        return str(found.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return tokenize, render, "mlx-lm"


def _genai(path: str) -> tuple[Callable[[str], list[int]], Callable[[Any], str], str]:
    import onnxruntime_genai

    found = onnxruntime_genai.Tokenizer(path)
    found.update_options(add_special_tokens="false")

    def tokenize(text: str) -> list[int]:
        return [int(i) for i in found.encode(text)]

    def render(messages: Any) -> str:
        return str(found.apply_chat_template(json.dumps(messages), add_generation_prompt=True))

    return tokenize, render, "onnxruntime-genai"


def _rendered(render: Callable[[Any], str], messages: Any) -> str | None:
    """A prompt; None if the template refuses the conversation."""
    try:
        return render(messages)
    except Exception:
        return None


if __name__ == "__main__":
    main()
