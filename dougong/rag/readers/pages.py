"""Web pages: what is written on them, as Markdown."""

from __future__ import annotations

from html.parser import HTMLParser

from dougong.data import Document
from dougong.rag.extras import need
from dougong.rag.readers.texts import exactly, extracted

_SILENT = frozenset(("script", "style", "head", "template", "noscript", "svg", "nav"))
_BREAKS = frozenset(
    (
        *("p", "div", "section", "article", "figure", "header", "footer", "blockquote", "pre"),
        *("tr", "ul", "ol", "table", "dt", "dd", "br", "hr"),
    )
)
SHORT = 600
"""Of pages with fewer characters than this, trafilatura keeps no structure."""


def read_html(data: bytes, name: str) -> list[Document]:
    """The main text of a page without its menus (by trafilatura), with headings, lists and tables as Markdown.

    Of a short page, and of one in which that finds less than a quarter of the words, everything visible is taken.
    """
    text, _ = exactly(data, name)
    seen = visible(text)
    if len(seen) < SHORT:
        return [extracted(seen, name)]
    trafilatura = need("trafilatura", f"reading {name}")
    found = trafilatura.extract(
        text, output_format="markdown", include_tables=True, include_formatting=True, include_comments=False
    )
    return [extracted(found if found and 4 * len(found) >= len(seen) else seen, name)]


class _Visible(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent += 1
        elif len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.parts.append("\n\n" + "#" * max(1, min(6, int(tag[1]))) + " ")
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag in ("td", "th"):
            self.parts.append(" | ")
        elif tag in _BREAKS:
            self.parts.append("\n" if tag in ("br", "tr") else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in _BREAKS or (len(tag) == 2 and tag[0] == "h"):
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append((" ".join(data.split()) and f" {' '.join(data.split())} ") or " ")


def visible(page: str) -> str:
    """Everything that a reader of the page sees, block by block."""
    parser = _Visible()
    parser.feed(page)
    parser.close()
    lines = [" ".join(line.split()) for line in "".join(parser.parts).split("\n")]
    kept = [line for place, line in enumerate(lines) if line or (place and lines[place - 1])]
    return "\n".join(kept).strip() + "\n" if any(kept) else ""
