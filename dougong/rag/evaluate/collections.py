"""Collections with judgements: Cranfield, CISI, CMRC-2018, HotpotQA, XQuAD, read from their own files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dougong.base import DougongError, nearest, read_json
from dougong.data import Document

Reader = Callable[[Path], "Collection"]


@dataclass(frozen=True)
class Collection:
    """Documents, queries, and for each query the gain of every document that is relevant to it. Queries to which
    nothing is relevant are left out. answers: what counts as an answer, where the collection has that. run: F1 counts
    the longest common run of words, as the collection's own script does."""

    name: str
    documents: Sequence[Document]
    queries: Mapping[str, str]
    gains: Mapping[str, Mapping[str, float]]
    answers: Mapping[str, Sequence[str]]
    run: bool = False


def read_collection(name: str, data: Path) -> Collection:
    """A collection by name from the folder of real data. Raises DougongError for an unknown name or a missing file."""
    if name not in _READERS:
        raise DougongError(f"unknown collection {name!r}{nearest(name, _READERS)}")
    try:
        return _READERS[name](data)
    except OSError as error:
        raise DougongError(
            f"the collection {name} is not in {data}: {error}; set DOUGONG_DATA to where it is"
        ) from None


def _records(path: Path) -> list[dict[str, str]]:
    """SMART's form: ".I number" begins a record, ".T", ".A", ".W" a field of it."""
    found: list[dict[str, str]] = []
    field = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        mark = re.match(r"\.([A-Z])(?:\s+(\d+))?\s*$", line)
        if mark and mark[1] == "I":
            found.append({"I": mark[2] or ""})
            field = ""
        elif mark:
            field = mark[1]
            found[-1].setdefault(field, "")
        elif field:
            found[-1][field] += line + "\n"
    return found


def _document(record: Mapping[str, str]) -> Document:
    """Title and text; where the text repeats the title, as Cranfield's do, it is said once."""
    title, text = " ".join(record.get("T", "").split()), record.get("W", "").strip()
    if " ".join(text.split()).startswith(title):
        return Document(text, record["I"])
    return Document(f"{title}\n\n{text}", record["I"])


def _kept(name: str, documents: list[Document], queries: dict[str, str], gains: dict[str, dict[str, float]]):
    documents = [document for document in documents if document.text.strip()]
    there = {document.source for document in documents}
    gains = {query: {doc: gain for doc, gain in held.items() if doc in there} for query, held in gains.items()}
    judged = {query: held for query, held in gains.items() if held and query in queries}
    return Collection(name, documents, {query: queries[query] for query in judged}, judged, {})


def _cranfield(data: Path) -> Collection:
    """1,400 abstracts on aerodynamics and 225 questions. Judgements name a query by its place in the file; their codes
    are 1 (a complete answer) to 4 (of minimum interest), so the gain is 5 - code; -1 (the source of the question) and
    5 (of no interest) count as 0."""
    folder = data / "retrieval" / "cranfield"
    documents = [_document(record) for record in _records(folder / "cran.all.1400")]
    texts = [" ".join(record.get("W", "").split()) for record in _records(folder / "cran.qry")]
    queries = {str(place): text for place, text in enumerate(texts, start=1)}
    gains: dict[str, dict[str, float]] = {}
    for line in (folder / "cranqrel").read_text().splitlines():
        query, doc, code = line.split()[:3]
        if 1 <= int(code) <= 4:
            gains.setdefault(query, {})[doc] = 5.0 - int(code)
    return _kept("cranfield", documents, queries, gains)


def _cisi(data: Path) -> Collection:
    """1,460 abstracts on information science; 76 of 112 questions have judgements, relevant or not."""
    folder = data / "retrieval" / "cisi"
    documents = [_document(record) for record in _records(folder / "CISI.ALL")]
    queries = {record["I"]: " ".join(record.get("W", "").split()) for record in _records(folder / "CISI.QRY")}
    gains: dict[str, dict[str, float]] = {}
    for line in (folder / "CISI.REL").read_text().splitlines():
        if line.strip():
            query, doc = line.split()[:2]
            gains.setdefault(query, {})[doc] = 1.0
    return _kept("cisi", documents, queries, gains)


def _cmrc(data: Path, asked: Sequence[str] = ("DEV", "TRIAL")) -> Collection:
    """Chinese: the passages of CMRC-2018's development and trial sets (Cui et al. 2019); to each question its own
    passage is relevant. asked: the sets whose questions are asked, always of the passages of both."""
    folder = data / "eval" / "cmrc2018" / "squad-style-data"
    name = "cmrc" if len(asked) > 1 else f"cmrc-{asked[0].lower()}"
    held = _squad(name, [folder / f"cmrc2018_{each}.json" for each in ("dev", "trial")])
    queries = {query: text for query, text in held.queries.items() if query.startswith(tuple(asked))}
    return replace(held, queries=queries, run=True)


def _xquad(data: Path, language: str) -> Collection:
    """The 240 passages and 1,190 questions of XQuAD (Artetxe et al. 2020) in one of its languages."""
    return _squad(f"xquad-{language}", [data / "eval" / "xquad" / f"xquad.{language}.json"])


def _squad(name: str, paths: Sequence[Path]) -> Collection:
    """Files of SQuAD's form: articles of paragraphs with questions. A paragraph without an id has its place for one."""
    documents, queries, answers = [], {}, {}
    gains: dict[str, dict[str, float]] = {}
    for path in paths:
        for number, article in enumerate(read_json(path)["data"]):
            for place, paragraph in enumerate(article["paragraphs"]):
                source = str(paragraph.get("id", f"{number}-{place}"))
                documents.append(Document(paragraph["context"], source))
                for asked in paragraph["qas"]:
                    queries[asked["id"]] = asked["question"]
                    gains[asked["id"]] = {source: 1.0}
                    answers[asked["id"]] = list(dict.fromkeys(each["text"] for each in asked["answers"]))
    kept = _kept(name, documents, queries, gains)
    return replace(kept, answers=answers)


def _hotpot(data: Path) -> Collection:
    """100 questions of HotpotQA's development set (Yang et al. 2018): the paragraphs of all of them together, about a
    thousand; to each question the two that it takes are relevant."""
    documents: dict[str, Document] = {}
    queries, answers = {}, {}
    gains: dict[str, dict[str, float]] = {}
    for row in read_json(data / "retrieval" / "hotpotqa_sample100" / "camera_ready_nd8_dev_sample100.json"):
        own = [(row["title_a"], row["para_a"]), (row["title_b"], row["para_b"])]
        for title, sentences, *_ in [*own, *row["distractors"]]:
            documents.setdefault(title, Document(f"{title}\n\n{''.join(sentences)}", title))
        queries[row["_id"]], answers[row["_id"]] = row["question"], [row["answer"]]
        gains[row["_id"]] = {title: 1.0 for title, _ in own}
    kept = _kept("hotpot", list(documents.values()), queries, gains)
    return replace(kept, answers=answers)


_READERS: Mapping[str, Reader] = {
    "cranfield": _cranfield,
    "cisi": _cisi,
    "cmrc": _cmrc,
    "cmrc-dev": partial(_cmrc, asked=("DEV",)),
    "cmrc-trial": partial(_cmrc, asked=("TRIAL",)),
    "hotpot": _hotpot,
    "xquad-en": partial(_xquad, language="en"),
    "xquad-zh": partial(_xquad, language="zh"),
}
COLLECTIONS = tuple(_READERS)
