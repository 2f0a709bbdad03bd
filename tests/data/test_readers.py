"""Files in, documents out; whatever is wrong with a file is said with its place."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.data import read_documents
from dougong.data.decode import decode

POEM = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。\n"


def one(path, **options):
    (document,) = read_documents(path, **options)
    return document


@given(st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), min_size=1))
def test_utf8_is_read_as_it_is(text):
    text = text.removeprefix("\ufeff") or "x"
    assert decode(text.encode("utf-8"), "name") == (text, "utf-8")
    assert decode(text.encode("utf-8-sig"), "name") == (text, "utf-8-sig")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_chinese_text_is_read_in_its_encodings(tmp_path, encoding):
    (tmp_path / "poem.txt").write_bytes(POEM.encode(encoding))
    document = one(tmp_path / "poem.txt")
    assert (document.text, document.meta["encoding"], document.source) == (POEM, encoding, "poem.txt")


def test_latin1_is_not_mistaken_for_chinese(tmp_path):
    (tmp_path / "a.txt").write_bytes("le café est fermé, dit-il, déçu".encode("latin-1"))
    with pytest.raises(DougongError, match=r"not UTF-8 text: byte 0xe9 at offset 6"):
        list(read_documents(tmp_path / "a.txt"))


def test_rows_of_json_lines_and_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two \\ud83d"}\n')
    (tmp_path / "b.json").write_text(json.dumps([{"body": ["x", "y"]}, {"body": "z"}]))
    found = list(read_documents(tmp_path / "a.jsonl", licence="MIT"))
    assert [(d.text, d.source, d.licence) for d in found] == [
        ("one", "a.jsonl:1", "MIT"),
        ("two \ufffd", "a.jsonl:3", "MIT"),
    ]
    assert [d.text for d in read_documents(tmp_path / "b.json", key="body")] == ["x\ny", "z"]


def test_folders_are_read_sorted_without_hidden_empty_and_binary_files(tmp_path):
    (tmp_path / "corpus/sub").mkdir(parents=True)
    for name, data in {
        "b.md": b"B",
        "a.txt.gz": gzip.compress(b"A"),
        "sub/c.py": b"C",
        ".hidden.txt": b"H",
        "empty.txt": b"",
        "image.png": b"\x89PNG\0",
    }.items():
        (tmp_path / "corpus" / name).write_bytes(data)
    found = [(d.text, d.source) for d in read_documents([tmp_path / "corpus", tmp_path / "corpus/b.md"])]
    assert found == [("A", "corpus/a.txt.gz"), ("B", "corpus/b.md"), ("C", "corpus/sub/c.py")]


def test_line_ends_become_newlines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\rc\n")
    assert one(tmp_path / "a.txt").text == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n", "nothing but white space"),
        ("a.txt", b"abc\0def", "binary, not text: a NUL byte at offset 3"),
        ("a.txt", b"abc\xff", "byte 0xff at offset 3"),
        ("a.txt.gz", b"plainly not gzip", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "not a whole gzip file"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "a", "id": 1}\n', "no key 'text'; its keys: body, id"),
        ("a.jsonl", b'{"text": 3}\n', "'text' is int; expected text"),
        ("a.jsonl", b"[1, 2]\n", "is list; expected an object"),
        ("a.jsonl", b'{"text": " "}\n', "holds no text under the key 'text'"),
        ("a.json", b'{"text": "a"', "is not JSON"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DougongError, match=message):
        list(read_documents(tmp_path / name))


def test_missing_paths_are_refused_at_once_with_near_names(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("x")
    with pytest.raises(DougongError, match=r"does not exist; did you mean 'shakespeare.txt'\?"):
        read_documents(tmp_path / "shakespear.txt")
    with pytest.raises(DougongError, match="nor does the folder"):
        read_documents(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(DougongError, match="no paths"):
        read_documents([])


def test_a_folder_without_readable_files_is_refused(tmp_path):
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(DougongError, match="no readable files"):
        list(read_documents(tmp_path))


def test_parquet_and_zstd_read_or_name_the_extra(tmp_path):
    text = [{"text": "one"}, {"text": "two"}]
    try:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(text), tmp_path / "a.parquet")
        assert [d.text for d in read_documents(tmp_path / "a.parquet")] == ["one", "two"]
        with pytest.raises(DougongError, match="no column 'body'; its columns: text"):
            list(read_documents(tmp_path / "a.parquet", key="body"))
    except ImportError:
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        with pytest.raises(DougongError, match=r"pip install 'dougong\[data\]'"):
            list(read_documents(tmp_path / "a.parquet"))
    try:
        import zstandard

        (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"text"))
        assert one(tmp_path / "a.txt.zst").text == "text"
    except ImportError:
        (tmp_path / "a.txt.zst").write_bytes(b"x")
        with pytest.raises(DougongError, match=r"pip install 'dougong\[data\]'"):
            list(read_documents(tmp_path / "a.txt.zst"))


def test_real_text(real_data):
    novel = one(real_data / "text/chinese_novels/红楼梦.txt")
    assert "贾宝玉" in novel.text and "\r" not in novel.text
    assert len(list(read_documents(real_data / "instruct/llamafactory_demo/c4_demo.jsonl"))) == 300
