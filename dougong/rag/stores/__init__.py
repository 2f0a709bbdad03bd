"""Where a library keeps its chunks: memory, a folder, Milvus; by URI."""

from dougong.rag.stores.store import Entry, Store, open_store

__all__ = ["Entry", "Store", "open_store"]
