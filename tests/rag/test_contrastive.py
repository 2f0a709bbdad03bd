"""InfoNCE by its formula; training that raises recall; what is saved opens again with the same vectors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.model import Model
from dougong.rag.contrastive import Pair, Training, info_nce, matryoshka, save_embedder, train_embedder
from dougong.rag.embedder import ModelEmbedder, open_embedder

from .conftest import WORDS


def drawn(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_info_nce_is_its_formula() -> None:
    queries, passages = drawn(3, 0), drawn(5, 1)
    loss = info_nce(queries, passages, 0.1)
    expected = 0.0
    for place in range(3):
        scores = [math.exp(float(queries[place] @ each) / 0.1) for each in passages]
        expected -= math.log(scores[place] / sum(scores))
    assert float(loss.sum) == pytest.approx(expected, rel=1e-4) and float(loss.weight) == 3
    same = torch.zeros(3, 5, dtype=torch.bool)
    same[0, 0] = same[0, 4] = True  # passage 4 is passage 0 again: it does not count against query 0
    scores = [math.exp(float(queries[0] @ each) / 0.1) for each in passages[:4]]
    first = info_nce(queries, passages, 0.1, same).sum - loss.sum
    before = -math.log(scores[0] / (sum(scores) + math.exp(float(queries[0] @ passages[4]) / 0.1)))
    assert float(first) == pytest.approx(-math.log(scores[0] / sum(scores)) - before, abs=1e-4)


def test_matryoshka_is_the_mean_over_prefixes() -> None:
    queries, passages = drawn(3, 0), drawn(3, 1)
    whole = matryoshka(queries, passages, (8,)).sum
    assert float(whole) == pytest.approx(float(info_nce(queries, passages).sum), rel=1e-4)
    part = info_nce(F.normalize(queries[:, :4], dim=-1), F.normalize(passages[:, :4], dim=-1)).sum
    assert float(matryoshka(queries, passages, (8, 4)).sum) == pytest.approx(float((whole + part) / 2), rel=1e-4)


def translated(count: int, seed: int) -> list[Pair]:
    """Word number n of a query means word n + 20 of its passage: only training can tell."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        numbers = generator.choice(20, 4, replace=False)
        query, passage = (" ".join(WORDS[each + shift] for each in numbers) for shift in (0, 20))
        pairs.append(Pair(query, passage, (" ".join(WORDS[each + 20] for each in generator.choice(20, 4)),)))
    return pairs


def recall(lm: LanguageModel, pairs: list[Pair], width: int | None = None) -> float:
    embedder = ModelEmbedder(lm, "tiny", width=width)
    queries, passages = embedder.embed([p.query for p in pairs]), embedder.embed([p.passage for p in pairs])
    return float(np.mean((queries @ passages.T).argmax(1) == np.arange(len(pairs))))


def test_training_raises_recall_on_pairs_it_has_not_seen(lm: LanguageModel, tmp_path: Path) -> None:
    held_out = translated(60, 1)
    before = recall(lm, held_out)
    train_embedder(lm, translated(400, 0), Training(steps=80, batch=32, rate=5e-3, dims=(32, 8)))
    assert before < 0.2 and recall(lm, held_out) > 0.8
    assert recall(lm, held_out, width=8) > 0.6
    save_embedder(lm, tmp_path / "saved")
    again = open_embedder(str(tmp_path / "saved"))
    texts = [each.query for each in held_out]
    assert np.allclose(again.embed(texts), ModelEmbedder(lm, "tiny").embed(texts), atol=1e-5)


def test_what_cannot_be_trained(lm: LanguageModel) -> None:
    for pairs, settings in ((1, Training()), (4, Training(batch=1)), (4, Training(steps=0))):
        with pytest.raises(DougongError, match="expected at least 2 pairs"):
            train_embedder(lm, translated(pairs, 0), settings)
    with pytest.raises(DougongError, match="expected each from 1 to 32"):
        train_embedder(lm, translated(4, 0), Training(dims=(99,)))


def test_rows_of_pairs(tmp_path: Path) -> None:
    from dougong.cli.embed import read_pairs

    path = tmp_path / "pairs.jsonl"
    path.write_text(
        json.dumps({"query": "a", "passage": "b", "negatives": ["c"]}) + '\n{"query": "a", "passage": "b"}\n'
    )
    assert read_pairs(path) == [Pair("a", "b", ("c",)), Pair("a", "b")]
    path.write_text('{"query": "a"}\n')
    with pytest.raises(DougongError, match=r"pairs\.jsonl:1 is"):
        read_pairs(path)


def test_an_encoder_in_8_bits_says_so_and_does_not_learn(lm: LanguageModel, tmp_path: Path) -> None:
    save_embedder(lm, tmp_path / "saved")
    plain, small = open_embedder(str(tmp_path / "saved")), open_embedder(f"{tmp_path / 'saved'}@int8")
    assert (plain.name, small.name) == ("saved:32", "saved@int8:32")
    texts = [each.query for each in translated(20, 3)]
    assert (plain.embed(texts) * small.embed(texts)).sum(1).min() > 0.99
    with pytest.raises(DougongError, match="quantised, so it cannot learn"):
        train_embedder(small.lm, translated(4, 0), Training(steps=1, batch=2))
    (tmp_path / "me@home").mkdir()
    save_embedder(lm, tmp_path / "me@home" / "x")
    assert open_embedder(str(tmp_path / "me@home" / "x")).name == "x:32"
    with pytest.raises(DougongError, match="@int7"):
        open_embedder(f"{tmp_path}/absent@int7")


def test_a_training_that_was_ended_goes_on_to_the_same_weights(lm: LanguageModel, tmp_path: Path) -> None:
    import copy
    from dataclasses import replace

    layers = tuple(replace(each, dropout=0.1) for each in lm.spec.layers)  # random numbers too must go on
    made = Model(replace(lm.spec, layers=layers))
    made.load_state_dict(lm.model.state_dict())
    first = replace(lm, model=made)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    pairs, settings = translated(40, 0), Training(steps=7, batch=8, rate=5e-3, keep_every=3)
    train_embedder(first, pairs, settings)

    def ended(done: int, loss: float, right: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    kept = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train_embedder(second, pairs, settings, ended, kept)
    seen: list[int] = []
    train_embedder(third, pairs, settings, lambda done, loss, right: seen.append(done), kept)
    assert seen == [4, 5, 6, 7]
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, third.model.state_dict()[name]), name
    with pytest.raises(DougongError, match="other pairs or settings"):
        train_embedder(third, pairs, replace(settings, rate=1e-3), None, kept)
    kept.write_bytes(b"no")
    with pytest.raises(DougongError, match="no training to go on with"):
        train_embedder(third, pairs, settings, None, kept)
