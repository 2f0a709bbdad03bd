"""Filters: what a chunk must be to be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from dougong.rag.chunk import Chunk

Where = Mapping[str, Any]
"""Conditions that must all hold. "doc": a name or a pattern such as "guide/*"; any other key: a value of the chunk's
meta. A list allows each of its values."""


def holds(where: Where | None, chunk: Chunk) -> bool:
    """Whether a chunk is what the filter asks for; a key that it lacks is not."""
    for key, wanted in (where or {}).items():
        choices = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        if key == "doc":
            if not any(fnmatchcase(chunk.doc, str(choice)) for choice in choices):
                return False
        elif key not in chunk.meta or chunk.meta[key] not in choices:
            return False
    return True
