"""The embedded default: the Python language reference of the running interpreter."""

from __future__ import annotations

from dataclasses import replace

from dougong.base import DougongError
from dougong.data import Document, standard_library

PREFIX = "python-topic:"


def language_reference() -> list[Document]:
    """The topics of `pydoc_data`, each a document of text; their underlined titles are read as headings.

    Raises DougongError for an interpreter that comes without its documentation.
    """
    topics = [each for each in standard_library() if each.source.startswith(PREFIX)]
    if not topics:
        raise DougongError("this Python comes without its language reference (pydoc_data); give a folder of documents")
    return [replace(each, meta={**each.meta, "kind": "rst", "licence": each.licence}) for each in topics]
