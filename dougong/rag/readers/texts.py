"""Files that are text already."""

from __future__ import annotations

from dougong.data import Document
from dougong.data.decode import decode
from dougong.data.readers import well_formed


def exactly(data: bytes, name: str) -> tuple[str, str]:
    """(text, encoding) with line ends as they are in the file, so that positions can be told in its bytes."""
    _, encoding = decode(data, name)
    return data.decode(encoding), encoding


def _document(data: bytes, name: str, kind: str) -> list[Document]:
    text, encoding = exactly(data, name)
    return [Document(text, name, meta={"kind": kind, "encoding": encoding})]


def read_text(data: bytes, name: str) -> list[Document]:
    """Plain text."""
    return _document(data, name, "text")


def read_markdown(data: bytes, name: str) -> list[Document]:
    """Markdown, as it is written."""
    return _document(data, name, "markdown")


def read_rst(data: bytes, name: str) -> list[Document]:
    """reStructuredText, as it is written."""
    return _document(data, name, "rst")


def read_code(data: bytes, name: str) -> list[Document]:
    """Source code, as it is written."""
    return _document(data, name, "code")


def extracted(text: str, name: str, **meta: object) -> Document:
    """A document of Markdown that was drawn from another form."""
    return Document(well_formed(text), name, meta={"kind": "markdown", "encoding": "utf-8", "extracted": True, **meta})
