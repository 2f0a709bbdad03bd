"""Streams: whole characters only, and put together exactly what `decode` says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_tokenizer

TEXTS = ["你好，世界！😀 hello world", "ünïcödé  spaces\n\n"]


def sentencepiece() -> Tokenizer:
    """A llama2.c file with byte fallback, written by hand."""
    import struct
    import tempfile

    pieces = [
        "<unk>",
        "\n<s>\n",
        "\n</s>\n",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        " h",
        "hi",
        " hi",
        " ",
        "h",
        "i",
    ]
    data = struct.pack("<i", 8)
    for index, piece in enumerate(pieces):
        data += struct.pack("<fi", -float(index), len(piece.encode())) + piece.encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tok.bin"
        path.write_bytes(data)
        return Tokenizer.load(path)


TOKENIZERS = {
    "byte-level": train_tokenizer(TEXTS, 280, "llama3", min_frequency=0),
    "bytes": byte_tokenizer(),
    "characters": char_tokenizer(TEXTS),
    "sentencepiece": sentencepiece(),
    "metaspace": train_tokenizer(TEXTS, 60, "metaspace", min_frequency=0),
}


def streamed(tokenizer: Tokenizer, ids: list[int], skip_special: bool) -> tuple[list[str], str]:
    stream = tokenizer.stream(skip_special=skip_special)
    return [stream.push(index) for index in ids], stream.finish()


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=75)
@given(draw=st.data(), skip=st.booleans())
def test_any_ids_stream_to_what_decode_says(name: str, draw: st.DataObject, skip: bool) -> None:
    tokenizer = TOKENIZERS[name]
    ids = draw.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    parts, rest = streamed(tokenizer, ids, skip)
    assert "".join(parts) + rest == tokenizer.decode(ids, skip_special=skip)


@pytest.mark.parametrize("name", ["byte-level", "bytes", "sentencepiece"])
@settings(max_examples=75)
@given(text=st.text(max_size=40))
@example("你好😀👩‍👩‍👧")
@example(" two  spaces ")
def test_text_is_never_cut_within_a_character(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    parts, rest = streamed(tokenizer, ids, True)
    assert rest == ""  # the text is whole, so nothing is held back at the end
    shown = ""
    for part in parts:
        shown += part
        assert text.startswith(shown)
    if name != "sentencepiece" or "▁" not in text:  # SentencePiece takes ▁ for a space
        assert shown == text == tokenizer.decode(ids)


def test_characters_come_as_soon_as_they_are_whole() -> None:
    stream = byte_tokenizer().stream()
    assert [stream.push(byte) for byte in "a你".encode()] == ["a", "", "", "你"]
    assert stream.push(0xE4) == ""
    assert stream.finish() == "\ufffd"
    with pytest.raises(DougongError, match="this stream is finished"):
        stream.push(65)


def test_special_tokens_are_left_out_or_named() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.eos_id is not None
    ids = [104, tokenizer.eos_id, 105]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "h<|im_end|>i"
    assert streamed(tokenizer, ids, False) == (["h", "<|im_end|>", "i"], "")


@settings(max_examples=50)
@given(draw=st.data())
def test_real_tokenizers_stream_too(opened: Callable[[str], Tokenizer], draw: st.DataObject) -> None:
    place = draw.draw(st.sampled_from(["tokenizer_sp_test/test_model.model", "tokenizer_bert_zh"]))
    tokenizer = opened(f"tokenizers/{place}")
    ids = draw.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=25))
    parts, rest = streamed(tokenizer, ids, True)
    assert "".join(parts) + rest == tokenizer.decode(ids)
