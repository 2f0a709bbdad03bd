"""Files of every kind become documents; what cannot be read says so."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.data import Document
from dougong.rag.answer import cite
from dougong.rag.chunkers import Fixed, Recursive, Semantic, Sentences, Structure
from dougong.rag.library import Library
from dougong.rag.readers import find_files, read_file
from dougong.rag.readers.pages import visible
from tests.rag.conftest import Hashed


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_spans_are_bytes_of_the_file(encoding: str, end: str) -> None:
    words = f"第一段讲的是桥梁的历史。木头和石头都可以造桥。{end}{end}第二段讲的是屋顶，斗拱承重。{end}"
    data = words.encode(encoding)
    (document,) = read_file("a.txt", data)
    chunks = Structure(limit=12).chunk(document)
    assert len(chunks) > 2
    mark = len("".encode(encoding))
    for chunk in chunks:
        start, end_ = chunk.meta["bytes"]
        assert data[start:end_] == chunk.text.encode(encoding)[mark:]


ODD = (
    *(
        "桥梁的历史。",
        "斗拱承重！",
        "word ",
        "Dr. No. ",
        "e\u0301",
        "👩‍👩‍👧",
        "𠀀",
        "ﷺ",
        "\u200b",
        "\u2028",
        "\x85",
        "\x0c",
    ),
    *("\x00", "\r\n", "\r", "\n\n", "\ufeff", "# T\r\n", "```\r\n", "| a | b |\r\n", "\u202e", "\u0130", "\ufffd"),
)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(ODD), min_size=1, max_size=30).map("".join),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"]),
    suffix=st.sampled_from(["txt", "md", "py", "rst"]),
    limit=st.integers(1, 12),
)
def test_chunks_of_odd_files_stand_where_they_say(words: str, encoding: str, suffix: str, limit: int) -> None:
    """Of whatever can be read: the characters, the file's bytes, and what a citation says of both."""
    data = words.encode(encoding)
    try:
        (document,) = read_file(f"a.{suffix}", data)
    except DougongError as error:
        assert f"a.{suffix}" in str(error)
        return
    read_as = str(document.meta["encoding"])
    assert document.text == data.decode(read_as)
    mark = len("".encode(read_as))

    def embed(texts):
        return np.array([[1.0, len(text) % 3] for text in texts], dtype=np.float32)

    for chunker in (Fixed(limit), Sentences(limit), Recursive(limit), Structure(limit), Semantic(embed, limit)):
        chunks = chunker.chunk(document)
        for chunk in chunks:
            first, last = chunk.meta["bytes"]
            assert document.text[chunk.start : chunk.end] == chunk.text
            assert data[first:last] == chunk.text.encode(read_as)[mark:]
        said = " ".join(f"Words [{number}]." for number in range(1, len(chunks) + 1))
        cited = cite(said, chunks).citations
        assert len(cited) == len(chunks)
        for each in cited:
            first, last = each.bytes
            assert document.text[each.start : each.end] == each.text
            assert data[first:last] == each.text.encode(read_as)[mark:]


def test_rows_of_json() -> None:
    rows = [{"title": "Bridge", "text": "Stone.", "year": 1900, "bytes": "mine"}, "plain", {"a": "x", "b": 2}]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    documents = read_file("r.jsonl", lines)
    assert [(d.source, d.text) for d in documents] == [
        ("r.jsonl:1", "Bridge\n\nStone."),
        ("r.jsonl:2", "plain"),
        ("r.jsonl:3", "a: x\nb: 2"),
    ]
    assert documents[0].meta["year"] == 1900 and "bytes" not in documents[0].meta
    assert [d.text for d in read_file("r.json", json.dumps(rows).encode())] == [d.text for d in documents]
    with pytest.raises(DougongError, match="line 2 is not JSON"):
        read_file("r.jsonl", b'{"text": "a"}\n{"text"')


def test_a_page_becomes_markdown_without_its_script() -> None:
    pytest.importorskip("trafilatura")
    page = (
        "<html><head><title>T</title><script>var secret=1</script></head><body><h1>Bridges</h1>"
        "<p>A bridge of stone crosses the river near the old mill.</p><table><tr><th>a</th><th>b</th></tr>"
        "<tr><td>1</td><td>2</td></tr></table></body></html>"
    )
    (document,) = read_file("a.html", page.encode())
    assert "# Bridges" in document.text and "crosses the river" in document.text
    assert "secret" not in document.text and "|" in document.text
    assert document.meta["extracted"]


