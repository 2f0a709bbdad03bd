"""kNN-LM: the formula on a tiny model, and a lower perplexity with a real one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import dougong
from dougong.base import DougongError
from dougong.rag.knn import KnnLM


@pytest.fixture
def lm(data: Path):
    return dougong.load(next((data / "weights" / "stories260K").glob("*.bin")))


def test_it_is_the_formula(lm) -> None:
    stored, asked = [1, 300, 20, 41, 7, 300, 5], torch.tensor([[1, 20, 300]])
    knn = KnnLM(lm, share=0.3, k=4, temperature=50.0)
    own = lm.model(asked).logits.log_softmax(-1)
    assert torch.allclose(knn.log_probs(asked), own, atol=1e-5)  # nothing is stored yet
    knn.add([stored, [9]])
    assert len(knn) == 6
    with torch.no_grad():
        keys, queries = lm.model(torch.tensor([stored])).hidden[0, :-1], lm.model(asked).hidden[0]
    for place, query in enumerate(queries):
        far = ((keys - query) ** 2).sum(-1)
        nearest = far.argsort()[:4]
        weights = torch.exp(-far[nearest] / 50.0)
        looked_up = torch.zeros(lm.spec.vocab)
        for weight, which in zip(weights / weights.sum(), nearest, strict=True):
            looked_up[stored[int(which) + 1]] += weight
        expected = 0.3 * looked_up + 0.7 * own[0, place].exp()
        assert torch.allclose(knn.log_probs(asked)[0, place].exp(), expected, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_probabilities_sum_to_one(lm, share: float) -> None:
    knn = KnnLM(lm, share=share)
    knn.add([[1, 300, 20, 41, 7, 300, 5]])
    assert torch.allclose(knn.log_probs(torch.tensor([[1, 20], [4, 8]])).exp().sum(-1), torch.ones(2, 2), atol=1e-4)


def test_what_was_stored_is_repeated(lm) -> None:
    text = [1, 403, 20, 41, 7, 300, 5, 77, 9]
    knn = KnnLM(lm, share=1.0, k=1)
    knn.add([text])
    assert knn.generate(text[:3], 6) == text[3:]


def test_a_look_at_the_play_lowers_the_perplexity_of_its_rest(lm, data: Path) -> None:
    """A model of children's stories meets Shakespeare: what it reads of the play tells it about the rest."""
    text = next((data / "text" / "tinyshakespeare").glob("*.txt")).read_text(encoding="utf-8")
    ids = lm.tokenizer.encode(text[:40_000])
    rows = [ids[first : first + 256] for first in range(0, len(ids) - 256, 256)]
    stored, rest = rows[:-8], rows[-8:]
    knn = KnnLM(lm, share=0.25, k=32)
    before, count = knn.loss(rest)
    knn.add(stored)
    after, _ = knn.loss(rest)
    assert count == 8 * 255
    assert math.exp(after / count) < 0.8 * math.exp(before / count)


def test_settings_that_cannot_be(lm) -> None:
    with pytest.raises(DougongError, match=r"share is 1\.5"):
        KnnLM(lm, share=1.5)
