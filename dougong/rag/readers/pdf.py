"""PDF: pages as text, with lines in larger type as headings."""

from __future__ import annotations

import io
import logging
from collections import Counter
from typing import Any

from dougong.base import DougongError
from dougong.data import Document
from dougong.rag.extras import need
from dougong.rag.readers.texts import extracted

LARGER = 1.15
"""A line in type this many times the size of most of the text, and no longer than a title, is a heading."""
LONGEST_TITLE = 120


def read_pdf(data: bytes, name: str) -> list[Document]:
    """The text of all pages; `meta["pages"]` says where each begins. Raises DougongError for a file that is no PDF, is
    locked, or holds pictures of pages only."""
    pypdf = need("pypdf", f"reading {name}")
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DougongError(f"{name} is locked with a password; unlock it first")
        pages = [_lines(page) for page in reader.pages]
    except DougongError:
        raise
    except Exception as error:  # a damaged file fails anywhere in the parser, in any way
        raise DougongError(f"{name} cannot be read as PDF: {type(error).__name__}: {error}") from error
    weights: Counter[float] = Counter()
    for line, size in (line for page in pages for line in page):
        weights[size] += len(line)
    if not weights:
        raise DougongError(f"{name} has no text, only pictures of pages; run OCR on it first")
    body = weights.most_common(1)[0][0]
    larger = sorted({size for size in weights if size >= LARGER * body}, reverse=True)
    text, starts = "", []
    for page in pages:
        starts.append(len(text))
        for line, size in page:
            if size in larger and len(line) <= LONGEST_TITLE:
                text += f"\n{'#' * min(6, larger.index(size) + 1)} {line}\n\n"
            else:
                text += line + "\n"
        text += "\n"
    return [extracted(text, name, pages=starts)]


def _lines(page: Any) -> list[tuple[str, float]]:
    """The lines of a page, each with the size of its type (points, rounded to halves)."""
    sizes: list[tuple[str, float]] = []

    def visit(text: str, cm: list[float], tm: list[float], font: Any, size: float) -> None:
        scale = abs(cm[3] * tm[3]) or abs(cm[1] * tm[1]) or 1.0
        if text.strip():
            sizes.append((text.strip(), round(2 * (size or 0) * scale) / 2))

    whole = page.extract_text(visitor_text=visit)
    lines, place = [], 0
    for line in (line.strip() for line in whole.splitlines()):
        if not line:
            continue
        # The pieces come in the order of the text; a line takes the size of the piece that its beginning is in.
        for ahead in range(place, min(place + 8, len(sizes))):
            piece = sizes[ahead][0]
            if line[:12] in piece or piece[:12] in line:
                place = ahead
                break
        lines.append((line, sizes[place][1] if place < len(sizes) else 0.0))
    return lines
