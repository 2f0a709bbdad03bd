"""Tokenizers in GGUF metadata encode as the files do that llama.cpp's converter read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

import dougong
from dougong.base import DougongError
from dougong.hub.gguf_tokenizer import read_ids, read_tokenizer
from dougong.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "Once upon a time, 1234 bricks didn't  fall.\n\n  Why?",
    "斗拱承重。  naïve café ① ② x²",
    "def f(x):\n\treturn x + 10 # don't\r\n",
    " leading and trailing ",
    "e\u0301 composed é",
]


def metadata(tokenizer: Tokenizer, cut: str, **more: Any) -> dict[str, Any]:
    """What the converter writes for a byte-level tokenizer; `more` without the prefix."""
    data = json.loads(tokenizer.to_json())
    vocab = {**data["model"]["vocab"], **{token["content"]: token["id"] for token in data["added_tokens"]}}
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {token["content"] for token in data["added_tokens"] if token["special"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    kinds = [3 if token in special else 1 for token in tokens]
    own = {"model": "gpt2", "pre": cut, "tokens": tokens, "merges": merges, "token_type": kinds}
    return {f"tokenizer.ggml.{key}": value for key, value in {**own, **more}.items()}


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, 300, "qwen2")


def test_byte_level(trained: Tokenizer) -> None:
    end, turn = trained.token_id("<|endoftext|>"), trained.token_id("<|im_end|>")
    told = metadata(trained, "qwen2", bos_token_id=end, eos_token_id=turn, eot_token_id=end, add_bos_token=False)
    told["tokenizer.chat_template"] = trained.chat_template
    ours = read_tokenizer(told)
    assert ours is not None
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (trained.vocab_size, end, (turn, end))
    assert ours.chat_template == trained.chat_template
    assert read_ids(told) == {"bos_token_id": end, "eos_token_id": [turn, end]}
    for text in [*TEXTS[:-1], "<|im_end|>"]:
        assert ours.encode(text) == trained.encode(text)
        assert ours.decode(ours.encode(text)) == text
        assert ours.encode(text, wrap=True) == trained.encode(text)
    assert ours.encode("a<|im_end|>", specials=True)[-1] == turn
    assert ours.encode("e\u0301") == ours.encode("é")  # Qwen composes


def test_the_beginning_of_a_text(trained: Tokenizer) -> None:
    begin = trained.token_id("<|endoftext|>")
    for cut, more, wrapped in (
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
        ("gpt-2", {}, False),
        ("gpt-2", {"add_bos_token": True}, True),
    ):
        ours = read_tokenizer(metadata(trained, cut, bos_token_id=begin, **more))
        assert ours is not None
        assert ours.encode("a b", wrap=True) == [begin] * wrapped + ours.encode("a b")


@pytest.mark.parametrize(("name", "cut"), [("tokenizer_qwen2", "qwen2"), ("tokenizer_smollm2", "gpt-2")])
def test_published_byte_level_tokenizers(name: str, cut: str, data: Path) -> None:
    theirs = Tokenizer.load(data / "tokenizers" / name)
    ours = read_tokenizer(metadata(theirs, cut))
    assert ours is not None
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)


def test_single_digits() -> None:
    """SmolLM cuts as GPT-2 does, and between digits too."""
    ours = read_tokenizer(metadata(train_tokenizer(["12 12 12 a12"] * 9, 300, "gpt2"), "smollm"))
    assert ours is not None
    assert [ours.token(index) for index in ours.encode("a 1212")] == ["a", "Ġ", "1", "2", "1", "2"]


def test_a_published_sentencepiece_tokenizer(data: Path) -> None:
    theirs = Tokenizer.load(data / "weights/stories260K/tok512.bin", vocab_size=512)
    raw, at = (data / "weights/stories260K/tok512.bin").read_bytes(), 4
    tokens, scores = [], []
    while len(tokens) < 512:
        score, size = struct.unpack_from("<fi", raw, at)
        tokens.append(raw[at + 8 : at + 8 + size].decode().replace(" ", "▁"))
        scores.append(score)
        at += 8 + size
    tokens[:3] = "<unk>", "<s>", "</s>"
    kinds = [2, 3, 3, *(6 if token.startswith("<0x") else 1 for token in tokens[3:])]
    own = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds}
    own |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    told = {f"tokenizer.ggml.{key}": value for key, value in own.items()}
    ours = read_tokenizer(told)
    assert ours is not None
    assert ours.roles == theirs.roles
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.encode("a", wrap=True) == [1, *ours.encode("a")]
    bare = read_tokenizer({**told, "tokenizer.ggml.add_space_prefix": False})
    assert bare is not None
    assert bare.encode("time") != ours.encode("time") == bare.encode(" time")
    assert bare.decode(bare.encode("a time")) == "a time"


def test_kinds_that_are_not_known_give_none(trained: Tokenizer) -> None:
    assert read_tokenizer({}) is None
    assert read_tokenizer(metadata(trained, "a-new-one")) is None
    assert read_tokenizer(metadata(trained, "qwen2", model="t5")) is None
    assert read_tokenizer(metadata(trained, "qwen2", model="llama")) is None  # without scores


def test_lists_that_do_not_belong_together(trained: Tokenizer) -> None:
    with pytest.raises(DougongError, match="'a' twice"):
        read_tokenizer(metadata(trained, "qwen2", tokens=["a", "b", "a"]))
    with pytest.raises(DougongError, match="2 tokens, but 1 types"):
        read_tokenizer(metadata(trained, "qwen2", tokens=["a", "b"], token_type=[1]))
    with pytest.raises(DougongError, match="do not fit together"):
        read_tokenizer(metadata(trained, "qwen2", tokens=["a", "b"], token_type=[1, 1], merges=["c d"]))


def test_a_model_comes_with_its_tokenizer(trained: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.hub.gguf_files import made, write

    told = metadata(trained, "qwen2", eos_token_id=trained.token_id("<|im_end|>"))
    write(tmp_path / "model.gguf", made("qwen2", vocab_size=trained.vocab_size), more=told)
    lm = dougong.load(tmp_path / "model.gguf")
    assert lm.tokenizer is not None
    assert lm.tokenizer.encode(TEXTS[0]) == trained.encode(TEXTS[0])
    assert lm.eos_ids == (trained.token_id("<|im_end|>"),)
    dougong.save(lm, tmp_path / "m")
    assert dougong.load(tmp_path / "m").eos_ids == lm.eos_ids
    write(tmp_path / "small.gguf", made("qwen2", vocab_size=trained.vocab_size - 1), more=told)
    with pytest.raises(DougongError, match="do not belong together"):
        dougong.load(tmp_path / "small.gguf")
