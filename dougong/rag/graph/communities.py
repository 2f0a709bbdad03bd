"""Communities of the graph (Leiden, Traag et al. 2019), with summaries."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass

from dougong.chat import ChatModel, Message
from dougong.rag.extras import need
from dougong.rag.graph.graph import Edge, Graph, View


@dataclass(frozen=True)
class Community:
    """Entities (keys, the best connected first) that have more to do with each other than with others."""

    members: tuple[str, ...]
    edges: tuple[Edge, ...]

    @property
    def name(self) -> str:
        """Of what it holds and says: the same community has the same name, a changed one another."""
        held = json.dumps([self.members, [[edge.one, edge.two, *edge.said] for edge in self.edges]], ensure_ascii=False)
        return hashlib.blake2b(held.encode(), digest_size=8).hexdigest()

    @property
    def chunks(self) -> tuple[int, ...]:
        """Ids of the chunks that its edges come from."""
        return tuple(sorted({each for edge in self.edges for each in edge.chunks}))


def communities(view: View, resolution: float = 1.0, seed: int = 0) -> list[Community]:
    """The communities with at least one edge, the largest first. A higher resolution gives smaller ones. The same graph
    and seed give the same communities."""
    if not view.edges:
        return []
    igraph = need("igraph", "graph retrieval")
    igraph.set_random_number_generator(random.Random(seed))
    try:
        parts = view.igraph.community_leiden(
            objective_function="modularity", weights="weight", resolution=resolution, n_iterations=-1
        )
    finally:
        igraph.set_random_number_generator(random)
    names = list(view.entities)
    found = []
    for part in parts:
        held = {names[place] for place in part}
        edges = tuple(edge for pair, edge in view.edges.items() if held.issuperset(pair))
        if edges:
            weight = dict.fromkeys(held, 0)
            for edge in edges:
                weight[edge.one] += edge.weight
                weight[edge.two] += edge.weight
            found.append(Community(tuple(sorted(held, key=lambda each: (-weight[each], each))), edges))
    return sorted(found, key=lambda each: (-len(each.members), each.members))


def statements(graph: Graph, community: Community, most: int = 40) -> list[str]:
    """What is said within a community, the best attested first: "Ann -- leads -> Acme"."""
    view = graph.view
    edges = sorted(community.edges, key=lambda edge: (-edge.weight, edge.one, edge.two))
    lines = [f"{relation.head} -- {relation.relation} -> {relation.tail}" for edge in edges for relation in edge.said]
    told = [
        f"{view.entities[each].name}: {'; '.join(view.entities[each].descriptions[:3])}"
        for each in community.members
        if view.entities[each].descriptions
    ]
    return [*told[:most], *lines[:most]]


def summary(graph: Graph, community: Community, model: ChatModel | None = None) -> str:
    """A few sentences on a community: by a model or, without one, its chief entities and what is said of them.

    Kept in the graph under the community's name, so that only changed communities are summed up anew.
    """
    kept = f"{'model' if model else 'rule'}:{community.name}"
    if kept not in graph.summaries:
        lines = statements(graph, community)
        if model is None:
            chief = ", ".join(graph.view.entities[each].name for each in community.members[:5])
            graph.summaries[kept] = f"{chief}. " + ". ".join(lines[:8])
        else:
            prompt = "Sum up in a few sentences what these statements are about; add nothing:\n" + "\n".join(lines)
            graph.summaries[kept] = model.complete([Message("user", prompt)]).content.strip()
    return graph.summaries[kept]
