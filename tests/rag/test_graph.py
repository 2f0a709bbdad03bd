"""The graph of a library: provenance on every edge, and deletion that leaves it as if the text had never been there."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.chat import ScriptedChat, Step
from dougong.data import Document
from dougong.rag.chunkers import Sentences
from dougong.rag.graph import ByModel, ByRule, Graph, Local, Relation, ask_globally, communities, paths
from dougong.rag.graph.communities import summary
from dougong.rag.library import Library
from tests.rag.conftest import Hashed

pytest.importorskip("igraph")
TEXTS = {
    "a": "In 1703 Ann Lee built Stone Bridge near Millford. In Millford lives Bo Chen.",
    "b": "We know that Bo Chen painted Stone Bridge. They say Ann Lee taught Bo Chen.",
    "c": "Later Carl Diaz sold Red Mill to Dora Eno. Then Dora Eno closed Red Mill.",
    "d": "One winter Carl Diaz met Ann Lee.",
}


def made(texts: dict[str, str], path: Path | None = None) -> tuple[Library, Graph]:
    library = Library.open("memory:", Hashed(), Sentences(60))
    graph = Graph(library, ByRule(), path)
    library.add_documents([Document(text, name) for name, text in texts.items()])
    return library, graph


def test_rules_find_names_and_what_is_between_them() -> None:
    found = ByRule(known=("斗拱",)).extract(
        "The builder Ann Lee built Stone Bridge. Bridges last. 斗拱出自《营造法式》。See `for x`."
    )
    assert {"Ann Lee", "Stone Bridge", "斗拱", "营造法式", "for x"} == set(found.entities)
    assert Relation("Ann Lee", "built", "Stone Bridge") in found.relations
    assert any(each.head == "斗拱" and each.relation == "出自" for each in found.relations)
    assert ByRule().extract("").entities == {}


def test_a_model_cannot_add_what_the_text_does_not_mention() -> None:
    answer = {
        "entities": [{"name": "Ann", "description": "a builder"}, {"name": "Zed", "description": "made up"}, 7],
        "relations": [
            {"head": "Ann", "relation": "built", "tail": "bridge"},
            {"head": "Ann", "relation": "met", "tail": "Zed"},
            {"head": "Ann"},
        ],
    }
    with ScriptedChat([json.dumps(answer), "nonsense"]) as model:
        found = ByModel(model).extract("Ann built a bridge.")
        assert found.entities == {"Ann": "a builder", "bridge": ""}
        assert found.relations == (Relation("Ann", "built", "bridge"),)
        assert model.asked[0].schema is not None
        assert ByModel(model).extract("Ann built a bridge.").relations == ()


def test_every_edge_knows_its_chunks() -> None:
    library, graph = made(TEXTS)
    view = graph.view
    assert ("ann lee", "stone bridge") in view.edges
    for edge in view.edges.values():
        for relation, chunks in edge.said.items():
            for each in chunks:
                text = library.store.chunks()[each].text
                assert relation.head in text and relation.tail in text
                assert relation.relation == "with" or relation.relation in text
    assert view.entities["ann lee"].chunks == tuple(
        sorted(each for each, chunk in library.store.chunks().items() if "Ann Lee" in chunk.text)
    )


@settings(max_examples=12)
@given(steps=st.lists(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(sorted(TEXTS)), max_size=4), max_size=4))
def test_deletion_repairs_the_graph(steps: list[dict[str, str]]) -> None:
    library, graph = made({})
    held: set[str] = set()
    for step in steps:
        for gone in held - step.keys():
            library.remove(gone)
        library.add_documents([Document(TEXTS[text], name) for name, text in step.items()])
        held = set(step)
        fresh = made({name: TEXTS[text] for name, text in step.items()})[1]
        assert graph.view == fresh.view
        assert communities(graph.view) == communities(fresh.view)


def test_what_was_read_is_kept(tmp_path: Path) -> None:
    place = tmp_path / "graph.json"
    _, graph = made(TEXTS, place)
    library = Library.open("memory:", Hashed(), Sentences(60))
    library.add_documents([Document(text, name) for name, text in TEXTS.items()])
    again = Graph(library, ByRule(), place)
    assert again.view == graph.view and again.follow() == 0
    assert Graph(library, ByRule(most=3), place).follow() == len(library.store.chunks())  # read another way
    place.write_text('{"extractor": "rule-8-", "chunks": {"x": 1}}')
    with pytest.raises(DougongError, match="not a graph"):
        Graph(library, ByRule(), place)


def test_communities_have_summaries_that_are_made_once() -> None:
    library, graph = made({name: TEXTS[name] for name in "abc"})
    found = communities(graph.view)
    assert [set(each.members) for each in found][-1] == {"carl diaz", "red mill", "dora eno"}
    assert "Red Mill" in summary(graph, found[-1])
    with ScriptedChat(["About a mill."]) as model:
        assert summary(graph, found[-1], model) == summary(graph, found[-1], model) == "About a mill."
    library.add_documents([Document("In May Dora Eno opened Red Mill.", "e")])
    changed = communities(graph.view)[-1]
    with ScriptedChat(["It opened again."]) as model:
        assert summary(graph, changed, model) == "It opened again."


def test_local_search_reaches_neighbours() -> None:
    _, graph = made(TEXTS)
    hits = Local(graph).search("what did Dora Eno do?", 4)
    assert hits[0].chunk.doc == "c"
    assert "d" in {hit.chunk.doc for hit in hits}  # through Carl Diaz
    assert {hit.chunk.doc for hit in Local(graph).search("Dora Eno", 4, {"doc": "d"})} == {"d"}
    assert Local(graph).search("mill", 1)[0].chunk.doc == "c"  # no whole name: the likest
    assert made({})[1].view.edges == {} and Local(made({})[1]).search("x") == []


def test_paths_are_backed_by_chunks() -> None:
    library, graph = made(TEXTS)
    (path, *_) = paths(graph, "Dora Eno", "bo chen")
    assert len(path) == 3
    ends = [{step.relation.head, step.relation.tail} for step in path]
    assert "Dora Eno" in ends[0] and "Bo Chen" in ends[-1]
    assert all(one & two for one, two in pairwise(ends))
    assert all(step.relation.head in library.store.chunks()[chunk].text for step in path for chunk in step.chunks)
    library.remove("d")
    assert paths(graph, "Dora Eno", "Bo Chen") == []
    with pytest.raises(DougongError, match="did you mean 'ann lee'"):
        paths(graph, "ann le", "Bo Chen")


def test_a_global_question_is_answered_from_helpful_communities() -> None:
    _, graph = made({name: TEXTS[name] for name in "abc"})
    count = len(communities(graph.view))
    steps = [Step(f"Summary {number}.") for number in range(count)]
    answers = [json.dumps({"answer": f"Point {number}", "helpful": 10 * number}) for number in range(count)]
    last = Step("All in all.", expects=lambda asked: "Point 0" not in asked.last and f"Point {count - 1}" in asked.last)
    with ScriptedChat([*steps, *answers, last]) as model:
        given_ = ask_globally(graph, "What is it all about?", model)
    assert given_.text == "All in all." and len(given_.communities) == count - 1
    with ScriptedChat(["nonsense"] * count) as model:
        assert ask_globally(graph, "?", model).communities == ()
