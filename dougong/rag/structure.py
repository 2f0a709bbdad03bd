"""The structure of a document as cuts and titles: Markdown, HTML, reStructuredText, source code, plain text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import NamedTuple

from dougong.rag.pack import BLOCK, HEADING, INSIDE, LINE, SENTENCE, Cut
from dougong.rag.sentences import sentence_starts

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_TITLE = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_ROW = re.compile(r"[ \t]*\|.*\||[ \t]*[^|\n]+\|[^|\n]+\|")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]")


class Title(NamedTuple):
    """A heading: where it begins, its depth (1 to 6), its words."""

    at: int
    depth: int
    words: str


class Outline(NamedTuple):
    """What is known of a document's structure."""

    cuts: list[Cut]
    titles: list[Title]

    def heading(self, at: int) -> str:
        """The titles above the character at `at`, the outermost first: "Install > From source"."""
        path: list[str] = []
        place, depth = bisect_right(self.titles, at, key=lambda title: title.at), 7
        while place > 0 and depth > 1:  # backwards, each shallower than what stands below it
            place -= 1
            if self.titles[place].depth < depth:
                depth = self.titles[place].depth
                path.append(self.titles[place].words)
        return " > ".join(reversed(path))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    place = 0
    for line in text.splitlines(keepends=True):
        yield place, line.rstrip("\r\n")
        place += len(line)


