"""Cuts where the subject changes, as an embedder sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np

from dougong.base import DougongError
from dougong.data import Document
from dougong.parts.shapes import Float
from dougong.rag.chunkers.chunker import Chunker
from dougong.rag.pack import MUST, SENTENCE, Cut
from dougong.rag.ruler import Ruler
from dougong.rag.sentences import sentences


@final
class Semantic(Chunker):
    """Sentences are grouped while neighbours are alike.

    embed: texts -> vectors (N, D) of length 1. The distance between two neighbours is 1 - cos of what stands `window`
    sentences before and after the gap. threshold: cut above this distance; percentile: cut at the gaps above this share
    (0 to 100) of a document's own gaps. Exactly one of the two is given (default: percentile 90).
    """

    def __init__(
        self,
        embed: Callable[[Sequence[str]], np.ndarray],
        limit: int = 200,
        overlap: int = 0,
        ruler: Ruler | None = None,
        *,
        threshold: float | None = None,
        percentile: float | None = None,
        window: int = 2,
    ):
        super().__init__(limit, overlap, ruler)
        if threshold is not None and percentile is not None:
            raise DougongError("a semantic chunker takes a threshold or a percentile, not both")
        if percentile is not None and not 0 <= percentile <= 100:
            raise DougongError(f"the percentile is {percentile}; expected 0 to 100")
        if window < 1:
            raise DougongError(f"the window is {window} sentences; expected at least 1")
        self._embed, self._threshold, self._window = embed, threshold, window
        self._percentile = 90.0 if percentile is None else percentile

    @property
    def name(self) -> str:
        how = f"t{self._threshold}" if self._threshold is not None else f"p{self._percentile}"
        return f"{super().name}-{how}-w{self._window}"

    def cuts(self, document: Document) -> list[Cut]:
        spans = sentences(document.text)
        if len(spans) < 2:
            return []
        gaps = distances(self._embed([document.text[start:end] for start, end in spans]), self._window)
        edge = self._threshold if self._threshold is not None else float(np.percentile(gaps, self._percentile))
        return [Cut(start, MUST if gap > edge else SENTENCE) for (start, _), gap in zip(spans[1:], gaps, strict=True)]


def distances(vectors: Float[np.ndarray, "N D"], window: int) -> Float[np.ndarray, " M"]:
    """1 - cos between the mean of the `window` vectors before each gap and that of those after it; M = N - 1 gaps."""
    found = []
    for gap in range(1, len(vectors)):
        before = vectors[max(0, gap - window) : gap].mean(0)
        after = vectors[gap : gap + window].mean(0)
        size = float(np.linalg.norm(before) * np.linalg.norm(after))
        found.append(1.0 - float(before @ after) / size if size > 0 else 1.0)
    return np.array(found, dtype=np.float32)
