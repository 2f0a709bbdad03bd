"""Prompts as people give them, checked and turned into ids."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dougong.base import DougongError

if TYPE_CHECKING:
    from dougong.hub import LanguageModel
    from dougong.tokenizer import Tokenizer


def prompt_ids(lm: LanguageModel, prompt: Any, where: str, continues: bool = False) -> list[int]:
    """Ids of one prompt; of a text that `continues` another, nothing is put in front. Raises DougongError, naming
    `where`, for what the model cannot take."""
    if isinstance(prompt, str):
        if lm.tokenizer is None:
            raise DougongError(f"{where} is text, but this model has no tokenizer; give a list of token ids")
        ids = lm.tokenizer.encode(prompt) if continues else text_ids(lm, lm.tokenizer, prompt)
    elif isinstance(prompt, (Sequence, Tensor, np.ndarray)):
        try:
            ids = [operator.index(token) for token in (prompt if isinstance(prompt, Sequence) else prompt.tolist())]
        except TypeError:
            raise DougongError(f"{where} is {_short(prompt)}; expected a text or a list of whole numbers") from None
    else:
        raise DougongError(f"{where} is {_short(prompt)}; prompts are a list of texts or of lists of token ids")
    if continues:
        return _checked(lm, ids, where)
    if not ids:
        if lm.bos_id is None:
            raise DougongError(f"{where} is empty, and this model has no beginning-of-text id; give at least one token")
        ids = [lm.bos_id]
    return _checked(lm, ids, where)


def text_ids(lm: LanguageModel, tokenizer: Tokenizer, text: str) -> list[int]:
    """A text's ids as the model expects a text to begin, however long it is."""
    ids = tokenizer.encode(text, wrap=True)
    # Every SentencePiece model with a beginning-of-text id was trained with it in front; some files do not say so.
    if tokenizer.spelling == "sentencepiece" and lm.bos_id is not None:
        ids = ids if ids[:1] == [lm.bos_id] else [lm.bos_id, *ids]
    return ids


def _checked(lm: LanguageModel, ids: list[int], where: str) -> list[int]:
    for token in ids:
        if not 0 <= token < lm.spec.vocab:
            raise DougongError(
                f"{where} has the token id {token}, outside the model's vocabulary of {lm.spec.vocab}; "
                "is this the model's tokenizer?"
            )
    if len(ids) > lm.spec.context:
        raise DougongError(
            f"{where} has {len(ids)} tokens, but the model's context is {lm.spec.context}; shorten the prompt"
        )
    return ids


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
