"""Word documents as Markdown: headings, paragraphs, lists, tables, in their order.

What stands outside the running text is told where a reader of the text wants it: headers before it, once each; a note
as [^1] where it is called and with its words behind the text, comments behind these, footers last.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
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
        parts = _parts(docx.Document(io.BytesIO(data)))
    except DougongError:
        raise
    except Exception as error:  # zip, XML and package errors of many kinds
        raise DougongError(f"{name} cannot be read as a Word document: {type(error).__name__}: {error}") from error
    return [extracted("\n\n".join(part for part in parts if part.strip()) + "\n", name)]


# Read from the XML: python-docx's own paragraphs leave out content controls, tracked insertions and text boxes.
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_COPY = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
"""The copy of a shape for old programs."""
_PROPERTIES = ("pPr", "rPr", "sdtPr", "tblPr", "trPr", "tcPr")
# Beside these: what was deleted or moved away, and the instructions of fields.
_GONE = {_COPY} | {f"{_W}{tag}" for tag in ("del", "moveFrom", "instrText", *_PROPERTIES)}
_CALLED = {"footnotes": ("footnote", ""), "endnotes": ("endnote", "e"), "comments": ("comment", "c")}
"""Parts of notes, the element of a note, and what its mark begins with."""
_CALLS = {f"{_W}{one}Reference": mark for one, mark in _CALLED.values()}
_SIGNS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}


def _parts(document: Any) -> list[str]:
    """All that the document says, block by block."""
    styles = {style.style_id: style.name or "" for style in document.styles}
    around = {"header": list[str](), "footer": list[str]()}
    for relation in document.part.rels.values():
        kind = relation.reltype.rsplit("/", 1)[-1]
        if kind in around and not relation.is_external:
            around[kind] += _blocks(_xml(relation.target_part), styles)
    body = list(_blocks(document.element.body, styles))
    # The same header stands in many sections; what is nothing but a page's number says nothing.
    top, bottom = (
        list(dict.fromkeys(each for each in held if any(map(str.isalpha, each)))) for held in around.values()
    )
    return [*top, *body, *_notes(document, styles), *bottom]


def _xml(part: Any) -> Any:
    """The root of a part; python-docx keeps some as bytes alone."""
    from docx.oxml import parse_xml

    return part.element if hasattr(part, "element") else parse_xml(part.blob)


def _notes(document: Any, styles: Mapping[str, str]) -> Iterator[str]:
    """Footnotes, endnotes and comments, each behind the mark that stands in the text where it is called."""
    for kind, (one, mark) in _CALLED.items():
        for relation in document.part.rels.values():
            if relation.is_external or relation.reltype.rsplit("/", 1)[-1] != kind:
                continue
            for note in _xml(relation.target_part).iterchildren(f"{_W}{one}"):
                # Those with a type are the lines between notes and text.
                words = " ".join(" ".join(_blocks(note, styles)).split())
                if note.get(f"{_W}type") in (None, "normal") and words:
                    yield f"[^{mark}{note.get(f'{_W}id')}]: {words}"


def _blocks(parent: Any, styles: Mapping[str, str]) -> Iterator[str]:
    """Paragraphs and tables below an element, in their order, whatever they are wrapped in."""
    for child in parent:
        if child.tag == f"{_W}p":
            yield _paragraph(child, styles)
        elif child.tag == f"{_W}tbl":
            yield _table(child, styles)
        elif child.tag not in _GONE:
            yield from _blocks(child, styles)


def _paragraph(element: Any, styles: Mapping[str, str]) -> str:
    text = "".join(_words(element, styles))
    named = element.find(f"{_W}pPr/{_W}pStyle")
    style = "" if named is None else styles.get(named.get(f"{_W}val"), "")
    depth = re.fullmatch(r"Heading (\d)|(Title)", style)
    if depth and text.strip():
        return "#" * (min(6, int(depth[1])) if depth[1] else 1) + " " + " ".join(text.split())
    return f"- {text}" if style.startswith("List") else text


def _words(parent: Any, styles: Mapping[str, str]) -> Iterator[str]:
    for child in parent:
        if child.tag == f"{_W}t":
            yield child.text or ""
        elif child.tag in _SIGNS:
            yield _SIGNS[child.tag]
        elif child.tag in _CALLS:
            yield f"[^{_CALLS[child.tag]}{child.get(f'{_W}id')}]"
        elif child.tag == f"{_W}txbxContent":  # a box of its own paragraphs within the line
            yield "\n" + "\n".join(_blocks(child, styles)) + "\n"
        elif child.tag not in _GONE:
            yield from _words(child, styles)


def _table(element: Any, styles: Mapping[str, str]) -> str:
    rows = []
    for row in element.iter(f"{_W}tr"):
        if next(row.iterancestors(f"{_W}tbl")) is not element:
            continue  # of a table within a cell, which is told with the cell
        cells: list[str] = []
        for cell in (each for each in row.iter(f"{_W}tc") if next(each.iterancestors(f"{_W}tr")) is row):
            span = cell.find(f"{_W}tcPr/{_W}gridSpan")
            wide = min(64, int(span.get(f"{_W}val"))) if span is not None else 1
            cells += [" ".join(" ".join(_blocks(cell, styles)).split()).replace("|", "\\|"), *[""] * (wide - 1)]
        rows.append("| " + " | ".join(cells) + " |")
        if len(rows) == 1:
            rows.append("|" + "---|" * len(cells))
    return "\n".join(rows)
