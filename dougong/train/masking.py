"""Masked language modelling: which tokens are hidden, and what stands in their place (Devlin et al. 2018).

Called anew for each batch, it is RoBERTa's dynamic masking (Liu et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.parts.cross_entropy import IGNORED
from dougong.parts.shapes import Bool, Int


@dataclass(frozen=True)
class Masking:
    """`share` of the tokens (or words) is to be predicted: `masked` of those are replaced by the mask token, `random`
    by any token of the vocabulary, and the others stay as they are."""

    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        for name in ("share", "masked", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise DougongError(f"masking.{name} is {getattr(self, name)}; expected 0 to 1")
        if self.masked + self.random > 1:
            raise DougongError(f"masking.masked and random are {self.masked + self.random} together; at most 1")


def mask_tokens(
    tokens: Int[Tensor, "B T"],
    mask_id: int,
    vocab: int,
    generator: torch.Generator,
    how: Masking | None = None,
    kept: Bool[Tensor, "B T"] | None = None,
    words: Int[Tensor, "B T"] | None = None,
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """(tokens as the model sees them, targets: the tokens to be predicted, -100 elsewhere).

    kept   True at tokens that are never hidden: padding, [CLS], [SEP]
    words  the number of the word that each token belongs to, from 0 in each row: words are hidden whole or not at
           all (whole-word masking); each token still draws what stands in its place. None: every token is a word
    """
    how = how or Masking()

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device).to(tokens.device)

    if words is None:
        hidden = draw(*tokens.shape) < how.share
    else:
        count = int(words.max()) + 1 if words.numel() else 0
        hidden = (draw(len(tokens), count) < how.share).gather(1, words)
    if kept is not None:
        hidden = hidden & ~kept
    fate = draw(*tokens.shape)
    others = (draw(*tokens.shape) * vocab).long().clamp(max=vocab - 1)
    seen = torch.where(hidden & (fate < how.masked), mask_id, tokens)
    seen = torch.where(hidden & (fate >= how.masked) & (fate < how.masked + how.random), others, seen)
    return seen, tokens.masked_fill(~hidden, IGNORED)
