"""Text to the terms that word search compares: stemmed English words, pairs of Chinese characters."""

from __future__ import annotations

import re
import threading
import unicodedata
from typing import Any

from dougong.rag.extras import need
from dougong.rag.ruler import CJK

FORM = 1
"""Grows when `terms` gives other terms: indexes that were kept are then made anew."""
STOP_WORDS = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "did", "do", "does", "for", "from"),
        *("had", "has", "have", "he", "how", "i", "if", "in", "into", "is", "it", "its", "no", "not", "of", "on", "or"),
        *("she", "so", "such", "than", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"),
        *("we", "were", "what", "when", "where", "which", "who", "will", "with", "would", "you"),
    )
)
# Snake_case and dotted names are taken apart, and so is camelCase: code is searched with the words it is made of.
_RUN = re.compile(rf"[{CJK}]+|(?:(?![{CJK}_])\w)+")
_CHINESE = re.compile(rf"[{CJK}]")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_local = threading.local()  # a stemmer must not be shared between threads


def terms(text: str) -> list[str]:
    """The terms of `text` in order. English: lower case, without stop words, stemmed (Snowball). Chinese: every pair of
    neighbouring characters, a lone character by itself; a segmenter would need a dictionary of the field."""
    found: list[str] = []
    words: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFKC", _CAMEL.sub(" ", text))):
        if _CHINESE.match(run):
            found += [run[place : place + 2] for place in range(len(run) - 1)] or [run]
        else:
            word = run.casefold()
            if word not in STOP_WORDS:
                words.append(word)
    return found + _stemmer().stemWords(words)


def _stemmer() -> Any:
    if not hasattr(_local, "stemmer"):
        _local.stemmer = need("Stemmer", "word search").Stemmer("english")
    return _local.stemmer
