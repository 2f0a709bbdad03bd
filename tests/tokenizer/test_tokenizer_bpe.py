"""Our readable BPE: ids equal the library's, byte-level text comes back whole."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import models

from dougong.base import DougongError
from dougong.tokenizer import BPE, Tokenizer, train_tokenizer, words_named

TRAINING = [
    "the cat sat on the mat, that cat! " * 4,
    "猫坐在垫子上，猫。" * 3,
    "for i in range(10): print(i)\n" * 3,
    "aaaa ab" * 5,
]


def readable(core: str, name: str) -> BPE:
    """Our BPE from a tokenizer.json."""
    model = json.loads(core)["model"]
    options: dict[str, Any] = {k: model[k] for k in ("fuse_unk", "byte_fallback", "ignore_merges")}
    return BPE(
        model["vocab"], [(a, b) for a, b in model["merges"]], words_named(name), unk=model["unk_token"], **options
    )


@pytest.fixture(scope="module", params=["gpt2", "llama3", "qwen2", "metaspace", "whitespace"])
def pair(request: pytest.FixtureRequest) -> tuple[BPE, Tokenizer]:
    name = request.param
    tokenizer = train_tokenizer(TRAINING, 400, name, min_frequency=0)
    return readable(tokenizer.to_json(), name), tokenizer


@settings(max_examples=75)
@given(text=st.text(max_size=60) | st.text(alphabet="the cat猫坐 a\n9", max_size=60))
def test_encode_and_decode_equal_the_library(pair: tuple[BPE, Tokenizer], text: str) -> None:
    own, tokenizer = pair
    ids = own.encode(text)
    assert ids == tokenizer.encode(text)
    core = Core.from_str(tokenizer.to_json())
    assert own.decode(ids) == core.decode(ids, skip_special_tokens=False)
    if own.words.kind == "bytes":
        assert own.decode(ids) == text


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 299), max_size=30))
def test_any_ids_decode_as_the_library_decodes_them(ids: list[int]) -> None:
    tokenizer = train_tokenizer(TRAINING, 300, "gpt2", (), min_frequency=0)
    own = readable(tokenizer.to_json(), "gpt2")
    core = Core.from_str(tokenizer.to_json())
    assert own.decode(ids) == tokenizer.decode(ids) == core.decode(ids)


def test_random_merges_on_long_words() -> None:
    draw = random.Random(1)
    for _ in range(40):
        vocab = {c: i for i, c in enumerate("abc")}
        merges: list[tuple[str, str]] = []
        for _ in range(25):
            left, right = draw.choice(list(vocab)), draw.choice(list(vocab))
            if (left, right) not in merges:
                merges.append((left, right))
                vocab.setdefault(left + right, len(vocab))
        text = "▁" + "".join(draw.choice("abc") for _ in range(200))
        vocab["▁"] = len(vocab)
        own = BPE(vocab, merges, words_named("metaspace"))
        core = Core(models.BPE(vocab=vocab, merges=merges))
        assert own.encode(text) == core.encode(text).ids


@pytest.mark.parametrize("fuse", [False, True])
def test_unknown_characters(fuse: bool) -> None:
    vocab = {"<unk>": 0, "a": 1, "▁": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for fallback in (False, True):
        own = BPE(vocab, [], words_named("metaspace"), unk="<unk>", fuse_unk=fuse, byte_fallback=fallback)
        core = Core(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=fuse, byte_fallback=fallback))
        words_named("metaspace").dress(core)
        assert own.encode("a你好a 界x") == core.encode("a你好a 界x").ids
    assert BPE(vocab, [], words_named("metaspace")).encode("a你") == [2, 1]


@pytest.mark.parametrize(
    ("place", "name"), [("tokenizer_qwen2", "qwen2"), ("gpt2_bpe", "gpt2"), ("tokenizer_smollm2", "gpt2")]
)
def test_real_vocabularies(opened: Callable[[str], Tokenizer], samples: dict[str, str], place: str, name: str) -> None:
    tokenizer = opened(f"tokenizers/{place}")
    own = readable(tokenizer.to_json(), name)
    for text in samples.values():
        ids = own.encode(text)
        assert ids == tokenizer.encode(text)
        assert own.decode(ids) == text


def test_wrong_merges_and_ids_are_named() -> None:
    with pytest.raises(DougongError, match=r"merge 0 \('a', 'b'\) needs 'ab'"):
        BPE({"a": 0, "b": 1}, [("a", "b")], words_named("metaspace"))
    with pytest.raises(DougongError, match="id 7 is not in the vocabulary of 1 tokens"):
        BPE({"a": 0}, [], words_named("metaspace")).decode([7])
