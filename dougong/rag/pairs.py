"""Pairs to train an embedder on: the questions of a collection, and what must not be taken for their passages."""

from __future__ import annotations

import random
from collections.abc import Sequence

from dougong.rag.chunk import Chunk
from dougong.rag.chunkers import Chunker
from dougong.rag.contrastive import Pair
from dougong.rag.evaluate.collections import Collection
from dougong.rag.evaluate.measures import relevant
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
    Where a collection expects no answers, each question with every document that is relevant to it, of which the chunk
    is taken that BM25 finds first.

    cloze: besides, a stretch of a sentence of every chunk of two sentences or more as a query for that chunk, half of
    the time without the sentence (the inverse cloze task; Lee et al. 2019). Only documents that some question is about
    are used.
    """
    draw = random.Random(seed)
    asked = {doc for query in collection.queries for doc in collection.gains[query]}
    used = collection.documents if not collection.answers else [e for e in collection.documents if e.source in asked]
    cut = {each.source: chunker.chunk(each) for each in used}
    chunks = [chunk for held in cut.values() for chunk in held]
    index = WordIndex(range(len(chunks)), [chunk.text for chunk in chunks])

    def pair(query: str, passage: str, docs: set[str]) -> Pair:
        found = [chunks[place] for place, _ in index.search(query, DEPTH)]
        near = [chunk.text for chunk in found if chunk.doc not in docs][:NEAREST]
        return Pair(query, passage, tuple(draw.sample(near, min(negatives, len(near)))))

    made = []
    for query, text in collection.queries.items():
        docs = set(relevant(collection.gains[query]))
        if not collection.answers:
            places = {place: rank for rank, (place, _) in enumerate(index.search(text, len(chunks)))}
            for doc in sorted(docs):
                held = [place for place, chunk in enumerate(chunks) if chunk.doc == doc]
                if held:
                    made.append(
                        pair(text, chunks[min(held, key=lambda each: places.get(each, len(places)))].text, docs)
                    )
            continue
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