def markdown(text: str) -> Outline:
    """Headings (# and underlined), paragraphs and sentences in them; code fences and tables are cut by line at worst.

    Nothing is cut between a heading and what follows it.
    """
    cuts: list[Cut] = []
    titles: list[Title] = []
    fence, kind, paragraph = "", "blank", -1
    lines = list(_lines(text))
    for number, (at, line) in enumerate(lines):
        before = kind
        opened = _FENCE.match(line)
        if fence:
            kind = "code"
            cuts.append(Cut(at, INSIDE))
            if opened and opened[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence, kind = "", "fenced"
            continue
        following = lines[number + 1][1] if number + 1 < len(lines) else ""
        title = _TITLE.match(line)
        underlined = _UNDERLINE.match(following) if line.strip() and before != "text" else None
        if opened:
            fence, kind = opened[1], "code"
        elif title:
            kind = "title"
            titles.append(Title(at, len(title[1]), (title[2] or "").strip()))
        elif underlined and not _ROW.match(line) and not _ITEM.match(line):
            kind = "title"
            titles.append(Title(at, 1 if underlined[1][0] == "=" else 2, line.strip()))
        elif before == "title" and _UNDERLINE.match(line) and titles[-1].at == lines[number - 1][0]:
            continue
        elif not line.strip():
            kind = "blank" if before != "title" else "title"
            continue
        elif _ROW.match(line):
            kind = "table"
        elif _ITEM.match(line):
            kind = "item"
        else:
            kind = "text" if before in ("text", "item") else "start"
        if kind == "title":
            cuts.append(Cut(at, HEADING + titles[-1].depth - 1))
        elif before == "title":
            pass
        elif kind == "table" and before == "table":
            cuts.append(Cut(at, INSIDE))
        elif kind == "item":
            cuts.append(Cut(at, LINE if before in ("item", "text") else BLOCK))
        elif kind != "text":
            cuts.append(Cut(at, BLOCK))
        if kind == "start":
            kind = "text"
        if kind in ("text", "item") and paragraph < 0:
            paragraph = at
    return Outline(cuts + _sentence_cuts(text, cuts, lines), titles)


def _sentence_cuts(text: str, cuts: list[Cut], lines: list[tuple[int, str]]) -> list[Cut]:
    """Sentence ends that lie outside code and tables."""
    inside = {cut.at for cut in cuts if cut.level == INSIDE}
    starts = [at for at, _ in lines]
    found = []
    for at in sentence_starts(text):
        line = bisect_right(starts, at) - 1
        guarded = starts[line] in inside or (line + 1 < len(starts) and starts[line + 1] in inside)
        title = (line > 0 and _TITLE.match(lines[line - 1][1])) or _TITLE.match(lines[line][1])
        if not guarded and not title:
            found.append(Cut(at, SENTENCE))
    return found


_BLOCKS = frozenset(
    (
        *("p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "figure", "blockquote"),
        *("ul", "ol", "dl", "table", "pre", "hr"),
    )
)
_WHOLE = frozenset(("table", "pre"))
_ROWS = frozenset(("tr", "li", "dt", "dd", "br"))


class _Html(HTMLParser):
    """Collects cuts at tags; the source stays as it is."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.cuts: list[Cut] = []
        self.titles: list[Title] = []
        self.whole: list[tuple[int, int]] = []
        self._begins: list[int] = []
        self._title: tuple[int, int] | None = None
        self._words: list[str] = []
        self._after_title = False
        self._starts = [0]
        # HTMLParser counts lines by "\n" alone.
        self._starts += [match.end() for match in re.finditer("\n", text)]
        self.feed(text)
        self.close()

    def _at(self) -> int:
        line, column = self.getpos()
        return self._starts[line - 1] + column

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        at = self._at()
        if re.fullmatch("h[1-6]", tag):
            self._title, self._words = (at, int(tag[1])), []
            self.cuts.append(Cut(at, HEADING + int(tag[1]) - 1))
        elif tag in _BLOCKS and not self._begins:
            if not self._after_title:
                self.cuts.append(Cut(at, BLOCK))
            self._after_title = False
        elif tag in _ROWS:
            self.cuts.append(Cut(at, INSIDE if self._begins else LINE))
        if tag in _WHOLE:
            self._begins.append(at)

    def handle_data(self, data: str) -> None:
        if self._title:
            self._words.append(data)
        elif data.strip():
            self._after_title = False

    def handle_endtag(self, tag: str) -> None:
        if self._title and re.fullmatch("h[1-6]", tag):
            self.titles.append(Title(*self._title, " ".join("".join(self._words).split())))
            self._title, self._after_title = None, True
        if tag in _WHOLE and self._begins:
            begin = self._begins.pop()
            if not self._begins:
                self.whole.append((begin, self._at()))


def html(text: str) -> Outline:
    """Headings, blocks and sentences of HTML source; tables and <pre> are cut by row or line at worst."""
    found = _Html(text)
    tags = [(match.start(), match.end()) for match in re.finditer(r"<[^<>]*>", text)]

    def within(at: int, spans: list[tuple[int, int]]) -> bool:
        place = bisect_right(spans, at, key=lambda span: span[0]) - 1
        return place >= 0 and spans[place][0] < at < spans[place][1]

    cuts = [Cut(at, SENTENCE) for at in sentence_starts(text) if not within(at, tags) and not within(at, found.whole)]
    cuts += [Cut(at, INSIDE) for at, _ in _lines(text) if within(at, found.whole)]
    return Outline(found.cuts + cuts, found.titles)


def code(text: str) -> Outline:
    """Source code in any language: best cut before a line that begins at the margin after a blank line (a function, a
    class with its comments), then after any blank line, then between lines."""
    cuts, blank = [], True
    for at, line in _lines(text):
        if not line.strip():
            blank = True
            continue
        margin = not line[0].isspace() and line[0] not in ")]}"
        cuts.append(Cut(at, HEADING if blank and margin else BLOCK if blank else LINE))
        blank = False
    return Outline(cuts, [])


_MARKED = re.compile(r"([=\-`:.'\"~^_*+#<>])\1{2,}[ \t]*$")


def restructured(text: str) -> Outline:
    """reStructuredText: titles are underlined, each kind of line a depth, in the order in which they first come.

    Paragraphs end at blank lines; within an indented block nothing but lines is cut.
    """
    cuts: list[Cut] = []
    titles: list[Title] = []
    depths: dict[str, int] = {}
    lines = list(_lines(text))
    blank, after = True, False
    for number, (at, line) in enumerate(lines):
        following = lines[number + 1][1] if number + 1 < len(lines) else ""
        mark = _MARKED.match(following)
        if not line.strip():
            blank = True
            continue
        if mark and blank and not line[0].isspace() and len(following.rstrip()) >= len(line.rstrip()):
            depth = min(6, depths.setdefault(mark[1], len(depths) + 1))
            titles.append(Title(at, depth, line.strip()))
            cuts.append(Cut(at, HEADING + depth - 1))
            after = True
        elif not (after and _MARKED.match(line)):
            if not after:
                indented = line[0].isspace()
                cuts.append(Cut(at, (LINE if indented else BLOCK) if blank else INSIDE))
            after = False
        blank = False
    return Outline(cuts + _sentence_cuts(text, [], lines), titles)


def plain(text: str) -> Outline:
    """Paragraphs (after a blank line), then sentences, then lines."""
    cuts, blank = [Cut(at, SENTENCE) for at in sentence_starts(text)], True
    for at, line in _lines(text):
        if line.strip():
            cuts.append(Cut(at, BLOCK if blank else SENTENCE + 1))
        blank = not line.strip()
    return Outline(cuts, [])


OUTLINES = {"markdown": markdown, "html": html, "code": code, "rst": restructured, "text": plain}
"""Kinds of documents (`meta["kind"]`) and how they are cut."""
