"""Text that streams: whole characters, stop strings wherever token borders lie, nothing ever taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dougong.engine.text import TextStream, first_stop, held_back
from dougong.tokenizer import byte_tokenizer

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


def run(pieces: list[str], stops: list[str]) -> tuple[list[int], str, bool]:
    """Tokens and text released, and whether a stop string ended them."""
    stream = TextStream(Pieces(pieces), [], stops)  # pyright: ignore[reportArgumentType]
    tokens, text = [], ""
    for index in range(len(pieces)):
        for piece in stream.push(index, 0.0, last=index == len(pieces) - 1):
            tokens.append(piece.token)
            text += piece.text
        if stream.stopped:
            break
    return tokens, text, stream.stopped


def slow_cut(text: str, stops: list[str]) -> int | None:
    """Character by character: the first time that the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end - max(map(len, ending))
    return None


@given(letters, stops)
def test_first_stop_is_the_one_that_ends_first(text: str, stops: list[str]) -> None:
    assert first_stop(text, stops) == slow_cut(text, stops)


@given(letters, stops)
def test_held_back_is_the_longest_ending_that_begins_a_stop(text: str, stops: list[str]) -> None:
    sizes = [size for size in range(len(text) + 1) for stop in stops if size < len(stop) and text.endswith(stop[:size])]
    assert held_back(text, stops) == max(sizes, default=0)


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=8), stops)
def test_stops_do_not_depend_on_token_borders(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    cut = slow_cut(whole, stops)
    tokens, text, stopped = run(pieces, stops)
    assert stopped == (cut is not None)
    assert text == (whole if cut is None else whole[:cut])
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
