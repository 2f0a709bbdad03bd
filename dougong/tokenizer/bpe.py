"""BPE as it reads in the paper: encode a word by its strongest merge first, decode by joining.

Production encoding goes through the `tokenizers` library (see `tokenizer.py`); this is the same thing, readable, and
the tests hold the two equal.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from dougong.base import DougongError
from dougong.tokenizer.words import Words

_CACHED = 100_000  # words; natural text repeats itself, so most of it is answered from here


class BPE:
    """A vocabulary, its merges (the earlier the stronger) and the rule that makes words.

    A character outside the vocabulary becomes its UTF-8 bytes "<0xNN>" under `byte_fallback`, else `unk` (several in a
    row only one, with `fuse_unk`), else it is dropped. With `ignore_merges` a word that is a token is taken as is.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        words: Words,
        *,
        unk: str | None = None,
        fuse_unk: bool = False,
        byte_fallback: bool = False,
        ignore_merges: bool = False,
    ) -> None:
        self.vocab = vocab
        self.words = words
        self.tokens = {index: token for token, index in vocab.items()}
        self._unk = None if unk is None else vocab[unk]
        self._fuse_unk = fuse_unk
        self._byte_fallback = byte_fallback
        self._ignore_merges = ignore_merges
        # pair of ids -> (rank, id of the whole)
        self._merges: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, (left, right) in enumerate(merges):
            try:
                self._merges[vocab[left], vocab[right]] = (rank, vocab[left + right])
            except KeyError as missing:
                raise DougongError(
                    f"merge {rank} ({left!r}, {right!r}) needs {missing}, not in the vocabulary"
                ) from None
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Special tokens are text here; nothing is added."""
        ids: list[int] = []
        for word in self.words.split(text):
            known = self._cache.get(word)
            if known is None:
                known = self._encode_word(self.words.spell(word))
                if len(self._cache) < _CACHED:
                    self._cache[word] = known
            ids += known
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. Raises DougongError for an id outside the vocabulary."""
        for index in ids:
            if index not in self.tokens:
                raise DougongError(f"id {index} is not in the vocabulary of {len(self.tokens)} tokens")
        return self.words.join([self.tokens[index] for index in ids])

    def _encode_word(self, word: str) -> list[int]:
        if self._ignore_merges and word in self.vocab:
            return [self.vocab[word]]
        return merge_word(self._symbols(word), self._merges)

    def _symbols(self, word: str) -> list[int]:
        symbols: list[int] = []
        after_unk = False
        for character in word:
            index = self.vocab.get(character)
            if index is None and self._byte_fallback:
                names = [f"<0x{byte:02X}>" for byte in character.encode("utf-8")]
                if all(name in self.vocab for name in names):
                    symbols += [self.vocab[name] for name in names]
                    after_unk = False
                    continue
            if index is not None:
                symbols.append(index)
            elif self._unk is not None and not (self._fuse_unk and after_unk):
                symbols.append(self._unk)
            after_unk = index is None
        return symbols


def merge_word(symbols: list[int], merges: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Apply merges to `symbols`, always the strongest and then the leftmost one, in O(n log n).

    `merges` maps a pair of ids to (rank, id of the whole); a lower rank is stronger.
    """
    size = len(symbols)
    if size < 2:
        return symbols
    symbols = list(symbols)
    after = [*range(1, size), -1]  # a linked list of the symbols still alive
    before = list(range(-1, size - 1))
    heap = []
    for at in range(size - 1):
        found = merges.get((symbols[at], symbols[at + 1]))
        if found:
            heap.append((found[0], at, found[1]))
    heapq.heapify(heap)
    while heap:
        _, at, whole = heapq.heappop(heap)
        right = after[at]
        if symbols[at] < 0 or right < 0:
            continue
        found = merges.get((symbols[at], symbols[right]))
        if found is None or found[1] != whole:  # its neighbours have changed since
            continue
        symbols[at] = whole
        symbols[right] = -1
        after[at] = after[right]
        if after[right] >= 0:
            before[after[right]] = at
        for start, stop in ((before[at], at), (at, after[at])):
            if start >= 0 and stop >= 0:
                found = merges.get((symbols[start], symbols[stop]))
                if found:
                    heapq.heappush(heap, (found[0], start, found[1]))
    return [symbol for symbol in symbols if symbol >= 0]
