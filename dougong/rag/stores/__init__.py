"""Where a library keeps its chunks: memory, a folder, Milvus; by URI."""

from dougong.rag.stores.store import Entry, Store, is_kept, open_store

__all__ = ["Entry", "Store", "is_kept", "open_store"]
