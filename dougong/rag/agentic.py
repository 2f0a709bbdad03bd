"""Agentic retrieval: search or not, rewrite, take apart, choose the source, judge what was found, search again, check
the answer sentence by sentence, correct it. Each decision is a function; `investigate` is the plain loop over them.

The control follows Self-RAG (Asai et al. 2023) and CRAG (Yan et al. 2024); their judges are trained, ours is asked.
Whatever a model answers, the loop ends: after `hops` searches and `corrections` rewrites at most. An answer that cannot
be read counts as the cautious choice: search, keep the question, do not trust.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dougong.base import DougongError
from dougong.chat import ChatModel, Message
from dougong.rag.answer import Answer, Checked, answer, listing, verify
from dougong.rag.chunk import Chunk
from dougong.rag.hit import Retriever
from dougong.rag.retrievers.rewriting import asked, listed

Verdict = Literal["enough", "partly", "nothing"]


@dataclass(frozen=True)
class Event:
    """One decision, for the reader of a trace: its kind, and what was decided."""

    kind: Literal["search", "skip", "decompose", "source", "found", "judge", "rewrite", "answer", "check", "correct"]
    detail: Any


@dataclass(frozen=True)
class Investigation:
    """An answer, its sentences as checked, and how it came about."""

    answer: Answer
    checked: tuple[Checked, ...] = ()
    events: tuple[Event, ...] = field(default=())

    @property
    def supported(self) -> bool:
        """Whether every sentence that could be judged is backed by what it cites."""
        return bool(self.checked) and all(each.supported is not False for each in self.checked)


def _schema(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXTS = {"type": "array", "items": {"type": "string"}}


def needs_search(question: str, model: ChatModel) -> bool:
    """Whether documents have to be searched: not for a greeting or for what is true without them."""
    prompt = (
        f"Must documents be searched to answer this message?\n\nMessage: {json.dumps(question, ensure_ascii=False)}"
    )
    return asked(model, prompt, _schema(search={"type": "boolean"})).get("search") is not False


def decompose(question: str, model: ChatModel, most: int = 3) -> list[str]:
    """The questions to answer one after the other; the question itself where one search can do."""
    prompt = (
        f"Take this question apart into at most {most} simpler ones, in the order in which they can be answered. "
        f"If it is simple, repeat it alone. Keep its language.\n\nQuestion: {question}"
    )
    return listed(asked(model, prompt, _schema(questions=_TEXTS)).get("questions"))[:most] or [question]


def choose(question: str, sources: Sequence[str], model: ChatModel) -> str:
    """Which source to search; the first where there is one only, or the model names none of them."""
    if len(sources) == 1:
        return sources[0]
    prompt = f"Which source answers this best?\nSources: {', '.join(sources)}\n\nQuestion: {question}"
    named = asked(model, prompt, _schema(source={"type": "string", "enum": list(sources)})).get("source")
    return named if isinstance(named, str) and named in sources else sources[0]


def judge(question: str, chunks: Sequence[Chunk], model: ChatModel) -> tuple[Verdict, list[Chunk]]:
    """Whether the passages answer the question, and those of them that help.

    Passages whose numbers the model does not name are dropped; with an unreadable answer all are kept, "partly".
    """
    if not chunks:
        return "nothing", []
    shape = _schema(
        verdict={"type": "string", "enum": ["enough", "partly", "nothing"]},
        helpful={"type": "array", "items": {"type": "integer"}},
    )
    prompt = f"{listing(chunks)}\n\nQuestion: {question}\n\nDo these passages answer it, and which of them help?"
    said = asked(model, prompt, shape)
    verdict, numbers = said.get("verdict"), said.get("helpful")
    if verdict not in ("enough", "partly", "nothing") or not isinstance(numbers, list):
        return "partly", list(chunks)
    kept = [chunk for number, chunk in enumerate(chunks, start=1) if number in numbers]
    return (verdict, kept) if kept or verdict == "nothing" else ("nothing", [])


def rewrite(question: str, tried: Sequence[str], model: ChatModel) -> str:
    """Another query for a question whose searches found too little; the question where the model gives none."""
    prompt = (
        f"These searches did not find enough: {json.dumps(list(tried), ensure_ascii=False)}\n"
        f"Write another query, in other words.\n\nQuestion: {question}"
    )
    query = asked(model, prompt, _schema(query={"type": "string"})).get("query")
    return query.strip() if isinstance(query, str) and query.strip() else question


def fill(question: str, known: Sequence[tuple[str, str]], model: ChatModel) -> str:
    """A later question with what earlier ones found put in: "where was he born?" becomes "where was Bo Chen born?"."""
    if not known:
        return question
    facts = "\n".join(f"Q: {asked_}\nA: {said}" for asked_, said in known)
    prompt = f"{facts}\n\nRewrite this question so that it can be understood without the above: {question}"
    filled = asked(model, prompt, _schema(question={"type": "string"})).get("question")
    return filled.strip() if isinstance(filled, str) and filled.strip() else question


def correct(question: str, given: Answer, checked: Sequence[Checked], model: ChatModel) -> Answer:
    """The answer again, without what its passages do not say."""
    wrong = "\n".join(f"- {each.text}" for each in checked if each.supported is False)
    note = (
        f"{question}\n\nAn earlier answer was: {json.dumps(given.text, ensure_ascii=False)}\n"
        f"These sentences of it are not backed by the passages they cite:\n{wrong}\nAnswer again without such."
    )
    return answer(note, given.passages, model)


def gather(
    question: str,
    model: ChatModel,
    sources: Mapping[str, Retriever],
    k: int,
    hops: int,
    events: list[Event],
) -> list[Chunk]:
    """The passages that help with one question, over up to `hops` searches."""
    source = choose(question, list(sources), model)
    events.append(Event("source", source))
    query, tried, kept = question, [], {}
    for hop in range(hops):
        tried.append(query)
        events.append(Event("search", query))
        found = [hit.chunk for hit in sources[source].search(query, k)]
        events.append(Event("found", [chunk.id for chunk in found]))
        verdict, helpful = judge(question, found, model)
        events.append(Event("judge", verdict))
        kept.update({chunk.id: chunk for chunk in helpful})
        if verdict == "enough" or hop + 1 == hops:
            break
        query = rewrite(question, tried, model)
        events.append(Event("rewrite", query))
        if query in tried:
            break
    return list(kept.values())


def investigate(
    question: str,
    model: ChatModel,
    sources: Mapping[str, Retriever],
    *,
    k: int = 6,
    hops: int = 2,
    corrections: int = 1,
    strict: bool = True,
) -> Investigation:
    """Answer a question from several sources in as many steps as it takes, and check the answer.

    sources: retrievers by a name that says what they hold. strict: sentences are checked by the model, otherwise by the
    words that they share with what they cite. Raises DougongError when there is no source or hops is below 1.
    """
    if not sources or hops < 1 or k < 1:
        raise DougongError(f"{len(sources)} sources, {hops} hops, k {k}; each must be at least 1")
    events: list[Event] = []
    if not needs_search(question, model):
        events.append(Event("skip", question))
        said = model.complete([Message("user", question)]).content.strip()
        return Investigation(Answer(said, (), (), ()), (), tuple(events))
    parts = decompose(question, model)
    events.append(Event("decompose", parts))
    passages: dict[int, Chunk] = {}
    known: list[tuple[str, str]] = []
    for number, part in enumerate(parts):
        part = fill(part, known, model)
        found = gather(part, model, sources, k, hops, events)
        passages.update({chunk.id: chunk for chunk in found})
        if number + 1 < len(parts) and found:
            known.append((part, answer(part, found, model).text))
    given = answer(question, list(passages.values()), model)
    events.append(Event("answer", given.text))
    checked = verify(given, model if strict else None)
    events.append(Event("check", [each.supported for each in checked]))
    for _ in range(corrections):
        if not given.passages or all(each.supported is not False for each in checked):
            break
        given = correct(question, given, checked, model)
        events.append(Event("correct", given.text))
        checked = verify(given, model if strict else None)
        events.append(Event("check", [each.supported for each in checked]))
    return Investigation(given, tuple(checked), tuple(events))
