"""Small models and data for the alignment tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dougong.align.preferences import Pair
from dougong.hub import LanguageModel, save
from dougong.model import Model, decoder_spec, initialise
from dougong.tokenizer import char_tokenizer

CHARS = "0123456789+-= abcdefghijklmnopqrstuvwxyzAB?.!\n"


def talker(width: int = 24, context: int = 128, seed: int = 3, chars: str = CHARS) -> LanguageModel:
    """A decoder over a few characters, with a chat template; off its initial values, where gradients are 0."""
    tokenizer = char_tokenizer(chars)
    spec = decoder_spec(tokenizer.vocab_size, width, 2, 2, context, ffn=2 * width, tied=False)
    model = initialise(Model(spec), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return LanguageModel(model, tokenizer)


def saved(folder: Path, **options: Any) -> Path:
    save(talker(**options), folder)
    return folder


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pairs(count: int = 24) -> list[Pair]:
    """Answers in different words and lengths; those with "yes" in them are preferred."""
    good, bad = ("yes", "yes yes", "a yes", "yes!"), ("no", "no no no", "a no?", "b")
    return [
        Pair((user(f"{index}?"),), (says(good[index % 4]),), (says(bad[index // 2 % 4]),), source=f"d:{index}")
        for index in range(count)
    ]


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
