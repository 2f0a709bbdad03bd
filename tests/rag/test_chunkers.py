"""What every chunker promises, for any Unicode: offsets, limits, coverage, order. A new chunker joins `CHUNKERS`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.chat import ScriptedChat
from dougong.data import Document
from dougong.rag.chunkers import Chunker, Decided, Fixed, Recursive, Semantic, Sentences, Structure
from dougong.rag.ruler import Characters, Ruler, Tokens, Words
from dougong.rag.structure import Outline, Title
from dougong.tokenizer import Tokenizer


def letters(texts: Sequence[str]) -> np.ndarray:
    """A vector for each text out of its first character: enough to have near and far."""
    rows = [[1.0, ord(text[0]) % 7, ord(text[-1]) % 5] if text else [1.0, 0, 0] for text in texts]
    vectors = np.array(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def deciding(limit: int, overlap: int, ruler: Ruler) -> Chunker:
    return Decided(ScriptedChat([json.dumps({"begins": [2, 3, 99, -1]})] * 200), limit, overlap, ruler)


Make = Callable[[int, int, Ruler], Chunker]
CHUNKERS: dict[str, Make] = {
    "fixed": Fixed,
    "sentences": Sentences,
    "recursive": Recursive,
    "structure": Structure,
    "semantic": lambda limit, overlap, ruler: Semantic(letters, limit, overlap, ruler, percentile=70),
    "decided": deciding,
}
PIECES = (
    *("# Title\n", "## 二级标题\n", "\n\n", "\n", "```\n", "| a | b |\n", "|---|---|\n", "- item\n", "    x = 1\n"),
    *(
        "Dr. Smith paid 3.50. ",
        "你好。今天天气很好！",
        "def f(x):\n",
        "<h1>T</h1>",
        "<table><tr><td>a</td></tr></table>",
    ),
    *("<p>", "word ", "e\u0301", "👩‍👩‍👧 ", "\r\n", "\u2028", "“Yes.” ", "a" * 40, "\t", "ﷺ", "𠀀𠀁"),
)
texts = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
kinds = st.sampled_from(["text", "markdown", "html", "code", "rst"])


@pytest.mark.parametrize("name", CHUNKERS)
@settings(max_examples=50)
@given(text=texts, kind=kinds, limit=st.integers(1, 30), data=st.data())
def test_the_promises_of_a_chunker(name: str, text: str, kind: str, limit: int, data) -> None:
    overlap = data.draw(st.integers(0, limit - 1))
    ruler = data.draw(st.sampled_from([Words(), Characters()]))
    chunks = CHUNKERS[name](limit, overlap, ruler).chunk(Document(text, "d", meta={"kind": kind}))

    covered = [False] * len(text)
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text and chunk.doc == "d"
        assert chunk.text.strip() == chunk.text != ""
        assert ruler.count(chunk.text) <= limit
        assert text.encode("utf-8", "surrogatepass")[slice(*chunk.meta["bytes"])].decode("utf-8", "surrogatepass") == (
            chunk.text
        )
        covered[chunk.start : chunk.end] = [True] * (chunk.end - chunk.start)
    assert all(done or text[at].isspace() for at, done in enumerate(covered))
    for one, two in itertools.pairwise(chunks):
        assert one.start < two.start and one.end < two.end
        shared = text[two.start : one.end]
        # Between cuts at arbitrary places a token may be halved: each half counts.
        assert ruler.count(shared) <= overlap + 1 if overlap else not shared
    assert len({chunk.id for chunk in chunks}) == len(chunks)


@pytest.mark.parametrize("name", CHUNKERS)
def test_limits_that_cannot_be(name: str) -> None:
    for limit, overlap in ((0, 0), (5, 5), (5, -1)):
        with pytest.raises(DougongError, match="expected"):
            CHUNKERS[name](limit, overlap, Words())


def cut(chunker: Chunker, text: str, kind: str = "text") -> list[str]:
    return [chunk.text for chunk in chunker.chunk(Document(text, "d", meta={"kind": kind}))]


def test_sentences_of_both_languages() -> None:
    text = "Dr. Smith paid $3.50 to J. Doe, e.g. in May. He left! “真的吗？”她问。是的。See Fig. 2 below. 完"
    assert cut(Sentences(limit=1000), text) == [text]
    from dougong.rag.sentences import sentences

    assert [text[start:end] for start, end in sentences(text)] == [
        "Dr. Smith paid $3.50 to J. Doe, e.g. in May.",
        "He left!",
        "“真的吗？”",
        "她问。",
        "是的。",
        "See Fig. 2 below.",
        "完",
    ]


def test_recursive_keeps_what_fits_together() -> None:
    text = "one two three\n\nfour five six\n\nseven eight nine ten eleven"
    assert cut(Recursive(limit=6), text) == ["one two three\n\nfour five six", "seven eight nine ten eleven"]
    assert cut(Recursive(limit=3), text)[:2] == ["one two three", "four five six"]


MARKDOWN = """# Guide

Some words before. And more words here.

## Install

| name | value |
|------|-------|
| one  | 1     |
| two  | 2     |

## Use

```python
# not a title

x = 1
```

