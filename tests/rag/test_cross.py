"""A cross-encoder is taught which passage answers, in steps that can be gone on with, and found by its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.compress import quantize
from dougong.hub import LanguageModel, save
from dougong.model import Model, decoder_spec, initialise
from dougong.rag.contrastive import Pair, Training
from dougong.rag.cross import cross_encoder, localised_contrast, train_reranker
from dougong.rag.rerank import CrossEncoder, open_reranker

from .conftest import WORDS

ASKED = [
    Pair(f"w0 {word}", f"w1 {word}", (f"w2 {word}", f"w3 {other}"))
    for word, other in zip(WORDS[10:18], WORDS[18:10:-1], strict=True)
]
SETTINGS = Training(steps=60, batch=4, rate=3e-3, limit=16, keep_every=10)


@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_loss_is_the_formulas(rows: list[list[float]]) -> None:
    widest = max(map(len, rows))
    scores = torch.tensor([row + [-float("inf")] * (widest - len(row)) for row in rows], dtype=torch.float64)
    wanted = sum(float(torch.tensor(row, dtype=torch.float64).logsumexp(0)) - row[0] for row in rows)
    loss = localised_contrast(scores)
    assert float(loss.sum) == pytest.approx(wanted, abs=1e-9) and float(loss.weight) == len(rows)


def first(held: LanguageModel) -> int:
    """Of how many questions the own passage scores highest."""
    reader = CrossEncoder(held)
    scored = [reader.scores(each.query, [each.passage, *each.negatives]) for each in ASKED]
    return sum(scores[0] == max(scores) for scores in scored)


def test_it_learns_and_opens_again(lm: LanguageModel, tmp_path: Path) -> None:
    made = cross_encoder(lm)
    for name, weight in lm.model.weights().items():  # the body and its pooler are copies
        assert torch.equal(made.model.weights()[name], weight)
    told: list[tuple[int, float, float]] = []
    train_reranker(made, ASKED, SETTINGS, lambda *step: told.append(step))
    assert [each[0] for each in told] == list(range(1, SETTINGS.steps + 1))
    # Passages that answer have a word of their own; which of them is a query's own only chance tells at first: ln 2.
    last = sum(loss for _, loss, _ in told[-8:]) / 8
    assert last < 1.2 < told[0][1], (last, told[0])
    assert first(made) == len(ASKED) and not made.model.training
    save(made, tmp_path / "reranker")
    texts = [ASKED[0].passage, *ASKED[0].negatives]
    again = open_reranker(str(tmp_path / "reranker")).scores(ASKED[0].query, texts)
    assert again == pytest.approx(CrossEncoder(made).scores(ASKED[0].query, texts), abs=1e-5)


def test_it_can_be_gone_on_with_to_the_same_bits(lm: LanguageModel, tmp_path: Path) -> None:
    whole, parts = cross_encoder(lm), cross_encoder(lm)
    train_reranker(whole, ASKED, SETTINGS)

    def ended(done: int, *_: float) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_reranker(parts, ASKED, SETTINGS, ended, tmp_path / "state")
    parts = cross_encoder(lm)
    train_reranker(parts, ASKED, SETTINGS, None, tmp_path / "state")
    for name, weight in whole.model.weights().items():
        assert torch.equal(parts.model.weights()[name], weight), name


def test_what_cannot_be_a_reranker_is_told(lm: LanguageModel) -> None:
    with pytest.raises(DougongError, match="reads both ways"):
        cross_encoder(
            LanguageModel(initialise(Model(decoder_spec(40, width=32, depth=1, heads=2, context=16))), lm.tokenizer)
        )
    with pytest.raises(DougongError, match="has one label"):
        train_reranker(lm, ASKED, SETTINGS)
    made = cross_encoder(lm)
    with pytest.raises(DougongError, match="1 pairs, batch 4"):
        train_reranker(made, ASKED[:1], SETTINGS)
    quantize(made, "int8")
    with pytest.raises(DougongError, match="quantised"):
        train_reranker(made, ASKED, SETTINGS)
