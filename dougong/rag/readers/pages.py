"""Web pages: what is written on them, as Markdown."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from dougong.base import DougongError
from dougong.data import Document
from dougong.rag.extras import need
from dougong.rag.readers.texts import exactly, extracted

_HIDDEN = frozenset(("script", "style", "title"))
# `head` is not among them: its end tag may be left out, and what stands in it is hidden by itself.
_SILENT = _HIDDEN | {"template", "noscript", "svg", "nav"}
_BREAKS = frozenset(
    (
        *("p", "div", "section", "article", "figure", "header", "footer", "blockquote"),
        *("tr", "ul", "ol", "table", "dt", "dd", "br", "hr"),
    )
)
SHORT = 600
"""Of pages with fewer characters than this, trafilatura keeps no structure."""
_DECLARED = re.compile(rb"""<(?:meta|\?xml)\b[^>]*?\b(?:charset|encoding)\s*=\s*["']?\s*([\w:.-]+)""", re.IGNORECASE)
PRESCAN = 1024
"""Bytes of a page in which a declaration of its encoding is looked for (HTML standard, 13.2.3.2)."""
_CODECS = {
    **dict.fromkeys(("gb2312", "gbk", "gb18030", "x-gbk"), "gb18030"),
    **dict.fromkeys(("iso-8859-1", "latin1", "us-ascii", "ascii", "windows-1252", "cp1252"), "cp1252"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis", "windows-31j"), "cp932"),
    **dict.fromkeys(("big5", "big5-hkscs", "x-x-big5"), "big5hkscs"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "windows-949"), "cp949"),
    **{name: name for name in ("euc-jp", "iso-2022-jp", "koi8-r", "koi8-u", "windows-874")},
    **{f"iso-8859-{part}": f"iso-8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    **{f"windows-125{part}": f"windows-125{part}" for part in (0, 1, 3, 4, 5, 6, 7, 8)},
    "iso-8859-9": "cp1254",
}
"""Encodings that pages declare, and what browsers read for them (WHATWG Encoding, 4.2)."""


def read_html(data: bytes, name: str) -> list[Document]:
    """The main text of a page without its menus (by trafilatura), with headings, lists and tables as Markdown.

    Of a short page, and of one in which that finds less than a quarter of the words, everything visible is taken.
    """
    text = _decoded(data, name)
    seen = visible(text)
    if len(seen) < SHORT:
        return [extracted(seen, name)]
    trafilatura = need("trafilatura", f"reading {name}")
    found = trafilatura.extract(
        text, output_format="markdown", include_tables=True, include_formatting=True, include_comments=False
    )
    return [extracted(found if found and 4 * len(found) >= len(seen) else seen, name)]


def _decoded(data: bytes, name: str) -> str:
    """The page's source: as UTF-8 where it is that, else as it declares, else as any other text is."""
    declared = _DECLARED.search(data[:PRESCAN])
    codec = _CODECS.get(declared[1].decode("ascii", "replace").lower()) if declared else None
    try:
        text, encoding = exactly(data, name)
    except DougongError:
        if codec is None:
            raise
        return data.decode(codec, "replace")
    # Bytes of many encodings happen to be GB 18030 too; what the page says of itself is better than that guess.
    return data.decode(codec, "replace") if codec is not None and encoding == "gb18030" else text


class _Visible(HTMLParser):
    """Collects blocks: running text, and code that keeps its white space. silent: tags whose content is not shown."""

    def __init__(self, silent: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self._silent_tags, self._silent, self._code = silent, 0, 0
        self._parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._silent_tags:
            self._silent += 1
        elif tag == "pre":
            if not self._code:
                self._flush()
            self._code += 1
        elif self._code:
            self._parts.append("\n" if tag == "br" else "")
        elif len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self._parts.append("\n\n" + "#" * max(1, min(6, int(tag[1]))) + " ")
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag in ("td", "th"):
            self._parts.append(" | ")
        elif tag in _BREAKS:
            self._parts.append("\n" if tag in ("br", "tr") else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent_tags:
            self._silent = max(0, self._silent - 1)
        elif tag == "pre":
            if self._code == 1:
                self._flush()
            self._code = max(0, self._code - 1)
        elif not self._code and (tag in _BREAKS or (len(tag) == 2 and tag[0] == "h")):
            self._parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._parts.append(data if self._code else re.sub(r"\s+", " ", data))

    def close(self) -> None:
        super().close()
        self._flush()

    def _flush(self) -> None:
        """End the block that is being read: code between fences longer than any in it, text line by line."""
        text = "".join(self._parts)
        self._parts = []
        if not text.strip():
            return
        if self._code:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            lines = [line.rstrip() for line in text.strip("\r\n").splitlines()]
            self.blocks.append("\n".join([fence, *lines, fence]))
            return
        lines = [" ".join(line.split()) for line in text.split("\n")]
        kept = [line for place, line in enumerate(lines) if line or (place and lines[place - 1])]
        self.blocks.append("\n".join(kept).strip())


def visible(page: str) -> str:
    """Everything that a reader of the page sees, block by block; of a page that is nothing but menus, these."""
    for silent in (_SILENT, _HIDDEN):
        parser = _Visible(silent)
        parser.feed(page)
        parser.close()
        if parser.blocks:
            return "\n\n".join(parser.blocks) + "\n"
    return ""
