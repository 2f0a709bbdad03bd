"""Filters: what a chunk must be to be found."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from dougong.rag.chunk import Chunk

Where = Mapping[str, Any]
"""Conditions that must all hold. "doc": a name or a pattern such as "guide/*"; any other key: a value of the chunk's
meta. A list, a tuple or a set allows each of its values."""


def holds(where: Where | None, chunk: Chunk) -> bool:
    """Whether a chunk is what the filter asks for; a key that it lacks is not."""
    for key, wanted in (where or {}).items():
        choices = list(wanted) if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
        if key == "doc":
            # A name is no pattern: "notes [1].md" is itself.
            if not any(chunk.doc == choice or fnmatchcase(chunk.doc, str(choice)) for choice in choices):
                return False
        elif key not in chunk.meta or chunk.meta[key] not in choices:
            return False
    return True
