"""Words: our splitter cuts exactly as the library's does, on any Unicode."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from dougong.base import DougongError
from dougong.tokenizer import PATTERNS, split_words, words_named
from dougong.tokenizer.patterns import _PROBED, _runs

# Spaces of every kind, contractions in both cases (ſ folds to s), digits that are not ASCII, marks, astral planes.
HARD = " \u00a0\u3000\t\r\n\x0b\x1c\x85'sSſtTreELl1२³Ⅷéǅʰ\u0301你。_-/😀𝔸𞤀\u200d"
TEXTS = st.text(max_size=80) | st.text(alphabet=HARD, max_size=80)


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "o200k"])
@settings(max_examples=75)
@given(text=TEXTS)
@example("I'll we'VE 'ſ don't")
@example("12345 a1 ２３")
@example("\r\n\r\n  x\n \n\t\ty  ")
def test_split_equals_the_library(pattern: str, text: str) -> None:
    library = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    ours = split_words(text, pattern)
    assert ours == [word for word, _ in library.pre_tokenize_str(text)]
    assert "".join(ours) == text


@settings(max_examples=75)
@given(text=TEXTS)
def test_gpt2_pattern_is_the_one_built_into_byte_level(text: str) -> None:
    built_in = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = words_named("gpt2")
    assert [words.spell(w) for w in words.split(text)] == [word for word, _ in built_in.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", [r"\p{L}", r"\p{N}", r"\p{M}", r"\s"])
def test_classes_hold_nothing_outside_the_probed_planes(name: str) -> None:
    probed = set(_PROBED)
    beyond = "".join(chr(code) for code in range(0x34000, 0x110000, 0x11) if code not in probed)
    assert len(pre_tokenizers.Split(Regex(name), "isolated").pre_tokenize_str(beyond)) == 1
    assert all(last < other for (_, last), (other, _) in zip(_runs(name), _runs(name)[1:], strict=False))


@pytest.mark.parametrize("rule", ["whitespace", "metaspace"])
@settings(max_examples=75)
@given(text=TEXTS | st.text(alphabet="a▁ ", max_size=20))
def test_character_rules_equal_the_library(rule: str, text: str) -> None:
    words = words_named(rule)
    core = Tokenizer(models.BPE())
    words.dress(core)
    assert words.split(text) == [word for word, _ in core.pre_tokenizer.pre_tokenize_str(text)]


def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(DougongError, match="did you mean 'llama3'"):
        split_words("x", "llama-3")
    with pytest.raises(DougongError, match="did you mean 'metaspace'"):
        words_named("meta_space")
