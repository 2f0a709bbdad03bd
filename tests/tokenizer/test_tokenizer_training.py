"""Training: merges and ids equal the library's trainer on the same text, ties and reborn tokens included."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

from dougong.base import DougongError
from dougong.tokenizer import TrainedBPE, count_words, train_bpe, train_tokenizer, words_named


def ours(texts: list[str], name: str, vocab_size: int, **options: Any) -> TrainedBPE:
    words = words_named(name)
    return train_bpe(count_words(texts, words), vocab_size, alphabet=words.alphabet(), **options)


def library(texts: list[str], name: str, vocab_size: int, **options: Any) -> TrainedBPE:
    words = words_named(name)
    core = Tokenizer(models.BPE())
    words.dress(core)
    options["special_tokens"] = list(options.get("special_tokens", []))
    alphabet = sorted(words.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False, **options)
    core.train_from_iterator(texts, trainer)
    model = json.loads(core.to_str())["model"]
    return TrainedBPE(model["vocab"], [(left, right) for left, right in model["merges"]])


def same(texts: list[str], name: str, vocab_size: int, **options: Any) -> None:
    expected = library(texts, name, vocab_size, **options)
    found = ours(texts, name, vocab_size, **options)
    assert found.vocab == expected.vocab
    assert found.merges == expected.merges


@settings(max_examples=150)
@given(
    texts=st.lists(st.text(alphabet="ab ", min_size=1, max_size=60), min_size=1, max_size=5).filter(
        lambda texts: any(text.strip() for text in texts)
    ),
    name=st.sampled_from(["gpt2", "metaspace", "whitespace"]),
    extra=st.integers(0, 30),
    min_frequency=st.integers(0, 3),
)
@example(texts=["aabbababaabbab" * 4], name="gpt2", extra=30, min_frequency=0)
def test_two_letters_force_ties_and_tokens_born_twice(
    texts: list[str], name: str, extra: int, min_frequency: int
) -> None:
    base = 256 if name == "gpt2" else 3
    same(texts, name, base + extra, min_frequency=min_frequency)


@settings(max_examples=50)
@given(texts=st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=4), extra=st.integers(0, 60))
def test_any_unicode(texts: list[str], extra: int) -> None:
    same(texts, "llama3", 256 + extra)


@pytest.mark.parametrize("kind", ["chinese", "english", "code"])
@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2", "metaspace", "whitespace"])
def test_real_text(samples: dict[str, str], kind: str, name: str) -> None:
    texts = samples[kind].splitlines(keepends=True)
    same(texts, name, 4000, special_tokens=["<|endoftext|>", "<|im_end|>"], min_frequency=2)


def test_special_token_spelled_like_a_character_or_a_merge_keeps_its_id() -> None:
    same(["abab abab ab b"], "metaspace", 20, special_tokens=["<s>", "b", "ab"])


def test_limited_alphabet_drops_the_rarest_characters() -> None:
    texts = ["aaaaaa bbbbb cccc ddd ee f"]
    same(texts, "whitespace", 12, limit_alphabet=4)
    assert set("ef") & ours(texts, "whitespace", 12, limit_alphabet=4).vocab.keys() == set()


def test_texts_are_read_once_as_they_come_and_progress_is_told() -> None:
    calls: list[tuple[str, int, int | None]] = []
    texts = (f"the text number {n} and even more words to merge" for n in range(600))
    train_tokenizer(texts, 280, progress=lambda *call: calls.append(call))
    assert [call for call in calls if call[0] == "words"] == [("words", 256, None), ("words", 512, None)]
    assert calls[-1] == ("merges", 21, 21)


def test_training_stops_early_when_no_pair_is_left() -> None:
    assert train_tokenizer(["ab"], 1000, "gpt2", (), min_frequency=0).vocab_size == 257


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 500, "training text is empty"),
        (["", ""], 500, "training text is empty"),
        (["abc"], 100, "cannot hold the 259 .* ask for at least 259"),
        (iter([b"abc"]), 500, "training text 1 is bytes"),
    ],
)
def test_impossible_requests_say_what_to_do(texts: Any, size: int, message: str) -> None:
    with pytest.raises(DougongError, match=message):
        train_tokenizer(texts, size)
