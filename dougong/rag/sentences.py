"""Where sentences end, by rule: Chinese and English, mixed as they come."""

from __future__ import annotations

import itertools
import re
from functools import cache

CLOSERS = "\"'”’」』）》】〉)\\]"
# An end: Chinese marks (whatever follows), or Latin ones before white space; closing quotes and brackets belong to it.
_END = re.compile(rf"(?:[。！？!?…]+|……|[；;](?=\s*[\u4e00-\u9fff]))[{CLOSERS}]*|\.+[{CLOSERS}]*(?=\s|$)")
_LATIN_END = re.compile(rf"[.!?…]+[{CLOSERS}]*$")
_CLAUSE = re.compile(r"[，、：；]|[,;:—](?=\s)")
ABBREVIATIONS = (
    "mr mrs ms dr prof st sr jr vs etc e.g i.e cf al fig figs eq eqs no nos vol pp ed eds inc ltd co corp dept univ "
    "approx jan feb mar apr jun jul aug sep sept oct nov dec gen col lt capt rev hon u.s u.k"
)
_ABBREVIATIONS = frozenset(ABBREVIATIONS.split())
_WORD_BEFORE = re.compile(r"([A-Za-z][A-Za-z.]*)\.$")


def sentence_starts(text: str) -> list[int]:
    """Positions (above 0) where a sentence begins, ascending. A blank line always ends one; "Dr.", "e.g.", single
    initials and decimals do not."""
    starts = set()
    for match in _END.finditer(text):
        after = _skip(text, match.end())
        if after < len(text) and _ends(text, match.start(), match.end(), after):
            starts.add(after)
    for match in re.finditer(r"\n[^\S\n]*\n\s*", text):
        if match.end() < len(text) and match.start() > 0:
            starts.add(match.end())
    return sorted(starts)


def _ends(text: str, start: int, end: int, after: int) -> bool:
    mark = text[start:end]
    if not _LATIN_END.match(mark):
        return True
    if after == end:  # "3.14", "what?!no": Latin marks need white space, except before Chinese
        return "\u4e00" <= text[after] <= "\u9fff"
    if text[start] != ".":
        return not text[after].islower() or "\n" in text[end:after]
    word = _WORD_BEFORE.search(text[max(0, start - 20) : start + 1])
    if word and len(mark) == 1:
        name = word[1].lower()
        if name in _ABBREVIATIONS or (len(name) == 1 and word[1].isupper() and word[1] != "I"):
            return False
    return not text[after].islower() or start == 0 or text[start - 1] in ")]\"'”’" or text[start - 1].isspace()


def _skip(text: str, place: int) -> int:
    match = _space().match(text, place)
    return match.end() if match else place


@cache
def _space() -> re.Pattern[str]:
    return re.compile(r"\s*")


def clause_starts(text: str) -> list[int]:
    """Positions after commas, colons and semicolons, Chinese and English."""
    return [place for match in _CLAUSE.finditer(text) if (place := _skip(text, match.end())) < len(text)]


def sentences(text: str) -> list[tuple[int, int]]:
    """The spans of the sentences, without white space around them."""
    borders = [0, *sentence_starts(text), len(text)]
    found = []
    for start, end in itertools.pairwise(borders):
        piece = text[start:end]
        if piece.strip():
            found.append((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())))
    return found
