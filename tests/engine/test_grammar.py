"""Structured output: whatever a random model says under a grammar, a strict parser takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.engine import Sampling
from dougong.engine.choose import choose
from dougong.engine.grammar import Grammar, Grammars, Matcher, apply_masks
from dougong.engine.json_grammar import Place
from dougong.tokenizer import Tokenizer, byte_tokenizer, train_tokenizer

from .test_choose import Ask

pytest.importorskip("xgrammar")
pytestmark = pytest.mark.usefixtures("unchecked")

TEXTS = ['{"name": "斗拱", "size": 12.5, "tags": ["a", "b"], "ok": true}', "yes no maybe 🙂 é\n\t hello"] * 4


def fallback() -> Tokenizer:
    """SentencePiece with byte tokens for what it lacks."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers

    names = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "斗", "</s>"]
    core = Core(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(core, roles={"eos_token": "</s>"})


def wordpiece() -> Tokenizer:
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models

    names = ["[UNK]", "[SEP]", "yes", "no", "##thing", "may", "##be", "maybe"]
    core = Core(models.WordPiece(vocab={name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    return Tokenizer(core, roles={"eos_token": "[SEP]"})


KINDS = {"bytes": byte_tokenizer, "bpe": lambda: train_tokenizer(TEXTS, 320), "sentencepiece": fallback}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size + 7)  # as embeddings are padded


def speak(
    grammars: Grammars, tokenizer: Tokenizer, grammar: Grammar, seed: int, most: int = 600
) -> tuple[list[int], Matcher]:
    """A random model's answer under a grammar, without its end of text."""
    generator = torch.Generator().manual_seed(seed)
    matcher = grammars.matcher(grammar, tokenizer.eos_ids)
    output: list[int] = []
    while len(output) < most and not matcher.finished:
        logits = torch.randn(1, grammars._vocab, generator=generator) * 2
        ask = Ask(Sampling(), generator, output=tuple(output), matcher=matcher)
        token = choose(logits, [ask])[0].token
        assert token is not None
        assert matcher.accept(token)
        if token in tokenizer.eos_ids:
            break
        output.append(token)
    return output, matcher


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "short": {"type": "string", "maxLength": 3},
        "age": {"type": "integer"},
        "size": {"type": "number"},
        "kind": {"enum": ["a\n", "b", 3, None]},
        "code": {"type": "string", "pattern": "^[a-c]{1,3}$"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "no": {"const": False},
        "either": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["name", "short", "age", "size", "kind", "code", "tags", "no", "either"],
    "$defs": {"point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "null"}], "minItems": 2}},
}


def obeys(value: Any) -> None:
    assert list(value) == PERSON["required"]
    assert isinstance(value["name"], str) and isinstance(value["short"], str) and len(value["short"]) <= 3
    assert type(value["age"]) is int
    assert isinstance(value["size"], (int, float))
    assert value["kind"] in ("a\n", "b", 3, None)
    assert re.fullmatch("[a-c]{1,3}", value["code"])
    assert value["no"] is False
    assert len(value["tags"]) <= 2 and all(isinstance(tag, str) for tag in value["tags"])
    either = value["either"]
    assert isinstance(either, bool) or (isinstance(either[0], (int, float)) and either[1] is None and len(either) == 2)


def test_json_of_a_schema_always_parses(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = Grammar.json_schema(PERSON, max_string=8)
    for seed in range(8):
        output, matcher = speak(grammars, tokenizer, grammar, seed)
        assert matcher.completed
        text = tokenizer.decode(output)
        assert "\ufffd" not in text
        value = json.loads(text)
        obeys(value)
        json.dumps(value, ensure_ascii=False).encode()  # no half surrogate pair either
        assert len(value["name"]) <= 8 + max(len(tokenizer.token_bytes(token)) for token in output)


def test_any_json_that_is_whole_parses_and_the_cut_is_told(grammars: Grammars, tokenizer: Tokenizer) -> None:
    whole = 0
    for seed in range(12):
        output, matcher = speak(grammars, tokenizer, Grammar.json(max_string=4), seed, most=120)
        if matcher.completed:
            assert isinstance(json.loads(tokenizer.decode(output)), dict)
            whole += 1
        else:
            assert len(output) == 120
            with pytest.raises(json.JSONDecodeError):
                json.loads(tokenizer.decode(output))
    assert whole


@pytest.mark.parametrize("pattern", [r"[a-z]{2,4}-\d+(x|斗)", r"[^a]{3}", r".{2}🙂", r"\w+@\w+\.com"])
def test_regular_expressions_match_from_beginning_to_end(
    grammars: Grammars, tokenizer: Tokenizer, pattern: str
) -> None:
    for seed in range(5):
        output, matcher = speak(grammars, tokenizer, Grammar.regex(pattern), seed, most=200)
        if matcher.completed:
            text = tokenizer.decode(output)
            if tokenizer.spelling == "sentencepiece" and not re.fullmatch(pattern, text, re.DOTALL):
                text = " " + text  # the decoder takes one space from the beginning of a text
            assert re.fullmatch(pattern, text, re.DOTALL), text


def test_choices_and_rules(grammars: Grammars, tokenizer: Tokenizer) -> None:
    options = ["yes", "no", "maybe", 'a "quoted"\n\\line', "斗拱🙂"]
    said = {tokenizer.decode(speak(grammars, tokenizer, Grammar.choice(options), seed)[0]) for seed in range(40)}
    assert said <= set(options) and len(said) > 2
    rules = 'root ::= pair (", " pair)* "."\npair ::= [0-9] "=" ("yes" | "no")'
    output, matcher = speak(grammars, tokenizer, Grammar.ebnf(rules), 0)
    assert matcher.completed
    assert re.fullmatch(r"\d=(yes|no)(, \d=(yes|no))*\.", tokenizer.decode(output))


def spelled(tokenizer: Tokenizer, text: bytes) -> list[int]:
    table = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids}
    return [table[bytes([byte])] for byte in text]


BAD = [
    b'"\x01"',
    b'"\t"',
    b'"\n"',
    b'"\xed\xa0\x80"',
    b'"\xc0\x80"',
    b'"\xff"',
    b'"\\ud800"',
    b'"\\udc00"',
    b"01",
    b"1" * 20,
]
GOOD = [b'"\\ud83d\\ude00"', '"斗🙂"'.encode(), b'"\\t\\u0041"', b"-12.5e10", b'"\x7f"']


@pytest.mark.parametrize("schema", [{}, {"type": ["string", "number"]}, {"type": "string", "maxLength": 9}], ids=str)
def test_what_no_strict_parser_takes_is_never_allowed(schema: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer()
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    for text in BAD:
        matcher = grammars.matcher(Grammar.json_schema(schema), tokenizer.eos_ids)
        assert not all(matcher.accept(token) for token in spelled(tokenizer, text)), text
    if "maxLength" not in schema:
        for text in GOOD:
            matcher = grammars.matcher(Grammar.json_schema(schema), tokenizer.eos_ids)
            assert all(matcher.accept(token) for token in spelled(tokenizer, text)), text
            assert matcher.completed


def test_strings_are_closed_where_they_are_long_enough(tokenizer: Tokenizer, grammars: Grammars) -> None:
    matcher = grammars.matcher(Grammar.json_schema({"type": "string"}, max_string=3), tokenizer.eos_ids)
    quote, letter, escape = spelled(tokenizer, b'"a\\')
    for token in (quote, letter, letter):
        assert matcher.accept(token)
    later = matcher.fork()
    assert later.accept(escape)
    assert not later.accept(letter) and later.accept(quote)  # an escape is finished first
    assert later.accept(quote) and later.finished
    assert matcher.accept(letter)
    assert not matcher.accept(letter) and matcher.accept(quote)


@given(st.text(max_size=12))
def test_places_in_json_strings(text: str) -> None:
    written = json.dumps(text, ensure_ascii=False).encode()
    for cut in range(1, len(written) - 1):
        place = Place().after(written[:cut]).after(b"")
        assert place.inside
        assert place == Place().after(written[: cut // 2]).after(written[cut // 2 : cut])
    assert not Place().after(written).inside


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_rollback_and_forks_return_to_the_same_place(seed: int, back: int) -> None:
    tokenizer = BYTES
    output, _ = speak(BYTE_GRAMMARS, tokenizer, Grammar.json(max_string=5), seed, most=25)
    matcher = BYTE_GRAMMARS.matcher(Grammar.json(max_string=5), tokenizer.eos_ids)
    masks = []
    for token in output:
        masks.append(matcher.mask().clone())
        assert matcher.accept(token)
    masks.append(matcher.mask().clone())
    back = min(back, len(output))
    fork = matcher.fork()
    fork.rollback(back)
    assert torch.equal(fork.mask(), masks[len(output) - back])
    assert torch.equal(matcher.mask(), masks[-1])
    for place in range(len(output) - back, len(output)):
        assert torch.equal(fork.mask(), masks[place]) and fork.accept(output[place])


BYTES = byte_tokenizer()
BYTE_GRAMMARS = Grammars(BYTES, BYTES.vocab_size)


def test_masks_are_applied_to_the_bit() -> None:
    bits = torch.rand(3, 70, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = torch.zeros(3, 3, dtype=torch.int64)
    for row in range(3):
        for place in range(70):
            packed[row, place // 32] += int(bits[row, place]) << (place % 32)
    packed = packed.to(torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.zeros(3, 70, dtype=dtype)
        apply_masks(logits, packed)
        assert torch.equal(logits == 0, bits)


def test_stop_ids_end_a_text_only_where_it_is_complete() -> None:
    matcher = BYTE_GRAMMARS.matcher(Grammar.regex("a+"), [*BYTES.eos_ids, 65])
    letter = spelled(BYTES, b"a")[0]
    assert not matcher.accept(65) and not matcher.completed
    assert matcher.accept(letter) and matcher.completed and not matcher.finished
    assert matcher.accept(65) and matcher.finished
    assert not matcher.mask().any()


def test_without_an_end_of_text_a_text_ends_where_nothing_can_follow() -> None:
    matcher = BYTE_GRAMMARS.matcher(Grammar.choice(["ab", "abc"]))
    a, b, c = spelled(BYTES, b"abc")
    assert matcher.accept(a) and matcher.accept(b) and matcher.completed and not matcher.finished
    assert matcher.accept(c) and matcher.finished


def test_wordpiece_spells_words() -> None:
    tokenizer = wordpiece()
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    grammar = Grammar.choice(["nothing", "yes", "maybe"])
    said = {tokenizer.decode(speak(grammars, tokenizer, grammar, seed)[0]) for seed in range(30)}
    assert said <= {"nothing", "yes", "maybe"} and len(said) == 3


def wrong() -> Iterator[tuple[Any, str]]:
    yield lambda: Grammar.json_schema("{"), "is not JSON"
    yield lambda: Grammar.json_schema("[]"), "expected an object"
    yield lambda: Grammar.json_schema({}, max_string=0), "max_string is 0"
    yield lambda: Grammar.json_schema({"type": "strnig"}), 'Unsupported type "strnig"'
    yield lambda: Grammar.json_schema({"$ref": "#/$defs/none"}), "Cannot find"
    yield lambda: Grammar.json_schema({"properties": {"a": {"not": {}}}}), r"the schema.properties.a has 'not'"
    yield lambda: Grammar.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"
    yield lambda: Grammar.json_schema({"allOf": [{}, {}]}), "join them"
    yield lambda: Grammar.json_schema({"anyOf": [{}], "properties": {}}), "'properties' beside 'anyOf'"
    yield lambda: Grammar.json_schema({"type": "string", "pattern": "(?=a)b"}), "the schema.pattern .* Lookahead"
    yield lambda: Grammar.json_schema({"items": 3, "type": "array"}), "xx|items|expected"
    yield lambda: Grammar.regex("(a"), "not closed"
    yield lambda: Grammar.regex(""), "expected a text"
    yield lambda: Grammar.ebnf("root ::= other"), '"other" is not defined'
    yield lambda: Grammar.ebnf("root ::= root"), "nothing can begin it"
    yield lambda: Grammar.choice([]), "at least one character"
    yield lambda: Grammar.choice("abc"), "at least one character"


@pytest.mark.parametrize(("make", "message"), wrong())
def test_wrong_grammars_are_told_before_any_work(make: Any, message: str) -> None:
    with pytest.raises(DougongError, match=message):
        BYTE_GRAMMARS.matcher(make(), BYTES.eos_ids)


def test_what_a_grammar_needs() -> None:
    with pytest.raises(DougongError, match="needs a tokenizer"):
        Grammars(None, 50).matcher(Grammar.json())
    with pytest.raises(DougongError, match=r"forced id \d+ breaks the json_schema grammar"):
        BYTE_GRAMMARS.matcher(Grammar.json(), forced=spelled(BYTES, b"{a"))
    with pytest.raises(DougongError, match="cannot spell"):
        tokenizer = wordpiece()
        Grammars(tokenizer, tokenizer.vocab_size).matcher(Grammar.json())


def test_compiled_grammars_are_kept_and_bounded() -> None:
    grammars = Grammars(BYTES, BYTES.vocab_size, keep=2)
    for text in ("a", "b", "a", "c", "a"):
        grammars.matcher(Grammar.regex(text))
    assert list(grammars._compiled) == [("regex", "c"), ("regex", "a")]


def test_a_published_vocabulary(data: Path) -> None:
    tokenizer = Tokenizer.load(data / "tokenizers" / "tokenizer_smollm2")
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    for seed in range(3):
        output, matcher = speak(grammars, tokenizer, Grammar.json_schema(PERSON, max_string=20), seed)
        assert matcher.completed
        obeys(json.loads(tokenizer.decode(output)))
