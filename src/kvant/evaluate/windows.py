"""Cut text into windows of tokens, the way perplexity is measured.

Upstream's protocol: the text is tokenized as a whole, special tokens added as the model wants; it is cut into windows
of `context` tokens; where the model wants a start token, the first token of every window is replaced by it; of each
window the second half is scored, so that every scored token has at least half a window before it. The last position
predicts a token that belongs to the next window and is not scored.

Source: llama.cpp `tools/perplexity/perplexity.cpp`; parity in tests/parity/test_engine_kld.py.
"""

from dataclasses import dataclass

import numpy as np

from kvant.errors import ValueRangeError
from kvant.evaluate.corpora import Corpus
from kvant.runtime.process import EngineProcess

MIN_CONTEXT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Tokens to run.

    Attributes:
        tokens: Token ids, int32 [windows, context]; the first of each is the start token if the model wants one.
        domains: Domain of each window.
    """

    tokens: np.ndarray
    domains: tuple[str, ...]

    @property
    def context(self) -> int:
        """Tokens per window."""
        return int(self.tokens.shape[1])

    @property
    def first(self) -> int:
        """Position of the first logits that are scored."""
        return self.context // 2

    @property
    def labels(self) -> np.ndarray:
        """The tokens that follow the scored positions, int32 [windows, rows]."""
        return self.tokens[:, self.first + 1 :]

    def head(self, count: int) -> "Windows":
        """Return the first windows."""
        return Windows(tokens=self.tokens[:count], domains=self.domains[:count])


def cut(engine: EngineProcess, text: Corpus, *, context: int, chunks: int) -> Windows:
    """Tokenize a text with the open model and cut it; windows of different domains alternate.

    Args:
        engine: A process with a model open, of which only the tokenizer is used.
        text: What to measure on.
        context: Tokens per window, even.
        chunks: Most windows to make; 0 for all there are.

    Raises:
        ValueRangeError: An odd or tiny context, or a text shorter than one window.
    """
    assert engine.opened is not None, "open comes first"
    if context < MIN_CONTEXT or context % 2 or chunks < 0:
        raise ValueRangeError(
            f"context, chunks: {context}, {chunks} are not an even number from {MIN_CONTEXT} on and a count. "
            "Use 512 and 16."
        )
    queues = []
    for part in text.parts:
        ids = engine.tokenize(part.text, add_special=True)
        count = len(ids) // context
        windows = ids[: count * context].reshape(count, context).copy()
        if engine.opened.add_bos:
            windows[:, 0] = engine.opened.bos
        queues.append(windows)
    turns = max(map(len, queues))
    order = [(p, t) for t in range(turns) for p, queue in enumerate(queues) if t < len(queue)][: chunks or None]
    if not order:
        raise ValueRangeError(
            f"{text.label}: no part holds a window of {context} tokens. Give a longer text or a smaller --context."
        )
    return Windows(
        tokens=np.stack([queues[p][t] for p, t in order]), domains=tuple(text.parts[p].domain for p, _ in order)
    )