def pdf(lines: list[tuple[int, str]]) -> bytes:
    """A page with one line of text for each (size in points, words)."""
    drawn, height = "", 780
    for size, words in lines:
        drawn += f"BT /F1 {size} Tf 50 {height} Td ({words}) Tj ET\n"
        height -= 30
    parts = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
        "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        f"<< /Length {len(drawn)} >>\nstream\n{drawn}endstream",
    ]
    out, places = "%PDF-1.4\n", []
    for number, part in enumerate(parts, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{part}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    begin = len(out)
    out += f"xref\n0 {len(parts) + 1}\n0000000000 65535 f \n{table}"
    return (out + f"trailer << /Size {len(parts) + 1} /Root 1 0 R >>\nstartxref\n{begin}\n%%EOF").encode("latin-1")


def test_a_pdf_has_pages_and_headings() -> None:
    pytest.importorskip("pypdf")
    body = [(10, "Bridges were built of wood and later of stone."), (10, "The arch carries the load to the banks.")]
    (document,) = read_file("a.pdf", pdf([(20, "A History"), *body, (14, "Arches"), *body]))
    assert "# A History\n" in document.text and "## Arches\n" in document.text
    assert document.meta["pages"] == [0]
    chunks = Structure(limit=30).chunk(document)
    assert [chunk.meta["heading"] for chunk in chunks] == ["A History", "A History > Arches"]
    assert {chunk.meta["page"] for chunk in chunks} == {1}


def test_a_word_document() -> None:
    docx = pytest.importorskip("docx")
    made = docx.Document()
    made.add_heading("Guide", 1)
    made.add_paragraph("Some words.")
    table = made.add_table(2, 2)
    for cell, words in zip((cell for row in table.rows for cell in row.cells), "abcd", strict=True):
        cell.text = words
    made.add_paragraph("After it.")
    data = io.BytesIO()
    made.save(data)
    (document,) = read_file("a.docx", data.getvalue())
    assert document.text == "# Guide\n\nSome words.\n\n| a | b |\n|---|---|\n| c | d |\n\nAfter it.\n"


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.json", "a.jsonl", "a.html", "a.pdf", "a.docx"])
@pytest.mark.parametrize("data", [b"", b"\x00\x01\xff\xfe\x93" * 40, b"%PDF-1.4\ngarbage", b"PK\x03\x04broken"])
def test_garbage_is_an_error_that_names_the_file(name: str, data: bytes) -> None:
    for package in {"a.html": ["trafilatura"], "a.pdf": ["pypdf"], "a.docx": ["docx"]}.get(name, []):
        pytest.importorskip(package)
    try:
        documents = read_file(name, data)
    except DougongError as error:
        assert name in str(error)
    else:
        assert all(document.text.strip() for document in documents)


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.md", "a/c.txt", ".hidden/d.txt", "a/.e.md", "picture.png"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words")
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "docs" / "link.txt").symlink_to(tmp_path / "outside.txt")
    assert [name for name, _ in find_files(tmp_path / "docs")] == ["a/c.txt", "b.md"]
    with pytest.raises(DougongError, match="does not exist"):
        list(find_files(tmp_path / "absent"))


def test_names_that_are_no_text_and_files_that_are_too_large(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "plain.txt").write_text("a bridge of stone")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff\xfe.txt"), "w") as stream:
        stream.write("a roof of tiles")
    (tmp_path / "large.log").write_text("x" * 101)
    monkeypatch.setattr("dougong.rag.readers.files.LARGEST", 100)
    library = Library.open(str(tmp_path / "library"), Hashed())
    folder = tmp_path.name
    report = library.add(tmp_path)
    assert report.added == [f"{folder}/plain.txt", f"{folder}/\\xff\\xfe.txt"]
    assert "large.log is larger than" in report.skipped[f"{folder}/large.log"]
    assert library.search("tiles", how="words")[0].chunk.doc == f"{folder}/\\xff\\xfe.txt"
    again = library.add(tmp_path)
    assert (again.added, again.changed, again.unchanged) == ([], [], 2)
    (tmp_path / "plain.txt").write_text("x" * 101)  # what has grown too large is no longer found
    assert library.add(tmp_path).skipped.keys() == {f"{folder}/large.log", f"{folder}/plain.txt"}
    assert library.search("stone", how="words") == []
    library.close()


