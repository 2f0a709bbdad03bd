"""Cuts that a language model decides."""

from __future__ import annotations

import json
from typing import final

from dougong.chat import ChatModel, Message
from dougong.data import Document
from dougong.rag.chunkers.chunker import Chunker
from dougong.rag.pack import MUST, SENTENCE, Cut
from dougong.rag.ruler import Ruler
from dougong.rag.sentences import sentences

PROMPT = (
    "Below are the numbered sentences of a text. Divide it into parts, each about one subject. "
    "Answer with the numbers of the sentences at which a new part begins, not counting the first."
)
SCHEMA = {
    "type": "object",
    "properties": {"begins": {"type": "array", "items": {"type": "integer"}}},
    "required": ["begins"],
    "additionalProperties": False,
}


@final
class Decided(Chunker):
    """A model sees `window` numbered sentences at a time and says where a new subject begins.

    An answer that cannot be read leaves the sentence rules alone at work in its window; numbers that name no sentence
    are passed over. `unread` counts such answers.
    """

    def __init__(
        self, model: ChatModel, limit: int = 200, overlap: int = 0, ruler: Ruler | None = None, *, window: int = 60
    ):
        super().__init__(limit, overlap, ruler)
        self._model, self._window = model, max(2, window)
        self.unread = 0

    def cuts(self, document: Document) -> list[Cut]:
        spans = sentences(document.text)
        cuts = [Cut(start, SENTENCE) for start, _ in spans[1:]]
        for first in range(0, len(spans), self._window):
            part = spans[first : first + self._window]
            if len(part) > 1:
                texts = [" ".join(document.text[start:end].split()) for start, end in part]
                cuts += [Cut(part[number][0], MUST) for number in self._begins(texts)]
        return cuts

    def _begins(self, texts: list[str]) -> list[int]:
        """Indices of the sentences at which the model begins a part."""
        listed = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))
        answer = self._model.complete([Message("user", f"{PROMPT}\n\n{listed}")], schema=SCHEMA)
        try:
            numbers = json.loads(answer.content)["begins"]
            return sorted({number - 1 for number in numbers if isinstance(number, int) and 1 < number <= len(texts)})
        except (ValueError, KeyError, TypeError, RecursionError):
            self.unread += 1
            return []
