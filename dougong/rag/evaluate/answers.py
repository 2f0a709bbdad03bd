"""How good answers are: against the expected ones, and against the passages that they cite."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dougong.base import DougongError
from dougong.chat import ChatModel
from dougong.rag.answer import answer, faithfulness, quote, verify
from dougong.rag.evaluate.collections import Collection
from dougong.rag.evaluate.measures import exact_match, f1
from dougong.rag.evaluate.table import Result
from dougong.rag.hit import Retriever

SHORT = "Answer in as few words as the passage has for it."


def evaluate_answers(
    collection: Collection,
    retriever: Retriever,
    model: ChatModel | None,
    k: int = 4,
    judge: ChatModel | None = None,
    progress: Callable[[int], None] | None = None,
) -> Mapping[str, Result]:
    """Exact match and F1 of a model's answers from k chunks, the share of their sentences that what they cite backs
    (faithfulness, of the answers that have one to judge), and whether an expected answer stood in the chunks at all.

    model: who answers; None: nobody, the sentence of the chunks with the most of the question's words is quoted, which
    is faithful by construction and seldom exact. judge: decides what is backed; None: common words. A question that
    expects no answer is answered by saying that nothing was found (SQuAD 2.0). Raises DougongError for a collection
    without answers.
    """
    if not collection.answers:
        raise DougongError(f"the collection {collection.name} has no expected answers; cmrc has")
    measures: dict[str, list[float]] = {"exact": [], "F1": [], "answer in chunks": [], "faithful": []}
    for done, (query, text) in enumerate(collection.queries.items(), start=1):
        expected = collection.answers.get(query, ())
        chunks = [hit.chunk for hit in retriever.search(text, k)]
        given = quote(text, chunks, 1) if model is None else answer(f"{text}\n{SHORT}", chunks, model)
        measures["exact"].append(exact_match(given.said, expected))
        measures["F1"].append(f1(given.said, expected, run=collection.run))
        if expected:
            measures["answer in chunks"].append(float(any(each in chunk.text for each in expected for chunk in chunks)))
        backed = faithfulness(verify(given, judge)) if given.said else None
        if backed is not None:
            measures["faithful"].append(backed)
        if progress is not None:
            progress(done)
    return {name: Result.of(values) for name, values in measures.items() if values}