def test_a_document_that_unpacks_to_too_much_is_skipped(monkeypatch) -> None:
    pytest.importorskip("docx")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", " " * (3 << 20))
    assert len(data.getvalue()) < 10_000
    monkeypatch.setattr("dougong.rag.readers.office.MOST", 2 << 20)
    with pytest.raises(DougongError, match=r"bomb\.docx unpacks to 3 MiB; expected at most 2"):
        read_file("bomb.docx", data.getvalue())


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<!doctype html><head><title>T</title><script>s</script><body><p>No end of head", "No end of head\n"),
        ("<nav><a>menu</a><p>after a menu without end", "menu\n\nafter a menu without end\n"),
        ("<p>H<sub>2</sub>O, <b>water</b>.", "H2O, water.\n"),
        ("<svg><title>t</title></svg><p>a<br>b", "a\nb\n"),
        ("<style>p{}</style>", ""),
    ],
)  # fmt: skip
def test_pages_that_leave_out_what_may_be_left_out(page: str, text: str) -> None:
    assert visible(page) == text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["x", "    y", "", "`", "```", "````", "| a |", "# no title"]), min_size=1, max_size=6))
def test_code_on_a_page_keeps_its_lines(lines: list[str]) -> None:
    code = "\n".join(["first", *lines, "last"])
    (document,) = read_file("a.html", f"<p>before<pre><code>{code}</code></pre>after".encode())
    assert f"`\n{code}\n`" in document.text
    (chunk,) = [each for each in Structure(1000).chunk(document) if "first" in each.text]
    assert "heading" not in chunk.meta  # what looks like a title within the code is none


@pytest.mark.parametrize(
    ("declared", "codec", "words"),
    [
        ("iso-8859-1", "latin-1", "café déjà vu"),
        ("Shift_JIS", "shift_jis", "日本語の橋"),
        ("big5", "big5", "橋樑的歷史"),
        ("gb2312", "gb2312", "桥梁的历史"),
        ("windows-1251", "cp1251", "мост через реку"),
        ("iso-8859-1", "utf-8", "was déclaré wrongly: café"),
        ("no-such-thing", "utf-8", "café"),
    ],
)
def test_a_page_is_read_as_it_declares(declared: str, codec: str, words: str) -> None:
    for head in (f"<meta charset={declared}>", f'<meta http-equiv=x content="text/html; charset={declared}">'):
        (document,) = read_file("a.html", f"{head}<p>{words}</p>".encode(codec))
        assert document.text == f"{words}\n"
    with pytest.raises(DougongError, match="not UTF-8"):
        read_file("a.html", "<p>café déjà vu".encode("latin-1"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec=None), max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(JSON | st.fixed_dictionaries({"text": st.just("stone"), "title": JSON, "note": JSON}), max_size=4))
def test_any_json_can_be_indexed(rows: list[object]) -> None:
    """Lone surrogates, NaN and infinities, values however deep: nothing of them ends the work."""
    data = "\n".join(json.dumps(row) for row in rows).encode()
    library = Library.open("memory:", Hashed())
    try:
        documents = read_file("r.jsonl", data)
    except DougongError as error:
        assert "r.jsonl" in str(error)
        return
    library.add_documents(documents)
    for chunk in library.store.chunks().values():
        assert library.store.text(chunk.doc)[chunk.start : chunk.end] == chunk.text
        json.dumps(dict(chunk.meta), ensure_ascii=False, allow_nan=False).encode()


def test_every_value_of_a_row_is_read() -> None:
    row = {
        "q": "who?",
        "answers": ["Ann", "Bo"],
        "ctx": {"parts": [{"p": "deep"}]},
        "none": None,
        "n": 0.5,
        "yes": True,
    }
    (document,) = read_file("r.jsonl", json.dumps(row).encode())
    assert document.text.split("\n") == [
        "q: who?",
        "answers: Ann",
        "answers: Bo",
        "ctx.parts.p: deep",
        "n: 0.5",
        "yes: true",
    ]
    with pytest.raises(DougongError, match=r"r\.json is not JSON: .*digits"):
        read_file("r.json", b"1" * 5000)


def test_two_names_that_are_written_alike_are_told(tmp_path: Path) -> None:
    for name in (b"\xff.txt", rb"\xff.txt", b"z.txt"):
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as stream:
            stream.write(f"words of {name!r}")
    library = Library.open("memory:", Hashed())
    report = library.add(tmp_path)
    folder = tmp_path.name
    assert report.added == [f"{folder}/\\xff.txt", f"{folder}/z.txt"]
    assert list(report.skipped) == [f"{folder}/\\xff.txt"]
    report = library.add_documents([Document("one", "a"), Document("two", "a")])
    assert (report.added, list(report.skipped), library.store.text("a")) == (["a"], ["a"], "one")
