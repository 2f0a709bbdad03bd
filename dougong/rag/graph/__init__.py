"""Graph RAG: what documents say about whom, as a graph in which every edge knows the chunks it comes from.

`extract` entities and relations by rule or by a model; `graph` the graph, which follows a library; `communities`
Leiden groups with summaries; `search` local, global and by path.
"""

from dougong.rag.graph.communities import Community, communities
from dougong.rag.graph.extract import ByModel, ByRule, Extraction, Extractor, Relation
from dougong.rag.graph.graph import Graph
from dougong.rag.graph.search import GlobalAnswer, Local, Step, ask_globally, paths

__all__ = [
    "ByModel",
    "ByRule",
    "Community",
    "Extraction",
    "Extractor",
    "GlobalAnswer",
    "Graph",
    "Local",
    "Relation",
    "Step",
    "ask_globally",
    "communities",
    "paths",
]
