"""Ending an answer at a text: what could be the start of one is held back until it is known not to be."""

from collections.abc import Sequence


class Stops:
    """Looks for stop texts in a stream of pieces.

    Args:
        texts: Texts that end an answer; they are not part of it.

    Attributes:
        found: Whether one came.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """Return what can be shown now that `piece` came."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for place in (text.find(stop) for stop in self._texts) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return what was held back, when no more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the start of a stop text."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
