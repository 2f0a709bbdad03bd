"""Measures of rankings and of answers: pure functions."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from dougong.rag.ruler import CJK


def ndcg(ranking: Sequence[str], gains: Mapping[str, float], k: int = 10) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002), with the gain itself on top, as trec_eval's
    ndcg_cut:

    sum over the first k ranks r from 1 of gain(r) / log2(r + 1), over that of the ideal ranking

    0 where nothing is relevant; gains below 0 count as 0, and a document counts where it first stands.
    """
    first = list(dict.fromkeys(ranking))[:k]
    got = sum(max(0.0, gains.get(doc, 0.0)) / math.log2(rank + 2) for rank, doc in enumerate(first))
    ideal = sorted(gains.values(), reverse=True)[:k]
    best = sum(max(0.0, gain) / math.log2(rank + 2) for rank, gain in enumerate(ideal))
    return got / best if best > 0 else 0.0


def relevant(gains: Mapping[str, float]) -> list[str]:
    """The documents whose gain is above 0: those judged and found wanting have 0."""
    return [doc for doc, gain in gains.items() if gain > 0]


def recall(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """The share of what is relevant that is among the first k."""
    return len(set(ranking[:k]) & set(relevant)) / len(set(relevant)) if relevant else 0.0


def reciprocal_rank_of_first(ranking: Sequence[str], relevant: Collection[str]) -> float:
    """1 / the rank of the first relevant one, 0 where there is none; its mean over queries is MRR."""
    return next((1.0 / rank for rank, doc in enumerate(ranking, start=1) if doc in relevant), 0.0)


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")


def _mark(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _words(text: str) -> list[str]:
    """As SQuAD (Rajpurkar et al. 2016) and, for Chinese, MLQA (Lewis et al. 2020) compare answers: lower case, marks
    taken out ("U.S." is "us"), then articles; a Chinese character is a word."""
    plain = "".join(character for character in text.lower() if not _mark(character))
    return _WORD.findall(_ARTICLES.sub(" ", plain))


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """1 where the answer is one of those expected, marks, case and articles aside. Where none is expected, the question
    cannot be answered, and the empty answer is right (SQuAD 2.0)."""
    return float(any(_words(answer) == _words(each) for each in expected or ("",)))


def f1(answer: str, expected: Sequence[str], *, run: bool = False) -> float:
    """The best harmonic mean of precision and recall of words against any expected answer.

    Common words count wherever they stand, as in SQuAD and MLQA; run: only those of the longest common run, as
    CMRC-2018 counts (Cui et al. 2019). An empty text is equal to another alone.
    """
    return max(_f1(_words(answer), _words(each), run) for each in expected or ("",))


def _f1(said: list[str], wanted: list[str], run: bool) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = _run(said, wanted) if run else sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def _run(first: list[str], second: list[str]) -> int:
    """Words of the longest run that stands in both: by pairs of ends, each one longer than the pair before it."""
    longest, before = 0, [0] * (len(second) + 1)
    for word in first:
        row = [0] + [length + 1 if word == other else 0 for other, length in zip(second, before, strict=False)]
        longest, before = max(longest, *row), row
    return longest