Then it runs."""


def test_structure_keeps_tables_and_code_whole_and_knows_the_titles() -> None:
    chunks = Structure(limit=34).chunk(Document(MARKDOWN, "d", meta={"kind": "markdown"}))
    assert [chunk.text.split("\n")[0] for chunk in chunks] == ["# Guide", "## Install", "## Use"]
    assert [chunk.meta["heading"] for chunk in chunks] == ["Guide", "Guide > Install", "Guide > Use"]
    table = next(chunk.text for chunk in chunks if "| one" in chunk.text)
    assert "| name" in table and "| two" in table
    assert any("```python" in chunk.text and "x = 1\n```" in chunk.text for chunk in chunks)
    rows = cut(Structure(limit=24), MARKDOWN, "markdown")
    assert all(row.count("|") % 3 == 0 for row in rows)  # a table above the limit is cut between rows


def test_structure_of_html_and_code() -> None:
    page = "<h1>A</h1><p>One two.</p><h2>B</h2><table><tr><td>1</td></tr><tr><td>2</td></tr></table>"
    chunks = Structure(limit=46).chunk(Document(page, "d", meta={"kind": "html"}))
    assert [chunk.meta["heading"] for chunk in chunks] == ["A", "A > B"]
    assert chunks[1].text.startswith("<h2>") and chunks[1].text.endswith("</table>")
    source = "import os\n\n\ndef f():\n    return 1\n\n\ndef g():\n    return 2\n"
    assert cut(Structure(limit=8), source, "code") == [
        "import os",
        "def f():\n    return 1",
        "def g():\n    return 2",
    ]


def test_structure_of_the_language_reference() -> None:
    from dougong.rag.reference import language_reference

    topics = {each.source: each for each in language_reference()}
    chunks = Structure(200).chunk(topics["python-topic:for"])
    assert chunks[0].meta["heading"] == 'The "for" statement'
    chunks = Structure(120).chunk(topics["python-topic:types"])
    assert "The standard type hierarchy > Sequences" in {chunk.meta.get("heading", "")[:39] for chunk in chunks}


def test_semantic_cuts_where_the_subject_changes() -> None:
    def embed(sentences: Sequence[str]) -> np.ndarray:
        return np.array([[1.0, 0.0] if "cat" in each else [0.0, 1.0] for each in sentences], dtype=np.float32)

    text = "A cat sat. The cat ran. Taxes rose. Rents rose too."
    expected = ["A cat sat. The cat ran.", "Taxes rose. Rents rose too."]
    assert cut(Semantic(embed, threshold=0.7), text) == expected
    assert cut(Semantic(embed, percentile=60), text) == expected
    assert cut(Semantic(embed, threshold=2.0), text) == [text]
    with pytest.raises(DougongError, match="not both"):
        Semantic(embed, threshold=0.5, percentile=50)


def test_a_model_decides_and_its_nonsense_is_survived() -> None:
    text = "A cat sat. The cat ran. Taxes rose."
    with ScriptedChat(['{"begins": [3]}', "no idea", '{"begins": "x"}']) as model:
        chunker = Decided(model)
        assert cut(chunker, text) == ["A cat sat. The cat ran.", "Taxes rose."]
        assert cut(chunker, text) == [text]
        assert cut(chunker, text) == [text]
        assert chunker.unread == 1
        assert model.asked[0].schema is not None and "3. Taxes rose." in model.asked[0].last


def test_overlap_begins_at_a_sentence() -> None:
    text = "One two three. Four five six. Seven eight nine. Ten eleven twelve."
    assert cut(Sentences(limit=8, overlap=4), text) == [
        "One two three. Four five six.",
        "Four five six. Seven eight nine.",
        "Seven eight nine. Ten eleven twelve.",
    ]


@pytest.mark.parametrize("limit", [6, 40])
def test_limits_hold_in_the_tokens_of_a_model(data: Path, limit: int) -> None:
    """Byte-level tokens: a character can be several, and a text alone can have more than it has within another."""
    tokenizer = Tokenizer.load(data / "tokenizers" / "tokenizer_smollm2")
    text = "斗拱承托屋檐。" * 5 + "👩‍👩‍👧" * 9 + " unbelievably long-windedness, 3.14159" * 9 + "ﷺ𠀀\u0301" * 9
    for make in (Fixed, Sentences, Structure):
        chunks = make(limit, 2, Tokens(tokenizer)).chunk(Document(text, "d"))
        assert max(len(tokenizer.encode(chunk.text)) for chunk in chunks) <= limit
        covered = {at for chunk in chunks for at in range(chunk.start, chunk.end)}
        assert all(at in covered or character.isspace() for at, character in enumerate(text))
    with pytest.raises(DougongError, match="below what the character"):
        Fixed(1, 0, Tokens(tokenizer)).chunk(Document("𠀀", "d"))


@given(st.lists(st.integers(1, 6), max_size=12), st.integers(0, 140))
def test_a_place_stands_under_the_titles_that_no_later_one_closes(depths: list[int], at: int) -> None:
    titles = [Title(10 * place, depth, f"t{place}") for place, depth in enumerate(depths)]
    open_: list[Title] = []
    for title in titles:
        if title.at <= at:
            open_ = [*(above for above in open_ if above.depth < title.depth), title]
    assert Outline([], titles).heading(at) == " > ".join(title.words for title in open_)


def test_white_space_of_every_kind_is_skipped_and_the_work_grows_with_the_text() -> None:
    spaces = "".join(chr(each) for each in range(0x3001) if chr(each).isspace())
    (chunk,) = Fixed(5).chunk(Document(f"{spaces}斗拱{spaces}", "d"))
    assert chunk.text == "斗拱"
    # Each chunk used to copy the rest of the text: here some 40 gigabytes.
    assert len(Fixed(10).chunk(Document("ab " * 300_000, "d"))) == 30_000
