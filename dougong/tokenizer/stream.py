"""From ids back to bytes and text: the bytes of each token, and decoding a stream without half characters."""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any, Literal

from dougong.base import DougongError
from dougong.tokenizer.words import CHAR_TO_BYTE, SPACE, piece_bytes

if TYPE_CHECKING:
    import tokenizers

    from dougong.tokenizer.tokenizer import Tokenizer

Spelling = Literal["bytes", "sentencepiece", "pieces", "characters", "other"]
"""How tokens turn into text. All but "other" are bytes simply put one after another ("sentencepiece" then loses one
leading space, "pieces" does not), so they stream exactly and cheaply; "other" (WordPiece and the like) goes through the
library."""


def spelling(core: tokenizers.Tokenizer) -> Spelling:
    """Read the spelling off a tokenizer's decoder."""
    if core.decoder is None:
        return "other"
    state: dict[str, Any] = json.loads(core.decoder.__getstate__())
    steps = [step["type"] for step in state.get("decoders", [state])]
    if steps == ["ByteLevel"]:
        return "bytes"
    if steps == ["Fuse"]:
        return "characters"
    visible_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    if steps[:3] == ["Replace", "ByteFallback", "Fuse"] and state["decoders"][0] == visible_space:
        rest = state["decoders"][3:]
        if not rest:
            return "pieces"
        if rest == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
            return "sentencepiece"
    return "other"


def token_table(core: tokenizers.Tokenizer, how: Spelling) -> list[bytes | None]:
    """The bytes of every id from 0 to the largest one; None where the vocabulary has a hole.

    Added tokens stand for their own text, whatever the decoder.
    """
    vocab = core.get_vocab(with_added_tokens=True)
    added = {index: token.content for index, token in core.get_added_tokens_decoder().items()}
    table: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, index in vocab.items():
        if index in added:
            table[index] = added[index].encode("utf-8")
        elif how == "bytes":
            known = all(character in CHAR_TO_BYTE for character in token)
            table[index] = bytes(map(CHAR_TO_BYTE.__getitem__, token)) if known else token.encode("utf-8")
        elif how in ("sentencepiece", "pieces"):
            table[index] = piece_bytes(token)
        elif how == "characters":
            table[index] = token.encode("utf-8")
        else:
            table[index] = core.decode([index], skip_special_tokens=False).encode("utf-8")
    return table


def join_bytes(pieces: list[bytes], how: Spelling) -> str:
    """Text of tokens given as bytes; broken UTF-8 becomes U+FFFD."""
    text = b"".join(pieces).decode("utf-8", errors="replace")
    return text.removeprefix(" ") if how == "sentencepiece" else text


class StreamDecoder:
    """Text as the ids come, one at a time, never with half a character.

    What `push` returned so far, put together and closed by `finish`, is `decode` of all ids. The spelling "other"
    decodes everything again at each step, so it costs O(n^2) over n tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer.spelling == "sentencepiece"  # until the first text has come
        self._ids: list[int] = []
        self._sent = ""
        self._finished = False

    def push(self, index: int) -> str:
        """The text that id `index` completes, "" if it completes none. Raises DougongError outside the vocabulary."""
        if self._finished:
            raise DougongError("this stream is finished; ask the tokenizer for a new one with stream()")
        piece = self._tokenizer.token_bytes(index)
        if index in self._skip:
            return ""
        if self._tokenizer.spelling == "other":
            self._ids.append(index)
            return self._rest(hold=True)
        return self._first(self._utf8.decode(piece))

    def finish(self) -> str:
        """What is still held back; an unfinished character comes out as U+FFFD."""
        self._finished = True
        if self._tokenizer.spelling == "other":
            return self._rest(hold=False)
        return self._first(self._utf8.decode(b"", final=True))

    def _first(self, text: str) -> str:
        if text and self._strip:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def _rest(self, *, hold: bool) -> str:
        text = self._tokenizer.decode(self._ids, skip_special=False)
        if hold:
            text = text.rstrip("\ufffd")  # may yet become a character
        if not text.startswith(self._sent):
            return ""  # the decoder took back what it said; later tokens may settle it
        fresh = text[len(self._sent) :]
        self._sent = text
        return fresh
