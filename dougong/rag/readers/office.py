"""Word documents as Markdown: headings, paragraphs, lists, tables, in their order."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

from dougong.base import DougongError
from dougong.data import Document
from dougong.rag.extras import need
from dougong.rag.readers.texts import extracted

MOST = 256 << 20
"""Bytes that a document may unpack to: a megabyte of zeros, packed, is a gigabyte."""


def read_docx(data: bytes, name: str) -> list[Document]:
    """Raises DougongError for a file that is not a Word document."""
    docx = need("docx", f"reading {name}")
    try:
        unpacked = sum(each.file_size for each in zipfile.ZipFile(io.BytesIO(data)).infolist())
        if unpacked > MOST:
            raise DougongError(f"{name} unpacks to {unpacked >> 20} MiB; expected at most {MOST >> 20}")
        parts = [_part(block) for block in docx.Document(io.BytesIO(data)).iter_inner_content()]
    except DougongError:
        raise
    except Exception as error:  # zip, XML and package errors of many kinds
        raise DougongError(f"{name} cannot be read as a Word document: {type(error).__name__}: {error}") from error
    return [extracted("\n\n".join(part for part in parts if part.strip()) + "\n", name)]


def _part(block: Any) -> str:
    if hasattr(block, "rows"):
        rows = [
            "| " + " | ".join(" ".join(cell.text.split()).replace("|", "\\|") for cell in row.cells) + " |"
            for row in block.rows
        ]
        columns = len(block.rows[0].cells) if block.rows else 0
        return "\n".join([*rows[:1], "|" + "---|" * columns, *rows[1:]])
    style = (block.style.name or "") if block.style is not None else ""
    depth = re.fullmatch(r"Heading (\d)|(Title)", style)
    if depth and block.text.strip():
        return "#" * (min(6, int(depth[1])) if depth[1] else 1) + " " + " ".join(block.text.split())
    return f"- {block.text}" if style.startswith("List") else block.text
