"""What a *word* is to BPE, and in which alphabet it is spelled: the step between text and symbols, and back.

Byte-level rules spell a word in 256 printable characters, one per byte, so nothing is ever unknown. Character rules
spell it in its own characters and need an `unk` token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from dougong.base import DougongError, nearest
from dougong.tokenizer.patterns import PATTERNS, split_words

if TYPE_CHECKING:
    import tokenizers

SPACE = "▁"  # SentencePiece's visible space, U+2581
Kind = Literal["bytes", "whitespace", "metaspace", "sentencepiece"]
_MARKED = re.compile(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+")


def _printable_bytes() -> list[str]:
    """GPT-2's character for each byte: itself where it is visible, else the next of U+0100, U+0101, ..."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(spare)) for byte in range(256)]


BYTE_TO_CHAR = _printable_bytes()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}
_SPELL = dict(enumerate(BYTE_TO_CHAR))


def spell_bytes(text: str) -> str:
    """The UTF-8 bytes of `text`, each as GPT-2's printable character."""
    return text.encode("utf-8").decode("latin-1").translate(_SPELL)


@dataclass(frozen=True)
class Words:
    """One way to make words of text. `pattern` belongs to the kind "bytes" alone.

    bytes: a pattern cuts, bytes are spelled.           whitespace: `\\w+` and `[^\\w\\s]+`; the spaces are lost.
    metaspace: a space becomes ▁ and starts a word.     sentencepiece: the same, but the whole text is one word.
    """

    kind: Kind
    pattern: str | None = None

    def split(self, text: str) -> list[str]:
        """Words of `text`, not yet spelled (see `spell`)."""
        if self.kind == "bytes":
            return split_words(text, self.pattern or "gpt2")
        if self.kind == "whitespace":
            return [word for word, _ in _whitespace().pre_tokenize_str(text)]
        if not text:
            return []
        marked = text.replace(" ", SPACE)
        if self.kind == "sentencepiece":
            return [SPACE + marked]
        return _MARKED.findall(marked if marked.startswith(SPACE) else SPACE + marked)

    def spell(self, word: str) -> str:
        """A word in the alphabet of the vocabulary."""
        return spell_bytes(word) if self.kind == "bytes" else word

    def alphabet(self) -> set[str]:
        """Characters that the vocabulary holds whether or not the training text has them."""
        return set(BYTE_TO_CHAR) if self.kind == "bytes" else set()

    def join(self, tokens: list[str]) -> str:
        """Text from tokens. Exact for "bytes" (broken UTF-8 becomes U+FFFD); the others lose what `split` lost."""
        if self.kind == "bytes":
            known = bytes(CHAR_TO_BYTE[char] for token in tokens for char in token if char in CHAR_TO_BYTE)
            return known.decode("utf-8", errors="replace")
        if self.kind == "whitespace":
            return " ".join(tokens)
        if self.kind == "metaspace":
            first = "".join(tokens[:1]).replace(SPACE, "")
            return first + "".join(tokens[1:]).replace(SPACE, " ")
        return _join_byte_fallback(tokens)

    def dress(self, core: tokenizers.Tokenizer) -> None:
        """Give a `tokenizers.Tokenizer` the normalizer, pre-tokenizer and decoder that say the same."""
        from tokenizers import Regex, decoders, normalizers, pre_tokenizers

        if self.kind == "bytes":
            if self.pattern == "gpt2":
                core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # has this very pattern built in
            else:
                cut = pre_tokenizers.Split(Regex(PATTERNS[self.pattern or "gpt2"]), "isolated")
                spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
                core.pre_tokenizer = pre_tokenizers.Sequence([cut, spelled])
            core.decoder = decoders.ByteLevel()
        elif self.kind == "whitespace":
            core.pre_tokenizer = pre_tokenizers.Whitespace()
        elif self.kind == "metaspace":
            core.pre_tokenizer = pre_tokenizers.Metaspace()
            core.decoder = decoders.Metaspace()
        else:
            steps: list[Any] = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
            core.normalizer = normalizers.Sequence(steps)
            back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
            core.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])


@cache
def _whitespace() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Whitespace()


_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def fallback_byte(token: str) -> int | None:
    """The byte that a SentencePiece token such as "<0x0A>" stands for, or None for any other token."""
    match = _FALLBACK.fullmatch(token)
    return int(match.group(1), 16) if match else None


def piece_bytes(token: str) -> bytes:
    """The bytes of a SentencePiece token: a fallback byte, or its text with ▁ as a space."""
    byte = fallback_byte(token)
    return token.replace(SPACE, " ").encode("utf-8") if byte is None else bytes([byte])


def _join_byte_fallback(tokens: list[str]) -> str:
    text = b"".join(map(piece_bytes, tokens)).decode("utf-8", errors="replace")
    return text.removeprefix(" ")


def words_named(name: str) -> Words:
    """The rule for a name: one of PATTERNS (byte-level), "whitespace", "metaspace" or "sentencepiece".

    Raises DougongError for any other name.
    """
    if name in PATTERNS:
        return Words("bytes", name)
    if name in ("whitespace", "metaspace", "sentencepiece"):
        return Words(name)
    known = [*PATTERNS, "whitespace", "metaspace", "sentencepiece"]
    raise DougongError(f"unknown word pattern {name!r}{nearest(name, known)}")
