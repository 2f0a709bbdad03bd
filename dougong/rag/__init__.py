"""Retrieval: from a folder of documents to cited answers.

`Library` is the way in. `readers` files to documents; `chunkers` choose cuts, `pack` keeps limits; `embedder` texts to
vectors; `words`, `vectors` the two indexes; `stores` memory, folder, Milvus; `retrievers`, `rerank`, `fusion` ways to
search, which stand inside each other; `answer` citations and their check; `agentic` decisions and the loop over them;
`graph` Graph RAG; inside the model `knn` (over `datastore`) and `reader` (of what `neighbours` finds); `contrastive`
training an embedder; `evaluate` measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dougong.rag import chunkers, graph, retrievers
    from dougong.rag.agentic import investigate
    from dougong.rag.answer import Answer, Citation, verify
    from dougong.rag.chunk import Chunk
    from dougong.rag.embedder import Embedder, ModelEmbedder, default_embedder
    from dougong.rag.hit import Hit, Reranker, Retriever
    from dougong.rag.library import Library, Report

__all__ = [
    "Answer",
    "Chunk",
    "Citation",
    "Embedder",
    "Hit",
    "Library",
    "ModelEmbedder",
    "Report",
    "Reranker",
    "Retriever",
    "chunkers",
    "default_embedder",
    "graph",
    "investigate",
    "retrievers",
    "verify",
]

_HOMES = {
    "Answer": "answer",
    "Chunk": "chunk",
    "Citation": "answer",
    "Embedder": "embedder",
    "Hit": "hit",
    "Library": "library",
    "ModelEmbedder": "embedder",
    "Report": "library",
    "Reranker": "hit",
    "Retriever": "hit",
    "default_embedder": "embedder",
    "investigate": "agentic",
    "verify": "answer",
}


def __getattr__(name: str) -> Any:  # chunking alone needs neither a model nor an index
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"dougong.rag.{_HOMES[name]}"), name)
    if name in ("chunkers", "graph", "retrievers"):
        return importlib.import_module(f"dougong.rag.{name}")
    raise AttributeError(f"module 'dougong.rag' has no attribute {name!r}")
