"""Ways to search; each takes what it needs and any of them can stand inside another.

`basic` words, dense; `mixed` hybrid, varied, parents, reranked; `rewriting` several questions by a model, HyDE; `hops`
questions of two hops by rule.
"""

from dougong.rag.retrievers.basic import Dense, Words
from dougong.rag.retrievers.mixed import Hybrid, Parents, Reranked, Suited, Varied
from dougong.rag.retrievers.rewriting import Hypothetical, ManyQueries, rewrites

__all__ = [
    "Dense",
    "Hybrid",
    "Hypothetical",
    "ManyQueries",
    "Parents",
    "Reranked",
    "Suited",
    "Varied",
    "Words",
    "rewrites",
]
