"""The loop of agentic retrieval, decision by decision, with a scripted model; it always ends."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.chat import ChatModel, Delta, Failure, ScriptedChat, Step
from dougong.data import Document
from dougong.rag.agentic import choose, decompose, fill, investigate, judge, needs_search, rewrite
from dougong.rag.chunkers import Sentences
from dougong.rag.library import Library
from tests.rag.conftest import Hashed


def library(**texts: str) -> Library:
    made = Library.open("memory:", Hashed(), Sentences(30))
    made.add_documents([Document(text, name) for name, text in texts.items()])
    return made


@pytest.fixture
def sources():
    people = library(ann="Ann Lee was taught by Bo Chen.", bo="Bo Chen was born in Millford.")
    return {"people": people.retriever("words"), "mills": library(mill="Red Mill stands.").retriever("words")}


def say(**fields: object) -> str:
    return json.dumps(fields)


def test_two_hops_with_correction_and_citations(sources) -> None:
    steps = [
        Step(say(search=True), expects="Must documents be searched"),
        Step(say(questions=["Who taught Ann Lee?", "Where was he born?"]), expects="Take this question apart"),
        Step(say(source="people"), expects="Which source"),
        Step(say(verdict="nothing", helpful=[]), expects="Who taught Ann Lee?"),
        Step(say(query="Ann Lee taught"), expects="did not find enough"),
        Step(say(verdict="enough", helpful=[1]), expects="taught by Bo Chen"),
        Step("Bo Chen [1].", expects="Question: Who taught Ann Lee?"),
        Step(say(question="Where was Bo Chen born?"), expects="Where was he born?"),
        Step(say(source="people"), expects="Where was Bo Chen born?"),
        Step(say(verdict="enough", helpful=[1]), expects="born in Millford"),
        Step("He was born in Millford [2]. He was tall [1].", expects="Where was her teacher born?"),
        Step(say(supported=True), expects="He was born in Millford"),
        Step(say(supported=False), expects="He was tall"),
        Step("He was born in Millford [2].", expects="- He was tall"),
        Step(say(supported=True)),
    ]
    with ScriptedChat(steps) as model:
        found = investigate("Ann Lee: Where was her teacher born?", model, sources)
    assert found.supported and found.answer.text == "He was born in Millford [2]."
    assert found.answer.citations[0].text == "Bo Chen was born in Millford."
    kinds = [event.kind for event in found.events]
    assert kinds.count("search") == 3 and kinds.count("rewrite") == 1 and kinds[-2:] == ["correct", "check"]


def test_a_greeting_needs_no_search(sources) -> None:
    with ScriptedChat([say(search=False), "Hello!"]) as model:
        found = investigate("Hi", model, sources)
    assert found.answer.text == "Hello!" and [event.kind for event in found.events] == ["skip"]


@pytest.mark.parametrize("nonsense", ["nonsense", "[" * 100_000, '{"search":' * 5000, "9" * 5000])
def test_every_decision_survives_nonsense(sources, nonsense: str) -> None:
    chunks = [hit.chunk for hit in sources["people"].search("Bo Chen", 2)]
    assert rewrite("q", ["x"], ScriptedChat([json.dumps({"query": "Bo \ud800"})])) == "Bo \ufffd"
    model = ScriptedChat([nonsense] * 6)
    assert needs_search("q", model)
    assert decompose("q", model) == ["q"]
    assert choose("q", ["a", "b"], model) == "a"
    assert judge("q", chunks, model) == ("partly", chunks)
    assert rewrite("q", ["x"], model) == "q"
    assert fill("q", [("a", "b")], model) == "q"
    model.check()
    assert judge("q", [], ScriptedChat([])) == ("nothing", [])
    assert choose("q", ["only"], ScriptedChat([])) == "only"


class Babbler(ChatModel):
    """Answers from a list, over and over."""

    def __init__(self, answers: list[str]):
        self.answers, self.count = itertools.cycle(answers), 0

    def stream(self, messages, tools=None, schema=None, sampling=None) -> Iterator[Delta]:
        self.count += 1
        yield Delta(content=next(self.answers), finish_reason="stop")


ANSWERS = (
    *(
        "",
        "nonsense",
        "[" * 50_000,
        "[1] yes. No [2][99].",
        "null",
        "[]",
        '{"search": true}',
        '{"questions": ["a", "b", "c", "d"]}',
    ),
    *('{"verdict": "partly", "helpful": [1]}', '{"query": "Bo"}', '{"supported": false}', '{"source": "mills"}'),
)


@settings(max_examples=60)
@given(
    answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=6), hops=st.integers(1, 3), fix=st.integers(0, 2)
)
def test_it_always_ends(answers: list[str], hops: int, fix: int) -> None:
    people = SHARED.setdefault("people", library(bo="Bo Chen was born in Millford. He left.").retriever("words"))
    model = Babbler(answers)
    found = investigate("Who is Bo Chen?", model, {"people": people}, hops=hops, corrections=fix)
    assert model.count <= 100
    for each in found.answer.citations:
        assert each.text in ("Bo Chen was born in Millford. He left.",)


SHARED: dict = {}


def test_what_cannot_be_asked(sources) -> None:
    with pytest.raises(DougongError, match="at least 1"):
        investigate("q", ScriptedChat([]), sources, hops=0)
    with pytest.raises(DougongError, match="at least 1"):
        investigate("q", ScriptedChat([]), sources, k=0)
    with pytest.raises(DougongError, match="0 sources"):
        investigate("q", ScriptedChat([]), {})


def test_the_whole_loop_over_http_with_a_server_that_fails_first(sources) -> None:
    pytest.importorskip("httpx")
    from dougong.chat import RemoteChat

    steps = [
        Step(Failure(status=429, retry_after=0.01)),
        Step(say(search=True), expects="Must documents be searched"),
        Step(say(questions=["Who taught Ann Lee?", "Where was he born?"]), expects="Take this question apart"),
        say(source="people"),
        Step("no object at all", expects="Who taught Ann Lee?"),  # the judge cannot be read: all is kept, "partly"
        say(query="Ann Lee taught"),
        say(verdict="enough", helpful=[1]),
        "Bo Chen [1].",
        say(question="Where was Bo Chen born?"),
        say(source="people"),
        say(verdict="enough", helpful=[1]),
        "He was born in Millford [2]. He was tall [1].",
        say(supported=True),
        say(supported=False),
        "He was born in Millford [2].",
        say(supported=True),
    ]
    with ScriptedChat(steps) as script, script.serve() as url:
        found = investigate("Ann Lee: Where was her teacher born?", RemoteChat(url), sources)
    assert found.supported and found.answer.text == "He was born in Millford [2]."
    (cited,) = found.answer.citations
    assert cited.text == "Bo Chen was born in Millford." and cited.doc == "bo"
