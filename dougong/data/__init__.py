"""Data: documents with provenance, tokens, rows without leaks, conversations, problems with checkable answers.

From the bottom up: `documents` and `readers` and `stdlib` (text), `tokens` (ids on disk), `loader` with `stream` and
`packing` (batches that resume), `chat` (conversations as examples), `skills` (generated problems). What is named here
loads when it is first used: reading documents does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dougong.data.batch import IGNORED, Batch
    from dougong.data.chat import Conversation, Message, encode_conversations, read_conversations
    from dougong.data.documents import Document, drop_duplicates, split_documents, split_of
    from dougong.data.example import Example
    from dougong.data.loader import LoaderState
    from dougong.data.mixing import mix
    from dougong.data.packing import PackedRows, example_batches, pack_examples
    from dougong.data.readers import read_documents
    from dougong.data.skills import SKILLS, Difficulty, Problem, generate
    from dougong.data.stdlib import standard_library
    from dougong.data.stream import batches, evaluation_batches
    from dougong.data.tokens import TokenStore, encode_documents

_HOMES = {
    "batch": ("IGNORED", "Batch"),
    "chat": ("Conversation", "Message", "encode_conversations", "read_conversations"),
    "documents": ("Document", "drop_duplicates", "split_documents", "split_of"),
    "loader": ("LoaderState",),
    "mixing": ("mix",),
    "example": ("Example",),
    "packing": ("PackedRows", "example_batches", "pack_examples"),
    "readers": ("read_documents",),
    "skills": ("SKILLS", "Difficulty", "Problem", "generate"),
    "stdlib": ("standard_library",),
    "stream": ("batches", "evaluation_batches"),
    "tokens": ("TokenStore", "encode_documents"),
}

__all__ = [
    "IGNORED",
    "SKILLS",
    "Batch",
    "Conversation",
    "Difficulty",
    "Document",
    "Example",
    "LoaderState",
    "Message",
    "PackedRows",
    "Problem",
    "TokenStore",
    "batches",
    "drop_duplicates",
    "encode_conversations",
    "encode_documents",
    "evaluation_batches",
    "example_batches",
    "generate",
    "mix",
    "pack_examples",
    "read_conversations",
    "read_documents",
    "split_documents",
    "split_of",
    "standard_library",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dougong.data.{home}"), name)
    raise AttributeError(f"module 'dougong.data' has no attribute {name!r}")
