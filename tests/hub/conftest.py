"""Small models of our own to save, damage and load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dougong
from dougong.hub import LanguageModel
from dougong.hub.families import FAMILIES
from dougong.model import Model, ModelSpec, decoder_spec, initialise

GPT2 = {"vocab_size": 40, "n_positions": 32, "n_embd": 12, "n_head": 3, "n_layer": 2}


def filled(spec: ModelSpec, seed: int = 0) -> Model:
    """A model whose every weight, norms and biases too, is off its initial value."""
    model = initialise(Model(spec), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture
def llama() -> LanguageModel:
    """Vocabulary 40, width 16, 2 layers, head and embedding apart."""
    return LanguageModel(filled(decoder_spec(40, 16, 2, 4, 32, kv_heads=2, tied=False)), family="llama")


@pytest.fixture
def tied() -> LanguageModel:
    return LanguageModel(filled(decoder_spec(40, 16, 2, 4, 32, tied=True)), family="llama")


@pytest.fixture
def gpt2() -> LanguageModel:
    return LanguageModel(filled(FAMILIES["gpt2"].from_config(GPT2)), family="gpt2")


@pytest.fixture
def saved(tmp_path: Path, llama: LanguageModel) -> Path:
    dougong.save(llama, tmp_path / "saved")
    return tmp_path / "saved"
