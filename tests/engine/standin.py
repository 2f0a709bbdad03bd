"""Small random models for the engine's tests."""

from __future__ import annotations

from typing import Any

from dougong.hub import LanguageModel
from dougong.model import Model, decoder_spec, initialise
from dougong.tokenizer import byte_tokenizer


def small(tokenizer: bool = True, context: int = 64, seed: int = 0, **options: Any) -> LanguageModel:
    """A decoder over bytes with random weights, its logits spread so that ties decide no greedy answer."""
    text = byte_tokenizer() if tokenizer else None
    vocab = text.vocab_size if text else 50
    options = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "tied": False, **options}
    model = initialise(Model(decoder_spec(vocab, context=context, **options)), seed)
    model.embedding.weight.data.mul_(50)
    model.head.weight.data.mul_(50)
    return LanguageModel(model, text)
