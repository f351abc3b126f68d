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
    speakers = {"mlx": _mlx, "genai": _genai, "tokenizers": _tokenizers}
    tokenize, render, package = speakers[request["engine"]](request["path"])
    prompts = [_rendered(render, messages) for messages in request["conversations"]]
    answer = {
        "engine": f"{package} {importlib.metadata.version(package)}",
        "ids": [tokenize(text, False) for text in request["texts"]],
        "around": tokenize(request["around"], True),
        "prompts": prompts,
        "prompt_ids": [None if prompt is None else tokenize(prompt, False) for prompt in prompts],
    }
    json.dump(answer, sys.stdout)


def _mlx(path: str) -> tuple[Callable[[str, bool], list[int]], Callable[[Any], str], str]:
    from pathlib import Path

    sys.modules["torch"] = None  # type: ignore[assignment]  # else transformers imports it: a second, for nothing here
    from mlx_lm.tokenizer_utils import load

    found = load(Path(path))

    def tokenize(text: str, add_special: bool) -> list[int]:
        return [int(i) for i in found.encode(text, add_special_tokens=add_special)]

    def render(messages: Any) -> str:
        return str(found.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return tokenize, render, "mlx-lm"


def _genai(path: str) -> tuple[Callable[[str, bool], list[int]], Callable[[Any], str], str]:
    import onnxruntime_genai

    found = onnxruntime_genai.Tokenizer(path)

    def tokenize(text: str, add_special: bool) -> list[int]:
        found.update_options(add_special_tokens="true" if add_special else "false")
        return [int(i) for i in found.encode(text)]

    def render(messages: Any) -> str:
        return str(found.apply_chat_template(json.dumps(messages), add_generation_prompt=True))

    return tokenize, render, "onnxruntime-genai"


def _tokenizers(path: str) -> tuple[Callable[[str, bool], list[int]], Callable[[Any], str], str]:
    from pathlib import Path

    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
    found.no_truncation()  # as transformers does unless it is asked to
    found.no_padding()

    def tokenize(text: str, add_special: bool) -> list[int]:
        return list(found.encode(text, add_special_tokens=add_special).ids)

    def render(_: Any) -> str:
        raise ValueError("tokenizer.json holds no template")

    return tokenize, render, "tokenizers"


def _rendered(render: Callable[[Any], str], messages: Any) -> str | None:
    """A prompt; None if the template refuses the conversation."""
    try:
        return render(messages)
    except Exception:
        return None


if __name__ == "__main__":
    main()
