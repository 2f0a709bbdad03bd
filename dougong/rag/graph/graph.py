"""The graph: kept as what each chunk says, so that removing a chunk removes exactly what only it said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from dougong.base import DougongError, read_json, write_json
from dougong.rag.chunk import Chunk
from dougong.rag.extras import need
from dougong.rag.graph.extract import Extraction, Extractor, Relation
from dougong.rag.library import Library


def key(name: str) -> str:
    """Under which spellings of a name are one entity: case, spaces and an English genitive aside."""
    return " ".join(name.casefold().split()).removesuffix("’s").removesuffix("'s")


@dataclass(frozen=True)
class Entity:
    """name: its commonest spelling. chunks: ids of those that mention it."""

    name: str
    descriptions: tuple[str, ...]
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class Edge:
    """Two entities (keys) and what is said of them: each relation with the ids of the chunks that say it."""

    one: str
    two: str
    said: Mapping[Relation, tuple[int, ...]]

    @property
    def chunks(self) -> tuple[int, ...]:
        """Where it comes from."""
        return tuple(sorted({each for chunks in self.said.values() for each in chunks}))

    @property
    def weight(self) -> int:
        """How many chunks say something."""
        return len(self.chunks)


@dataclass(frozen=True)
class View:
    """The graph as it is now: entities by key, edges by their pair of keys, and the same as an igraph with vertices in
    the order of `entities` and the edges' weights."""

    entities: Mapping[str, Entity]
    edges: Mapping[tuple[str, str], Edge]

    @cached_property
    def neighbours(self) -> dict[str, list[Edge]]:
        """The edges at each entity."""
        found: dict[str, list[Edge]] = {each: [] for each in self.entities}
        for edge in self.edges.values():
            found[edge.one].append(edge)
            found[edge.two].append(edge)
        return found

    @cached_property
    def igraph(self) -> Any:
        igraph = need("igraph", "graph retrieval")
        place = {each: number for number, each in enumerate(self.entities)}
        made = igraph.Graph(n=len(place), edges=[(place[one], place[two]) for one, two in self.edges])
        made.es["weight"] = [edge.weight for edge in self.edges.values()]
        return made


SAVED = 500
"""Chunks after which what was read is written."""


@final
class Graph:
    """What the chunks of a library say. It follows the library: after each `add` and `remove` it reads what is new and
    forgets what is gone.

    path  a JSON file that keeps what was read, so that it is read once; None: in memory
    """

    def __init__(self, library: Library, extractor: Extractor, path: str | Path | None = None):
        self._library, self._extractor = library, extractor
        self._path = None if path is None else Path(path)
        self._view: View | None = None
        self.summaries: dict[str, str] = {}
        self._said: dict[int, Extraction] = self._load()
        library.watch(lambda _: self.follow())

    def _load(self) -> dict[int, Extraction]:
        if self._path is None or not self._path.exists():
            return {}
        data = read_json(self._path)
        if not isinstance(data, dict) or data.get("extractor") != self._extractor.name:
            return {}
        try:
            self.summaries = {str(name): str(text) for name, text in data.get("summaries", {}).items()}
            return {
                int(chunk): Extraction(dict(said["entities"]), tuple(Relation(*each) for each in said["relations"]))
                for chunk, said in data["chunks"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DougongError(f"{self._path} is not a graph of ours ({error!r}); remove it") from None

    def follow(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Bring the graph up to the library; returns how many chunks were read. What was read is written as it goes, so
        an interrupted run goes on where it was."""
        chunks = self._library.store.chunks()
        new = [each for each in chunks if each not in self._said]
        gone = [each for each in self._said if each not in chunks]
        for each in gone:
            del self._said[each]
        if gone:
            self.summaries.clear()  # they may say what only the removed text said
        if new or gone:
            self._view = None
        try:
            for done, each in enumerate(new, start=1):
                self._said[each] = self._extractor.extract(chunks[each].text)
                if done % SAVED == 0:
                    self.keep()
                if progress is not None:
                    progress(done, len(new))
        finally:
            if new or gone:
                self.keep()
        return len(new)

    def keep(self) -> None:
        """Write what was read, and the summaries, into the file."""
        if self._path is not None:
            chunks = {
                str(chunk): {"entities": dict(said.entities), "relations": said.relations}
                for chunk, said in self._said.items()
            }
            told = {"extractor": self._extractor.name, "chunks": chunks, "summaries": self.summaries}
            write_json(self._path, told)

    @property
    def view(self) -> View:
        """The whole graph now."""
        if self._view is None:
            self._view = build(self._said)
        return self._view

    def chunk(self, each: int) -> Chunk:
        """The chunk that an edge or an entity names."""
        return self._library.store.chunks()[each]


def build(said: Mapping[int, Extraction]) -> View:
    """Join what the chunks say: entities with one key are one, relations between the same two are one edge."""
    spellings: dict[str, Counter[str]] = {}
    descriptions: dict[str, list[str]] = {}
    mentions: dict[str, set[int]] = {}
    links: dict[tuple[str, str], dict[Relation, set[int]]] = {}
    for chunk, extraction in sorted(said.items()):
        ends = [(name, "") for relation in extraction.relations for name in (relation.head, relation.tail)]
        for name, description in [*extraction.entities.items(), *ends]:
            spellings.setdefault(key(name), Counter())[name] += 1
            mentions.setdefault(key(name), set()).add(chunk)
            if description:
                descriptions.setdefault(key(name), []).append(description)
        for relation in extraction.relations:
            one, two = sorted((key(relation.head), key(relation.tail)))
            if one != two:
                links.setdefault((one, two), {}).setdefault(relation, set()).add(chunk)
    entities = {
        each: Entity(
            min(spellings[each], key=lambda name: (-spellings[each][name], name)),
            tuple(dict.fromkeys(descriptions.get(each, ()))),
            tuple(sorted(mentions[each])),
        )
        for each in sorted(spellings)
    }
    edges = {
        pair: Edge(*pair, {relation: tuple(sorted(chunks)) for relation, chunks in sorted(held.items())})
        for pair, held in sorted(links.items())
    }
    return View(entities, edges)


def forget_gone(path: Path, chunks: Container[int]) -> None:
    """Take out of a graph's file what it has from chunks that are gone, whoever read them."""
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("chunks"), dict):
        raise DougongError(f"{path} is not a graph of ours; remove it")
    kept = {chunk: said for chunk, said in data["chunks"].items() if chunk.isdigit() and int(chunk) in chunks}
    if len(kept) < len(data["chunks"]):
        write_json(path, {**data, "chunks": kept, "summaries": {}})
