"""Text that streams: whole characters, stop strings wherever token borders lie, nothing ever taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.engine.text import TextStream, first_stop, held_back
from dougong.tokenizer import Tokenizer, byte_tokenizer, train_tokenizer

TOKENIZER = byte_tokenizer()

letters = st.text("ab", max_size=12)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


class Pieces:
    """A tokenizer whose tokens are the given strings, in order."""

    def __init__(self, pieces: list[str]):
        self.pieces = pieces

    def stream(self) -> Pieces:
        return self

    def push(self, index: int) -> str:
        return self.pieces[index]

    def finish(self) -> str:
        return ""


def run(pieces: list[str], stops: list[str], include: bool = False) -> tuple[list[int], str, bool]:
    """Tokens and text released, and whether a stop string ended them."""
    stream = TextStream(Pieces(pieces), [], stops, include)  # pyright: ignore[reportArgumentType]
    tokens, text = [], ""
    for index in range(len(pieces)):
        for piece in stream.push(index, 0.0, last=index == len(pieces) - 1):
            tokens.append(piece.token)
            text += piece.text
        if stream.stopped:
            break
    return tokens, text, stream.stopped


def slow_cut(text: str, stops: list[str]) -> tuple[int, int] | None:
    """Character by character: the first time that the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end - max(map(len, ending)), end
    return None


@given(letters, stops)
def test_first_stop_is_the_one_that_ends_first(text: str, stops: list[str]) -> None:
    assert first_stop(text, stops) == slow_cut(text, stops)


@given(letters, stops)
def test_held_back_is_the_longest_ending_that_begins_a_stop(text: str, stops: list[str]) -> None:
    sizes = [size for size in range(len(text) + 1) for stop in stops if size < len(stop) and text.endswith(stop[:size])]
    assert held_back(text, stops) == max(sizes, default=0)


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=8), stops, st.booleans())
def test_stops_do_not_depend_on_token_borders(pieces: list[str], stops: list[str], include: bool) -> None:
    whole = "".join(pieces)
    cut = slow_cut(whole, stops)
    tokens, text, stopped = run(pieces, stops, include)
    assert stopped == (cut is not None)
    assert text == (whole if cut is None else whole[: cut[include]])
    assert tokens == list(range(len(tokens)))
    if cut is None:
        assert len(tokens) == len(pieces)
    elif text:  # the fewest tokens whose text begins with the answer's
        assert "".join(pieces[: len(tokens)]).startswith(text)
        assert len("".join(pieces[: len(tokens) - 1])) < len(text) or not pieces[len(tokens) - 1]


@given(st.text(min_size=1, max_size=20))
def test_characters_are_whole(text: str) -> None:
    stream = TextStream(TOKENIZER, [])
    ids = TOKENIZER.encode(text)
    released = [stream.push(token, 0.0, last=place == len(ids) - 1) for place, token in enumerate(ids)]
    assert [len(pieces) for pieces in released] == [1] * len(ids)
    assert "".join(piece.text for pieces in released for piece in pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece.text for pieces in released for piece in pieces)


def test_half_a_character_of_the_prompt_is_completed() -> None:
    first, *rest = TOKENIZER.encode("斗")
    stream = TextStream(TOKENIZER, [first])
    assert "".join(piece.text for token in rest for piece in stream.push(token, 0.0)) == "斗"


def test_a_broken_character_at_the_end_is_marked() -> None:
    stream = TextStream(TOKENIZER, [])
    token = TOKENIZER.encode("斗")[0]
    assert stream.push(token, 0.0, last=True)[0].text == "\ufffd"


def test_ids_beyond_the_tokenizer_give_no_text() -> None:
    assert TextStream(TOKENIZER, []).push(100_000, 0.0)[0].text == ""


# Characters of one to four bytes, joined ones among them, and stops that share their bytes.
many = st.text("aé斗拱🙂👩\u200d🏮 \n", min_size=1, max_size=16)


def stream_all(
    tokenizer: Tokenizer, ids: list[int], prompt: list[int], stops: list[str]
) -> tuple[list[int], str, bool]:
    stream = TextStream(tokenizer, prompt, stops)
    tokens, text = [], ""
    for place, token in enumerate(ids):
        for piece in stream.push(token, 0.0, last=place == len(ids) - 1):
            tokens.append(piece.token)
            text += piece.text
        if stream.stopped:
            break
    return tokens, text, stream.stopped


@pytest.fixture(scope="module")
def tokenizers() -> list[Tokenizer]:
    """Bytes; byte-level BPE with tokens across and within characters; SentencePiece with bytes for what it lacks."""
    words = ["斗拱 é 🙂 hello", "👩\u200d🏮 a 斗", "aaaa 拱 拱"] * 3
    return [TOKENIZER, train_tokenizer(words, 300), fallback()]


def fallback() -> Tokenizer:
    """Pieces for a few characters, byte tokens for all others, as Llama's vocabulary has them."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers

    vocab = {token: place for place, token in enumerate([f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "斗"])}
    core = Core(models.BPE(vocab=vocab, merges=[], byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(core)


@given(prompt=many, answer=many, stops=st.lists(st.text("a斗🙂\u200d ", min_size=1, max_size=3), max_size=2))
def test_every_kind_of_token_streams_what_the_whole_decodes_to(
    tokenizers: list[Tokenizer], prompt: str, answer: str, stops: list[str]
) -> None:
    for tokenizer in tokenizers:
        before, ids = tokenizer.encode(prompt), tokenizer.encode(answer)
        whole = tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]
        cut = slow_cut(whole, stops)
        tokens, text, stopped = stream_all(tokenizer, ids, before, stops)
        assert stopped == (cut is not None)
        assert text == (whole if cut is None else whole[: cut[0]])
        assert tokens == ids[: len(tokens)]


@given(ids=st.lists(st.integers(0, 255), max_size=12))
def test_any_bytes_come_out_as_their_decoding(ids: list[int]) -> None:
    """Broken UTF-8 too: each character once, nothing lost."""
    assert stream_all(TOKENIZER, ids, [], [])[1] == (TOKENIZER.decode(ids) if ids else "")
