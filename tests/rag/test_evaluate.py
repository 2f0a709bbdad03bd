"""The measures against worked examples, the collections as they are known, the bar for word search."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.chat import ScriptedChat
from dougong.data import Document
from dougong.rag.chunk import Chunk
from dougong.rag.evaluate import (
    Collection,
    Result,
    evaluate,
    evaluate_answers,
    exact_match,
    f1,
    ndcg,
    ranked_documents,
    read_collection,
    recall,
    reciprocal_rank_of_first,
)
from dougong.rag.evaluate.measures import relevant
from dougong.rag.hit import Hit, Retriever
from dougong.rag.retrievers.hops import Hops
from dougong.rag.words import WordIndex


def test_measures_by_hand() -> None:
    # Wikipedia's example: gains 3, 2, 3, 0, 1, 2 and two more documents of gains 3 and 2 that were not found.
    gains = {"a": 3.0, "b": 2.0, "c": 3.0, "e": 1.0, "f": 2.0, "g": 3.0, "h": 2.0}
    assert ndcg(list("abcdef"), gains, 6) == pytest.approx(6.861 / 8.740, abs=1e-3)
    assert ndcg(["a"], {"a": 1.0, "b": 1.0}) == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert ndcg(["x"], {}) == 0.0
    assert recall(list("abcd"), {"a", "d", "z"}, 3) == pytest.approx(1 / 3)
    assert reciprocal_rank_of_first(list("xya"), {"a", "b"}) == pytest.approx(1 / 3)
    assert reciprocal_rank_of_first(list("xy"), {"a"}) == 0.0


@given(
    st.lists(st.sampled_from("abcdefgh"), unique=True),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3).map(float), min_size=1),
    st.integers(1, 8),
)
def test_measures_lie_between_nothing_and_the_ideal(ranking: list[str], gains: dict[str, float], k: int) -> None:
    wanted = relevant(gains)
    ideal = sorted(gains, key=lambda doc: -gains[doc])
    for value in (ndcg(ranking, gains, k), recall(ranking, wanted, k), reciprocal_rank_of_first(ranking, wanted)):
        assert 0.0 <= value <= 1.0
    if wanted:
        assert ndcg(ideal, gains, k) == pytest.approx(1.0)
        assert recall(ideal, wanted, len(ideal)) == reciprocal_rank_of_first(ideal, wanted) == 1.0
    else:
        assert ndcg(ranking, gains, k) == recall(ranking, wanted, k) == 0.0


def test_measures_as_trec_eval_gives_them() -> None:
    # By pytrec-eval-terrier 0.5 (ndcg_cut_3, recall_3, recip_rank) for the ranking c, x, a, b.
    gains = {"a": 3.0, "b": 1.0, "c": 0.0, "d": 2.0}
    ranking = ["c", "x", "a", "b"]
    assert ndcg(ranking, gains, 3) == pytest.approx(1.5 / (3 + 2 / math.log2(3) + 0.5))
    assert recall(ranking, relevant(gains), 3) == pytest.approx(1 / 3)
    assert reciprocal_rank_of_first(ranking, relevant(gains)) == pytest.approx(1 / 3)  # c was judged, and has nothing
    assert ndcg(["a", "a"], {"a": 1.0}) == 1.0


def test_what_was_judged_and_has_no_gain_is_not_relevant() -> None:
    documents = [Document("red mill", "a"), Document("red bridge bridge", "b")]
    gains = {"1": {"b": 0.0, "a": 1.0}}
    collection = Collection("own", documents, {"1": "bridge red", "2": "bridge"}, gains, {})
    found = evaluate(collection, ByWords(documents)).results
    assert found["MRR"].each == (0.5, 0.0)  # b comes first; the second query was judged by nobody
    assert found["recall@10"].each == (1.0, 0.0)
    assert found["nDCG@10"].each == (pytest.approx(1 / math.log2(3)), 0.0)
    with pytest.raises(DougongError, match="no query"):
        evaluate(replace(collection, queries={}), ByWords(documents))


def test_answers_are_compared_as_squad_compares_them() -> None:
    # The official script takes marks out before articles and leaves nothing in their place.
    assert exact_match("the U.S.", ["US"]) == 1.0
    assert exact_match("well-known", ["wellknown"]) == 1.0
    assert exact_match("well-known", ["well known"]) == 0.0
    assert exact_match("The-end", ["end"]) == 0.0
    assert f1("a cat, the dog", ["cat dog bird", "x"]) == pytest.approx(0.8)
    assert f1("cat cat", ["cat"]) == pytest.approx(2 * 0.5 / 1.5)
    assert (exact_match("", ["x"]), f1("the", ["x"]), f1("x", ["the"])) == (0.0, 0.0, 0.0)
    # Questions that have no answer (SQuAD 2.0).
    assert (exact_match("", []), f1("", []), exact_match("x", []), f1("x", [])) == (1.0, 1.0, 0.0, 0.0)


def test_chinese_answers_are_compared_by_characters() -> None:
    assert exact_match("《红楼梦》", ["红楼梦"]) == 1.0
    assert exact_match("２００８年８月", ["2008年8月"]) == 0.0  # neither script folds widths
    assert exact_match("iPhone 手机", ["iphone手机。"]) == 1.0
    assert f1("iPhone手机", ["手机"]) == pytest.approx(0.8)
    # MLQA counts common characters wherever they stand; CMRC-2018's script their longest common run.
    assert f1("北京和上海", ["上海和北京"]) == 1.0
    assert f1("北京和上海", ["上海和北京"], run=True) == pytest.approx(0.4)
    assert f1("他生于一九〇八年", ["一九〇八年", "1908"], run=True) == pytest.approx(2 * 5 / 13)
    assert f1("甲", ["乙"], run=True) == 0.0


def test_answers_are_compared_without_marks_and_articles() -> None:
    assert exact_match("The Bridge.", ["bridge"]) == 1.0
    assert exact_match("斗拱。", ["斗拱", "x"]) == 1.0
    assert exact_match("bridges", ["bridge"]) == 0.0
    assert f1("the stone bridge", ["old stone bridge"]) == pytest.approx(0.8)
    assert f1("承托屋檐", ["屋檐"]) == pytest.approx(2 * 2 / 6)
    assert f1("", ["x"]) == 0.0


def test_intervals_hold_the_mean_and_shrink() -> None:
    few, many = Result.of([0.0, 1.0] * 5), Result.of([0.0, 1.0] * 500)
    for each in (few, many):
        assert each.low < each.value == 0.5 < each.high
    assert many.high - many.low < 0.07 < 0.3 < few.high - few.low
    assert few.over(few) == Result(0.0, 0.0, 0.0, (0.0,) * 10)


class ByWords(Retriever):
    """BM25 over whole documents."""

    def __init__(self, documents):
        self.chunks = [Chunk(each.text, each.source, 0, len(each.text)) for each in documents]
        self.index = WordIndex(range(len(self.chunks)), [each.text for each in self.chunks])

    def search(self, query, k=10, where=None):
        return [Hit(self.chunks[place], score) for place, score in self.index.search(query, k)]


def test_word_search_on_cranfield_reaches_the_bar(data: Path) -> None:
    collection = read_collection("cranfield", data)
    assert (len(collection.documents), len(collection.queries)) == (1398, 225)  # two of the 1,400 are blank
    row = evaluate(collection, ByWords(collection.documents))
    assert row.results["nDCG@10"].value >= 0.37
    assert row.results["recall@100"].value >= 0.73


def test_word_search_on_the_other_collections(data: Path) -> None:
    collection = read_collection("cisi", data)
    assert (len(collection.documents), len(collection.queries)) == (1460, 76)
    assert evaluate(collection, ByWords(collection.documents)).results["nDCG@10"].value > 0.38
    collection = read_collection("cmrc", data)
    some = dict(list(collection.queries.items())[:200])
    wanted = {doc for query in some for doc in collection.gains[query]}
    rest = [each for each in collection.documents if each.source not in wanted][:200]
    documents = [each for each in collection.documents if each.source in wanted] + rest
    texts = {each.source: each.text for each in documents}
    held = [
        any(answer in texts[doc] for answer in collection.answers[query] for doc in collection.gains[query])
        for query in some
    ]
    assert sum(held) >= 0.99 * len(held)
    assert evaluate(replace(collection, queries=some), ByWords(documents)).results["MRR"].value > 0.9


def test_two_hops_find_what_one_does_not(data: Path) -> None:
    collection = read_collection("hotpot", data)
    assert (len(collection.documents), len(collection.queries)) == (975, 100)
    assert all(len(gains) == 2 for gains in collection.gains.values())
    words = ByWords(collection.documents)
    once, twice = (evaluate(collection, each).results for each in (words, Hops(words)))
    assert once["recall@10"].value > 0.9
    gained = twice["nDCG@10"].over(once["nDCG@10"])
    assert gained.low > 0, gained


def test_a_collection_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DougongError, match="did you mean 'cisi'"):
        read_collection("cissi", tmp_path)
    with pytest.raises(DougongError, match="DOUGONG_DATA"):
        read_collection("cisi", tmp_path)


def test_documents_come_by_their_best_chunk() -> None:
    hits = [Hit(Chunk("x", doc, place, place + 1), 1.0) for place, doc in enumerate("abacb")]
    assert ranked_documents(hits) == ["a", "b", "c"]


def test_answers_are_measured_against_what_is_expected_and_what_they_cite() -> None:
    documents = [Document("The stone bridge was built in 1703.", "a"), Document("The mill is red.", "b")]
    queries = {"1": "When was the bridge built?", "2": "What colour is the mill?"}
    gains = {"1": {"a": 1.0}, "2": {"b": 1.0}}
    collection = Collection("own", documents, queries, gains, {"1": ["1703", "in 1703"], "2": ["red"]})
    with ScriptedChat(["1703 [1]", "It is made of gold [1]."]) as model:
        found = evaluate_answers(collection, ByWords(documents), model)
    assert found["exact"].each == (1.0, 0.0)
    assert found["F1"].each == (1.0, 0.0)
    assert found["answer in chunks"].each == (1.0, 1.0)
    assert found["faithful"].each == (1.0, 0.0)
    with ScriptedChat(["1703【1】", "green [^2] [1-2]"]) as model:  # marks of other models are no words of the answer
        assert evaluate_answers(collection, ByWords(documents), model)["exact"].each == (1.0, 0.0)
    with pytest.raises(DougongError, match="no expected answers"):
        evaluate_answers(replace(collection, answers={}), ByWords(documents), ScriptedChat([]))


def test_a_question_without_an_answer_is_answered_by_nothing() -> None:
    documents = [Document("The stone bridge was built in 1703.", "a")]
    asked = Collection("own", documents, {"1": "Whose zebra?", "2": "stone bridge?"}, {}, {"1": [], "2": []})
    found = evaluate_answers(asked, ByWords(documents), None)
    assert found["exact"].each == found["F1"].each == (1.0, 0.0)  # the first finds nothing to quote
    assert found["faithful"].each == (1.0,)
    assert "answer in chunks" not in found


def test_a_number_that_no_passage_has_is_not_backed() -> None:
    from dougong.rag.answer import cite, verify

    chunk = Chunk("The stone bridge over the river was built in 1703.", "a", 0, 50)
    told = "The stone bridge was built in {} [1]."
    assert [each.supported for each in verify(cite(told.format(1703), [chunk]))] == [True]
    assert [each.supported for each in verify(cite(told.format(1803), [chunk]))] == [False]
