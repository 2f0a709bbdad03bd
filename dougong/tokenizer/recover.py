"""Merges of a vocabulary that only ranks its tokens (tiktoken files, SentencePiece scores).

Such a tokenizer joins, of all neighbours whose joint text is a token, the pair with the best-ranked joint. A token can
then only ever be born from the two parts into which its own text falls when encoded with the better-ranked tokens
alone: up to that moment nothing crosses its borders, so its inside looks as it does in isolation. One merge per token
says it all.
"""

from __future__ import annotations

from collections.abc import Iterable


def recover_merges(ranked: Iterable[str]) -> list[tuple[str, str]]:
    """Merges, strongest first, from tokens in order of rank (best first), spelled one character per symbol.

    A token of one character is a symbol and needs no merge; a token that its own text cannot reach gets none.
    """
    rank: dict[str, int] = {}
    merges = []
    for token in ranked:
        if len(token) < 2:
            continue
        parts = _parts(token, rank)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
        rank[token] = len(rank)
    return merges


def _parts(token: str, rank: dict[str, int]) -> list[str]:
    parts = list(token)
    while len(parts) > 2:
        best, at = min((rank.get(parts[i] + parts[i + 1], len(rank)), i) for i in range(len(parts) - 1))
        if best == len(rank):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
