"""Text that grows token by token, until a stop text appears."""

from __future__ import annotations

from collections.abc import Sequence

from .protocol import Tokenizer

_BROKEN = "\ufffd"  # what a tokenizer writes for a character whose other bytes are still to come


class TextSoFar:
    """Hands out text that no later token can change: not half a character, and nothing that may begin a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens: list[int] = []
        self._given = ""
        self.stopped = False

    def add(self, token: int, *, last: bool) -> str:
        """The text that is certain with this token and was not handed out yet; all that is left with the ``last``."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        self.stopped = bool(ends)
        if ends:
            text = text[: min(ends)]
        elif not last:
            text = text.rstrip(_BROKEN)
            text = text[: len(text) - self._held(text)]
        piece = text[len(self._given) :]
        self._given += piece
        return piece

    def _held(self, text: str) -> int:
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0
