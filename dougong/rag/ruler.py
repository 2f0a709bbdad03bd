"""How long a text is: rulers that count tokens, and say where each begins."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from dougong.tokenizer import Tokenizer

# A Chinese, Japanese or Korean character is a token; so are up to 12 letters or digits, and every other mark.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
# A combining accent (U+0300 to U+036F) belongs to the letter before it.
_PIECE = re.compile(rf"[{CJK}]|(?:(?![{CJK}])\w[\u0300-\u036f]*){{1,12}}|[^\w\s]")


class Ruler(ABC):
    """Measures text in tokens."""

    @abstractmethod
    def count(self, text: str) -> int:
        """Tokens of `text` by itself."""

    @abstractmethod
    def starts(self, text: str) -> list[int]:
        """The position of the first character of each token, ascending, without repetition."""


@final
class Words(Ruler):
    """Words of up to 12 letters, single Chinese characters, single marks: needs no model."""

    def count(self, text: str) -> int:
        return sum(1 for _ in _PIECE.finditer(text))

    def starts(self, text: str) -> list[int]:
        return [match.start() for match in _PIECE.finditer(text)]


@final
class Characters(Ruler):
    """Every character is a token, white space too."""

    def count(self, text: str) -> int:
        return len(text)

    def starts(self, text: str) -> list[int]:
        return list(range(len(text)))


@final
class Tokens(Ruler):
    """The tokens of a model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def starts(self, text: str) -> list[int]:
        _, offsets = self._tokenizer.encode_offsets(text)
        return sorted({start for start, end in offsets if end > start})
