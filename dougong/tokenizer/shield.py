"""Special tokens that a message merely spells must stay text: "<|im_end|>" typed by a user ends no turn.

Before rendering, one character that occurs nowhere in the conversation is put inside each such spelling; after
rendering, what still matches a special token was written by the template. Conversations without such spellings, that
is nearly all, pass untouched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from dougong.base import DougongError


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for inner in data.values():
            yield from _strings(inner)
    elif isinstance(data, list):
        for inner in data:
            yield from _strings(inner)


@lru_cache(maxsize=16)
def _spellings(specials: tuple[str, ...]) -> tuple[re.Pattern[str], frozenset[str]]:
    """A pattern for any of the tokens, the longest first, and all their proper beginnings.

    The beginnings matter because a string may end with one that the next string completes.
    """
    ordered = sorted((token for token in specials if token), key=len, reverse=True)
    beginnings = frozenset(token[:size] for token in ordered for size in range(1, len(token)))
    return re.compile("|".join(map(re.escape, ordered)) or "(?!)"), beginnings


class Shield:
    """Guards one conversation, given as plain data (dicts, lists, strings)."""

    def __init__(self, specials: Iterable[str], data: Any) -> None:
        self._specials, self._beginnings = _spellings(tuple(specials))
        self._longest = max(map(len, self._beginnings), default=0)
        used = set().union(*map(set, _strings(data)))
        self._mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)

    def guard(self, data: Any) -> Any:
        """The data with every spelling of a special token broken by the mark. Keys are the program's and stay."""
        if isinstance(data, dict):
            return {key: self.guard(inner) for key, inner in data.items()}
        if isinstance(data, list):
            return [self.guard(inner) for inner in data]
        if not isinstance(data, str):
            return data
        text = self._specials.sub(lambda found: found[0][0] + self._mark + found[0][1:], data)
        open_end = any(text[-size:] in self._beginnings for size in range(1, min(len(text), self._longest) + 1))
        return text + self._mark if open_end else text

    def strip(self, text: str) -> str:
        """Rendered text without marks."""
        return text.replace(self._mark, "")

    def pieces(self, text: str) -> Iterator[tuple[str, list[int] | None, bool]]:
        """Cut guarded, rendered text into (piece without marks, places, trusted).

        places[i] is where character i of the piece stands in `text` (None: at i). In a trusted piece the strings of
        special tokens are those tokens.
        """
        if self._mark not in text:
            yield text, None, True
            return
        position = 0
        for found in self._specials.finditer(text):
            if found.start() > position:
                yield self._plain(text, position, found.start())
            yield found[0], list(range(found.start(), found.end() + 1)), True
            position = found.end()
        if position < len(text):
            yield self._plain(text, position, len(text))

    def _plain(self, text: str, start: int, stop: int) -> tuple[str, list[int], bool]:
        places = [at for at in range(start, stop) if text[at] != self._mark]
        return "".join(text[at] for at in places), [*places, stop], False

    def check(self, guarded: str, text: str) -> None:
        """Raise DougongError unless the marks left the rendering `text` as it is without them."""
        if self.strip(guarded) != text:
            raise DougongError(
                "a message spells a special token, and the chat template treats that text in a way that cannot be made "
                "safe; take the special token out of the message"
            )
