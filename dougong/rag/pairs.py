"""Pairs to train an embedder on: the questions of a collection, and what must not be taken for their passages."""

from __future__ import annotations

import random
from collections.abc import Sequence

from dougong.base import DougongError
from dougong.rag.chunk import Chunk
from dougong.rag.chunkers import Chunker
from dougong.rag.contrastive import Pair
from dougong.rag.evaluate.collections import Collection
from dougong.rag.sentences import sentences
from dougong.rag.words import WordIndex

DEPTH = 20
"""Chunks, best by words, that hard negatives are drawn from: the first NEAREST of them in other documents."""
NEAREST = 8
CLOZE = (6, 24)
"""Characters of a cloze's query, at least and at most."""


def pairs_of(
    collection: Collection, chunker: Chunker, negatives: int = 1, cloze: bool = False, seed: int = 0
) -> list[Pair]:
    """Each question with the chunk of its own document that holds its answer; `negatives` are chunks of other documents
    that BM25 finds for it (hard negatives; Karpukhin et al. 2020). Questions whose answer no chunk holds are left out.

    cloze: besides, a stretch of a sentence of every chunk of two sentences or more as a query for that chunk, half of
    the time without the sentence (the inverse cloze task; Lee et al. 2019). Only documents that some question is about
    are used. Raises DougongError for a collection without answers.
    """
    if not collection.answers:
        raise DougongError(f"the collection {collection.name} has no expected answers, by which passages are chosen")
    draw = random.Random(seed)
    asked = {doc for query in collection.queries for doc in collection.gains[query]}
    cut = {each.source: chunker.chunk(each) for each in collection.documents if each.source in asked}
    chunks = [chunk for held in cut.values() for chunk in held]
    index = WordIndex(range(len(chunks)), [chunk.text for chunk in chunks])

    def pair(query: str, passage: str, docs: set[str]) -> Pair:
        found = [chunks[place] for place, _ in index.search(query, DEPTH)]
        near = [chunk.text for chunk in found if chunk.doc not in docs][:NEAREST]
        return Pair(query, passage, tuple(draw.sample(near, min(negatives, len(near)))))

    made = []
    for query, text in collection.queries.items():
        docs = set(collection.gains[query])
        own = _holding([chunk for doc in docs for chunk in cut[doc]], collection.answers[query])
        if own is not None:
            made.append(pair(text, own.text, docs))
    for chunk in chunks if cloze else ():
        if clozed := _cloze(chunk.text, draw):
            made.append(pair(*clozed, {chunk.doc}))
    return made


def _holding(chunks: Sequence[Chunk], answers: Sequence[str]) -> Chunk | None:
    return next((chunk for answer in answers for chunk in chunks if answer in chunk.text), None)


def _cloze(text: str, draw: random.Random) -> tuple[str, str] | None:
    """A stretch of one sentence, and the text with or without that sentence; None where there are no two sentences."""
    spans = sentences(text)
    if len(spans) < 2:
        return None
    start, end = draw.choice(spans)
    sentence, length = text[start:end].strip(), draw.randint(*CLOZE)
    first = draw.randint(0, max(0, len(sentence) - length))
    return sentence[first : first + length], text if draw.random() < 0.5 else text[:start] + text[end:]
