"""Word documents as a reader sees them."""

from __future__ import annotations

import io

import pytest

from dougong.rag.chunkers import Structure
from dougong.rag.readers import read_file


def test_what_a_word_document_wraps_is_read_too() -> None:
    """Content controls, tracked changes, links, boxes, tables in cells, merged cells: as a reader sees them."""
    docx = pytest.importorskip("docx")
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    def xml(inside: str) -> object:
        return parse_xml(inside.replace(">", f" {nsdecls('w')}>", 1))

    def run(words: str) -> str:
        return f"<w:r><w:t>{words}</w:t></w:r>"

    made = docx.Document()
    made.element.body.insert(0, xml(f"<w:sdt><w:sdtContent><w:p>{run('controlled')}</w:p></w:sdtContent></w:sdt>"))
    line = made.add_paragraph("line")._p
    line.append(xml(f"<w:hyperlink>{run(' linked')}</w:hyperlink>"))
    line.append(xml(f'<w:ins w:id="1" w:author="a">{run(" added")}</w:ins>'))
    line.append(xml('<w:del w:id="2" w:author="a"><w:r><w:delText> gone</w:delText></w:r></w:del>'))
    line.append(xml("<w:r><w:tab/><w:t>tab</w:t><w:br/><w:t>broken</w:t></w:r>"))
    line.append(xml(f"<w:r><w:pict><w:txbxContent><w:p>{run('boxed')}</w:p></w:txbxContent></w:pict></w:r>"))
    table = made.add_table(2, 3)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "wide"
    table.cell(0, 2).text = "x|y"
    table.cell(1, 1).add_table(1, 1).cell(0, 0).text = "nested"
    data = io.BytesIO()
    made.save(data)
    (document,) = read_file("a.docx", data.getvalue())
    assert document.text.startswith("controlled\n\nline linked added\ttab\nbroken\nboxed\n")
    rows = document.text.splitlines()[-3:]
    assert rows[:2] == ["| wide |  | x\\|y |", "|---|---|---|"] and "nested" in rows[2] and "gone" not in document.text


def test_notes_headers_and_comments_of_a_word_document() -> None:
    """A note is marked where it is called and told behind the text; headers and footers are told once."""
    docx = pytest.importorskip("docx")
    from docx.opc.constants import RELATIONSHIP_TYPE as KIND
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    made = docx.Document()
    for _ in range(2):
        section = made.add_section() if made.paragraphs else made.sections[0]
        section.header.is_linked_to_previous = section.footer.is_linked_to_previous = False
        section.header.paragraphs[0].text, section.footer.paragraphs[0].text = "Bridges of the north", "7"
        made.add_paragraph("Built of stone")
    line = made.paragraphs[0]
    made.add_comment(line.runs, text="Is this so?", author="a")
    for kind, words in (("footnote", "Said by Li Jie."), ("endnote", "宋代的书。")):
        line._p.append(parse_xml(f'<w:r {nsdecls("w")}><w:{kind}Reference w:id="2"/></w:r>'))
        between = f'<w:{kind} w:type="separator" w:id="0"><w:p><w:r><w:t>line</w:t></w:r></w:p></w:{kind}>'
        note = f'<w:{kind} w:id="2"><w:p><w:r><w:{kind}Ref/><w:t>{words}</w:t></w:r></w:p></w:{kind}>'
        notes = f"<w:{kind}s {nsdecls('w')}>{between}{note}</w:{kind}s>"
        place = PackURI(f"/word/{kind}s.xml")
        typed = f"application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}s+xml"
        part = Part(place, typed, notes.encode(), made.part.package)
        made.part.relate_to(part, getattr(KIND, f"{kind}s".upper()))
    data = io.BytesIO()
    made.save(data)
    (document,) = read_file("a.docx", data.getvalue())
    assert document.text.split("\n\n") == [
        "Bridges of the north",
        "Built of stone[^c0][^2][^e2]",
        "Built of stone",
        "[^2]: Said by Li Jie.",
        "[^e2]: 宋代的书。",
        "[^c0]: Is this so?\n",
    ]
    for chunk in Structure(5, 1).chunk(document):
        assert document.text[chunk.start : chunk.end] == chunk.text
