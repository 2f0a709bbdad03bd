"""The packer: from cut points to spans that keep the limit and the overlap. Every chunker ends here."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from dougong.base import DougongError
from dougong.rag.ruler import Ruler

MUST, HEADING, BLOCK, LINE, SENTENCE, CLAUSE, INSIDE = 0, 1, 8, 9, 10, 11, 12
"""Levels of cuts, strongest first. MUST always cuts; headings take HEADING to HEADING + 5, by depth; INSIDE would cut
through something that belongs together (a row of a table, a line of code)."""


class Cut(NamedTuple):
    """A place where a chunk may begin: before the character at `at`, the more willingly the lower `level`."""

    at: int
    level: int


def pack(text: str, cuts: Iterable[Cut], ruler: Ruler, limit: int, overlap: int = 0) -> list[tuple[int, int]]:
    """Spans [start, end) of `text`, ascending: none is longer than `limit` tokens by itself, together they hold every
    character but white space, and none begins or ends with white space.

    A span ends at the strongest cut within reach, the furthest of equals; a cut in the first quarter of the room counts
    only when nothing but INSIDE is left; without any cut, between two tokens. Where no MUST lies between, a span begins
    up to `overlap` tokens before the last one's end. Raises DougongError for a limit below 1 or below what one
    character needs, and for an overlap that is not below the limit.
    """
    if limit < 1:
        raise DougongError(f"the limit of a chunk is {limit} tokens; expected at least 1")
    if not 0 <= overlap < limit:
        raise DougongError(f"the overlap is {overlap} tokens; expected from 0 to below the limit of {limit}")
    places: dict[int, int] = {}
    for at, level in cuts:
        places[at] = min(level, places.get(at, level))
    packer = _Packer(text, sorted(places.items()), ruler, limit, overlap)
    borders = [0, *(at for at, level in packer.cuts if level == MUST and 0 < at < len(text)), len(text)]
    return [span for start, end in itertools.pairwise(borders) for span in packer.section(start, end)]


_SPACE = re.compile(r"\s*")


class _Packer:
    """One text with its cuts and its tokens."""

    def __init__(self, text: str, cuts: list[tuple[int, int]], ruler: Ruler, limit: int, overlap: int):
        self.text, self.cuts, self.ruler, self.limit, self.overlap = text, cuts, ruler, limit, overlap
        self.starts = ruler.starts(text)

    def section(self, start: int, end: int) -> list[tuple[int, int]]:
        """The spans between two borders that no span crosses."""
        spans: list[tuple[int, int]] = []
        begin = fresh = self._skip(start, end)  # `fresh`: the first character that no span holds yet
        while fresh < end:
            if fresh > begin and self._reach(begin, end) <= fresh:
                begin = fresh
            begin, stop = self._fit(begin, fresh, self._stop(begin, fresh, end))
            spans.append((begin, fresh + len(self.text[fresh:stop].rstrip())))
            fresh = self._skip(stop, end)
            begin = max(self._overlapping(fresh, start), min(begin + 1, fresh))
            begin = min(self._skip(begin, end), fresh)
        return spans

    def _skip(self, place: int, end: int) -> int:
        found = _SPACE.match(self.text, place, end)
        return found.end() if found else place

    def _reach(self, begin: int, end: int) -> int:
        """The furthest that a span from `begin` can go, as far as the tokens of the whole text tell."""
        token = bisect_left(self.starts, begin) + self.limit
        return min(end, self.starts[token]) if token < len(self.starts) else end

    def _stop(self, begin: int, fresh: int, end: int) -> int:
        reach = self._reach(begin, end)
        if reach >= end:
            return end
        found = self.cuts[bisect_right(self.cuts, (fresh, INSIDE + 1)) : bisect_right(self.cuts, (reach, INSIDE + 1))]
        token = bisect_left(self.starts, begin) + self.limit // 4
        quarter = self.starts[token] if token < len(self.starts) else end
        late = [cut for cut in found if cut[0] >= quarter and cut[1] < INSIDE]
        whole = [cut for cut in found if cut[1] < INSIDE]
        for choice in (late, whole, found):
            if choice:
                return min(choice, key=lambda cut: (cut[1], -cut[0]))[0]
        return reach

    def _fit(self, begin: int, fresh: int, stop: int) -> tuple[int, int]:
        """Shorten [begin, stop) until it keeps the limit by itself: alone, a text can have more tokens than within."""
        while True:
            excess = self.ruler.count(self.text[begin:stop].rstrip()) - self.limit
            if excess <= 0:
                return begin, stop
            token = bisect_left(self.starts, stop) - 1 - excess // 4
            shorter = self.starts[token] if token >= 0 else 0
            if shorter > fresh:
                stop = shorter
            elif begin < fresh:
                begin = fresh
            elif stop > fresh + 1:
                stop = fresh + max(1, (stop - fresh) // 2)
            else:
                raise DougongError(
                    f"the limit of {self.limit} tokens is below what the character {self.text[fresh]!r} needs "
                    f"({self.limit + excess}); raise the limit"
                )

    def _overlapping(self, fresh: int, start: int) -> int:
        """Where a span whose new text begins at `fresh` begins: at a cut within the overlap, else between tokens."""
        if not self.overlap:
            return fresh
        token = bisect_left(self.starts, fresh) - self.overlap
        earliest = max(start, self.starts[token] if token >= 0 else 0)
        place = bisect_left(self.cuts, (earliest, MUST))
        if place < len(self.cuts) and self.cuts[place][0] < fresh and self.cuts[place][1] < INSIDE:
            return self.cuts[place][0]
        return min(earliest, fresh)
