"""A made-up world for readers: facts that stand in a store and nowhere else.

A row asks and is told, twice: "say of NAME the THING in PLACE ? ?", then "in PLACE the THING of NAME is VALUE .". What
can be learned without the store are the sentences; which value is right can only be read. Each side of the split is a
world of its own: the same places, things and names, all values drawn anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dougong.rag.neighbours import Asker, Neighbours
from dougong.rag.reader import NONE

CHUNK, CHUNKS, FOUND = 9, 4, 2
LENGTH = CHUNK * CHUNKS
SAY = ("say", "of", "", "the", "", "in", "", "?", "?")
TELL = ("in", "", "the", "", "of", "", "is", "", ".")
PLACES = tuple("".join(pair) for pair in product(("bor", "kel", "mun", "tar"), ("dax", "fim", "gov")))
NAMES = tuple("".join(pair) for pair in product(("ba", "ju", "lo", "ze"), ("kko", "mmu", "zza")))
THINGS = ("hat", "cart", "roof", "drum", "lamp", "boat", "cloak", "wheel")
VALUES = ("red", "green", "black", "white", "amber", "pink", "grey", "brown", "gold", "mauve", "beige", "teal")
WORDS = tuple(dict.fromkeys((*SAY, *TELL, *PLACES, *NAMES, *THINGS, *VALUES)))
ID = {word: number for number, word in enumerate(WORDS)}
VOCAB = len(WORDS)
ASKED = (CHUNK + 7, 3 * CHUNK + 7)  # places of the two values in a row


@dataclass(frozen=True)
class Facts:
    """tokens (N, LENGTH + 1), whose last is padding; passages (N, CHUNKS, FOUND, 2 CHUNK), found by each chunk."""

    tokens: Tensor
    passages: Tensor


def told(shape: tuple[str, ...], *words: str) -> list[int]:
    """A sentence with its gaps filled in order."""
    left = iter(words)
    return [ID[word or next(left)] for word in shape]


@lru_cache(maxsize=4)
def world(seed: int, rows: int) -> Facts:
    """A world and `rows` rows about it, each with two of its facts."""
    draw = np.random.default_rng(seed)
    keys = list(product(PLACES, THINGS, NAMES))
    values = [VALUES[each] for each in draw.integers(0, len(VALUES), len(keys))]
    sentences = [told(TELL, *key, value) for key, value in zip(keys, values, strict=True)]
    store = Neighbours(sentences, range(len(keys)), lambda row: " ".join(WORDS[each] for each in row), CHUNK)
    chosen = draw.integers(0, len(keys), (rows, 2))
    tokens = []
    for pair in chosen:
        row: list[int] = []
        for each in pair:
            place, thing, name = keys[each]
            row += [*told(SAY, name, thing, place), *sentences[each]]
        tokens.append([*row, 0])
    made = np.array(tokens)
    # The answer's own chunk may find the fact it tells: by then it is told, and only what comes after can read it.
    found = store.find(made[:, :LENGTH].reshape(-1, CHUNK), FOUND, [Asker(NONE)] * (rows * CHUNKS))
    passages = store.passages(found).reshape(rows, CHUNKS, FOUND, 2 * CHUNK)
    return Facts(torch.from_numpy(made), torch.from_numpy(passages))
