"""An encoder given another vocabulary: for a language that its own tokenizer has no tokens for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.model import Model
from dougong.parts.shapes import Float
from dougong.tokenizer import Tokenizer

TABLE = "embedding.storage.weight"


def transplanted(
    lm: LanguageModel, tokenizer: Tokenizer | None = None, layers: int | None = None, seed: int = 0
) -> LanguageModel:
    """A new model that reads with `tokenizer` and has the first `layers` layers, on copies of `lm`'s weights.

    tokenizer: tokens that both know by the same spelling keep their vectors, all others begin at random with the mean
    and the spread of the old table (de Vries and Nissim 2021 begin so too); None: the model's own. layers: None: all.
    Raises DougongError for a number of layers that the model does not have, or a model without a tokenizer of its own.
    """
    spec = lm.spec
    count = len(spec.layers) if layers is None else layers
    if not 1 <= count <= len(spec.layers):
        raise DougongError(f"the number of layers to keep is {count}; expected 1 to {len(spec.layers)}")
    if lm.tokenizer is None:
        raise DougongError("the model has no tokenizer whose tokens could be looked up")
    vocab = spec.vocab if tokenizer is None else tokenizer.vocab_size
    made = Model(replace(spec, vocab=vocab, layers=spec.layers[:count]))
    own = lm.model.state_dict()
    weights = {name: own[name].clone() for name in made.state_dict()}
    if tokenizer is not None:
        weights[TABLE] = _table(own[TABLE], lm.tokenizer, tokenizer, seed)
    made.load_state_dict(weights)
    ids = ("pad_token_id", "bos_token_id", "eos_token_id") if tokenizer is not None else ()
    config = {name: value for name, value in lm.config.items() if name not in ids}
    return LanguageModel(made, tokenizer or lm.tokenizer, lm.family, config)


def _table(old: Float[Tensor, "V D"], known: Tokenizer, wanted: Tokenizer, seed: int) -> Float[Tensor, "W D"]:
    noise = torch.randn(wanted.vocab_size, old.shape[1], generator=torch.Generator().manual_seed(seed))
    table = (old.float().mean(0) + noise * old.float().std(0)).to(old.dtype)
    for token, place in wanted.tokens().items():
        there = known.token_id(token)
        if there is not None and there < len(old):
            table[place] = old[there]
    return table
