"""Learning BPE merges: count pairs once, then only ever touch the words that a merge changes.

    repeat: (a, b) = the most frequent pair; write the token ab for it in every word that holds it; mend the counts

Sennrich et al. 2016 (arXiv:1508.07909), algorithm 1. The choices below make it fast without leaving Python:
- a word is a `str` whose characters are token ids (`chr(id)`), so finding and replacing a pair runs in C, a pair is a
  two-character string, and comparing two such strings compares the pairs of ids;
- the heap is lazy: an entry whose count has sunk is pushed back with the present count when it surfaces;
- each heap entry carries the words it was made for.
The order of merges (highest count, then the smallest pair of ids) and every corner follow the `tokenizers` library, so
that merges and ids come out equal.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dougong.base import DougongError
from dougong.tokenizer.words import Words

Progress = Callable[[str, int, int | None], None]
"""Called with (stage, done, total): ("words", texts read, None), then ("merges", tokens learned, tokens wanted)."""

_EVERY = 256  # calls of `progress` are this many steps apart


@dataclass(frozen=True)
class TrainedBPE:
    """`vocab` maps a token to its id; `merges` are pairs of tokens, the earlier the stronger."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]


class _Ids(dict[int, str | None]):
    """A table for str.translate: characters outside the alphabet vanish."""

    def __missing__(self, key: int) -> None:
        return None


def count_words(texts: Iterable[str], words: Words, progress: Progress | None = None) -> Counter[str]:
    """How often each word occurs in all texts together, as spelled by `words`. Memory: the distinct words only."""
    counts: Counter[str] = Counter()
    for done, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DougongError(f"training text {done} is {type(text).__name__}, not str; pass an iterable of strings")
        counts.update(words.split(text))
        if progress and done % _EVERY == 0:
            progress("words", done, None)
    spelled: Counter[str] = Counter()
    for word, count in counts.items():
        spelled[words.spell(word)] += count
    return spelled


def _alphabet(word_counts: Mapping[str, int], always: set[str], limit: int | None) -> list[str]:
    """The characters that become the first tokens: those in `always`, then the most frequent ones, up to `limit`."""
    characters: Counter[str] = Counter()
    for word, count in word_counts.items():
        for character in word:
            characters[character] += count
    kept = always | characters.keys()
    if limit is not None and len(kept) > limit:
        by_use = sorted(kept, key=lambda c: (c not in always, -characters[c], c))
        kept = set(by_use[:limit])
    return sorted(kept)


def train_bpe(
    word_counts: Mapping[str, int],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = (),
    alphabet: set[str] | None = None,
    limit_alphabet: int | None = None,
    min_frequency: int = 0,
    progress: Progress | None = None,
) -> TrainedBPE:
    """Learn merges from word counts until the vocabulary has `vocab_size` tokens or no pair is left.

    Ids: special tokens in their order, then the alphabet by code point, then merges in the order learned. `alphabet`
    is kept even where the text lacks it; `limit_alphabet` caps the number of characters; pairs rarer than
    `min_frequency` are left alone. Raises DougongError when there are no words, or when `vocab_size` cannot hold the
    special tokens and the alphabet.
    """
    if not word_counts:
        raise DougongError("the training text is empty; give at least one text with a word in it")
    first = [*special_tokens, *_alphabet(word_counts, alphabet or set(), limit_alphabet)]
    tokens = list(dict.fromkeys(first))
    if vocab_size < len(tokens):
        raise DougongError(
            f"vocab_size {vocab_size} cannot hold the {len(tokens)} special tokens and characters to begin with; "
            f"ask for at least {len(tokens)}"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    ids = _Ids((ord(token), chr(index)) for token, index in vocab.items() if len(token) == 1)
    words = [word.translate(ids) for word in word_counts]
    merges = _merge_all(words, list(word_counts.values()), tokens, vocab, vocab_size, min_frequency, progress)
    return TrainedBPE(vocab, [(tokens[ord(pair[0])], tokens[ord(pair[1])]) for pair in merges])


def _count_pairs(words: list[str], counts: list[int]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Each pair's weighted count, and the words that hold it."""
    pairs: dict[str, int] = {}
    places: dict[str, list[int]] = {}
    for index, word in enumerate(words):
        count = counts[index]
        for at in range(len(word) - 1):
            pair = word[at : at + 2]
            if pair in pairs:
                pairs[pair] += count
                if places[pair][-1] != index:
                    places[pair].append(index)
            else:
                pairs[pair] = count
                places[pair] = [index]
    return pairs, places


def _merge_all(
    words: list[str],
    counts: list[int],
    tokens: list[str],
    vocab: dict[str, int],
    vocab_size: int,
    min_frequency: int,
    progress: Progress | None,
) -> list[str]:
    """The main loop. Extends `tokens` and `vocab`, rewrites `words`; returns the merged pairs in order."""
    pairs, places = _count_pairs(words, counts)
    heap = [(-pairs[pair], pair, held) for pair, held in places.items()]
    heapq.heapify(heap)
    merges: dict[str, None] = {}
    start, steps = len(tokens), 0
    while len(tokens) < vocab_size and heap:
        noted, pair, held = heapq.heappop(heap)
        count = pairs[pair]
        if -noted != count:
            heapq.heappush(heap, (-count, pair, held))
            continue
        if count < 1 or count < min_frequency:
            break
        token = tokens[ord(pair[0])] + tokens[ord(pair[1])]
        if token not in vocab:  # (ab, c) and (a, bc) may both be merged; they are one token
            vocab[token] = len(tokens)
            tokens.append(token)
        # Merged again, a pair counts from its last time: the library overwrites its rank.
        merges.pop(pair, None)
        merges[pair] = None
        for fresh, where in _apply(pair, chr(vocab[token]), held, words, counts, pairs).items():
            if pairs[fresh] > 0:
                heapq.heappush(heap, (-pairs[fresh], fresh, where))
        steps += 1
        if progress and steps % _EVERY == 0:
            progress("merges", len(tokens) - start, vocab_size - start)
    if progress:
        progress("merges", len(tokens) - start, vocab_size - start)
    return list(merges)


def _apply(
    pair: str, new: str, held: list[int], words: list[str], counts: list[int], pairs: dict[str, int]
) -> dict[str, list[int]]:
    """Write `new` for `pair` in the words `held`, keep `pairs` up to date, and return the words of each new pair.

    Around one occurrence, x a b y becomes x ab y: the pairs (x, a) and (b, y) lose, (x, ab) and (ab, y) gain. The count
    of (a, b) itself stays: its entry has left the heap, and the library leaves it as well.
    """
    left, right = pair
    born: dict[str, list[int]] = {}
    for index in held:
        word = words[index]
        at = word.find(pair)
        if at < 0:  # an earlier merge took it
            continue
        count = counts[index]
        last = len(word) - 2
        end = -1
        while at >= 0:
            changed = []
            if at:
                before = new if at == end else word[at - 1]
                pairs[before + left] -= count
                changed.append(before + new)
            if at < last:
                after = word[at + 2]
                pairs[right + after] -= count
                changed.append(new + after)
            for fresh in changed:
                pairs[fresh] = pairs.get(fresh, 0) + count
                where = born.get(fresh)
                if where is None:
                    born[fresh] = [index]
                elif where[-1] != index:
                    where.append(index)
            end = at + 2
            at = word.find(pair, end)
        words[index] = word.replace(pair, new)
    return born
