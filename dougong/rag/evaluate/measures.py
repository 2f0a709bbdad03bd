"""Measures of rankings and of answers: pure functions."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from dougong.rag.ruler import CJK


def ndcg(ranking: Sequence[str], gains: Mapping[str, float], k: int = 10) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002), with the gain itself on top:

    sum over the first k ranks r from 1 of gain(r) / log2(r + 1), over that of the ideal ranking
    """
    got = sum(gains.get(doc, 0.0) / math.log2(rank + 2) for rank, doc in enumerate(ranking[:k]))
    ideal = sorted(gains.values(), reverse=True)[:k]
    best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal))
    return got / best if best > 0 else 0.0


def recall(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """The share of what is relevant that is among the first k."""
    return len(set(ranking[:k]) & set(relevant)) / len(set(relevant)) if relevant else 0.0


def reciprocal_rank_of_first(ranking: Sequence[str], relevant: Collection[str]) -> float:
    """1 / the rank of the first relevant one, 0 where there is none; its mean over queries is MRR."""
    return next((1.0 / rank for rank, doc in enumerate(ranking, start=1) if doc in relevant), 0.0)


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = string.punctuation + "，。！？；：“”‘’（）《》、…—·「」『』【】"
_WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")


def _words(text: str) -> list[str]:
    """As SQuAD and CMRC compare answers: lower case, without marks and articles; a Chinese character is a word."""
    plain = "".join(" " if character in _MARKS else character for character in text.lower())
    return _WORD.findall(_ARTICLES.sub(" ", plain))


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """1 where the answer is one of those expected, marks, case and articles aside."""
    return float(any(_words(answer) == _words(each) for each in expected))


def f1(answer: str, expected: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall of words against any expected answer."""
    return max((_f1(_words(answer), _words(each)) for each in expected), default=0.0)


def _f1(said: list[str], wanted: list[str]) -> float:
    common = sum((Counter(said) & Counter(wanted)).values())
    if not said or not wanted:
        return float(said == wanted)
    return 2 * common / (len(said) + len(wanted))
