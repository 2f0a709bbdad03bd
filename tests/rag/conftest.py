"""What the retrieval tests share: a small embedder that needs no weights."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import pytest
import tokenizers

from dougong.hub import LanguageModel
from dougong.hub.families import family_named
from dougong.model import Model
from dougong.model.init import initialise
from dougong.rag.embedder import Embedder, Role, unit
from dougong.rag.terms import terms
from dougong.tokenizer import Tokenizer
from tests.engine.conftest import unchecked as unchecked


class Hashed(Embedder):
    """Each term adds to one of 64 dimensions: alike are texts with common words."""

    name, width = "hashed:64", 64

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
        if role == "passage":
            self.seen += texts
        rows = np.full((len(texts), self.width), 1e-3, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for term in terms(text):
                row[zlib.crc32(term.encode()) % self.width] += 1
        return unit(rows)


@pytest.fixture(autouse=True)
def _packages() -> None:
    for package in ("faiss", "bm25s", "Stemmer"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'dougong[rag]'")


@pytest.fixture
def embedder() -> Hashed:
    return Hashed()


WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture
def lm() -> LanguageModel:
    """A small BERT that knows WORDS."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    model = initialise(Model(family_named("bert", "here").from_config(config)))
    return LanguageModel(model, Tokenizer(core), "bert", config)
