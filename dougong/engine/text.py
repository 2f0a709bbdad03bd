"""Tokens to text as they come, held back while they may still turn into a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dougong.base import DougongError

if TYPE_CHECKING:
    from dougong.tokenizer import Tokenizer

# A character has at most 4 bytes, so an unfinished one reaches back at most 3 tokens; the rest is for special tokens.
CONTEXT_TOKENS = 8


class Piece(NamedTuple):
    """A token and the text that it completed ("" within a character)."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TextStream:
    """Text that continues a prompt, one token at a time.

    A piece is released when no stop string can begin before its end; so what was released is never taken back.
    Without a tokenizer every text is "".
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        include_stop: bool = False,
    ):
        self.stopped = False
        self._include = include_stop
        self._stops = tuple(stops)
        self._decoder = tokenizer.stream() if tokenizer is not None else None
        self._held: list[Piece] = []
        for token in prompt[-CONTEXT_TOKENS:]:  # decides about a leading space, and completes half a character
            self._decode(token)

    def push(
        self,
        token: int,
        logprob: float,
        silent: bool = False,
        last: bool = False,
        top: tuple[tuple[int, float], ...] = (),
    ) -> list[Piece]:
        """Add a token, its log-probability, and the best ones at its place; returns the pieces that are certain now.

        silent: the token gives no text (an end of text). last: nothing follows, so everything is certain.
        After a stop string `stopped` is set, and the last piece is cut before it (behind it where it is included);
        tokens that only spelled what was cut are gone, so the tokens are the fewest whose text begins with the text
        returned.
        """
        text = "" if silent else self._decode(token)
        if last and self._decoder is not None:
            text += self._decoder.finish()
        self._held.append(Piece(token, text, logprob, top))
        text = "".join(piece.text for piece in self._held)
        found = first_stop(text, self._stops)
        if found is not None:
            self.stopped = True
            return self._release(found[self._include], cutting=True)
        return self._release(len(text) if last else len(text) - held_back(text, self._stops))

    def _decode(self, token: int) -> str:
        if self._decoder is None:
            return ""
        try:
            return self._decoder.push(token)
        except DougongError:  # models often have more rows than their tokenizer has tokens
            return ""

    def _release(self, safe: int, cutting: bool = False) -> list[Piece]:
        """Take the held pieces that end within the first `safe` characters; `cutting` drops the rest at that place."""
        out: list[Piece] = []
        start = 0
        for piece in self._held:
            end = start + len(piece.text)
            if end > safe or (cutting and start == safe):
                if cutting and start < safe:
                    out.append(piece._replace(text=piece.text[: safe - start]))
                break
            out.append(piece)
            start = end
        self._held = [] if cutting else self._held[len(out) :]
        return out


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, int] | None:
    """Where the stop string that ends first (of those, the longest) begins and ends, or None.

    Ending first, not beginning first: so the answer does not depend on how the text was cut into tokens.
    """
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    if not found:
        return None
    end, start = min(found)
    return start, end


def held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the beginning of a stop string."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest
