"""Masking, and the losses of task heads against torch's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dougong.base import DougongError
from dougong.model import LayerSpec, Model, ModelSpec, initialise
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head, Transform
from dougong.parts.feedforward import MLP
from dougong.parts.heads import Classifier
from dougong.parts.norm import Norm
from dougong.parts.position import Learned
from dougong.train.masking import Masking, mask_tokens
from dougong.train.objectives import classification, masked_lm, regression, span

NORM = Norm("layer", 1e-5, bias=True)
MASK, VOCAB = 0, 12


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder(task=None) -> Model:
    layer = LayerSpec(Attention(2, 2, 8, True, True), MLP(32, bias=True), NORM)
    embedding = Embedding(Learned(32), types=2, norm=NORM)
    head = None if task else Head(tied=True, bias=True, transform=Transform("gelu", NORM))
    return initialise(Model(ModelSpec(VOCAB, 16, 32, (layer,) * 2, embedding, NORM, head, causal=False, task=task)))


def test_shares_of_masking_and_targets():
    tokens = torch.randint(2, VOCAB, (200, 50), generator=seeded())
    kept = torch.zeros_like(tokens, dtype=torch.bool)
    kept[:, 0] = True
    seen, targets = mask_tokens(tokens, MASK, VOCAB, seeded(1), kept=kept)
    hidden = targets != -100
    assert not hidden[:, 0].any()
    assert torch.equal(targets[hidden], tokens[hidden])
    assert torch.equal(seen[~hidden], tokens[~hidden])
    assert abs(float(hidden[:, 1:].float().mean()) - 0.15) < 0.01
    assert abs(float((seen[hidden] == MASK).float().mean()) - 0.8) < 0.04
    assert abs(float((seen[hidden] == tokens[hidden]).float().mean()) - 0.11) < 0.03  # some random ones are the same
    again = mask_tokens(tokens, MASK, VOCAB, seeded(1), kept=kept)
    assert torch.equal(again[0], seen)  # a seed repeats; the next batch differs (dynamic masking)
    assert not torch.equal(mask_tokens(tokens, MASK, VOCAB, seeded(2))[1], targets)


def test_whole_words_are_hidden_together():
    tokens = torch.randint(2, VOCAB, (50, 30), generator=seeded())
    words = torch.arange(30).expand(50, 30) // 3
    _, targets = mask_tokens(tokens, MASK, VOCAB, seeded(1), Masking(share=0.3), words=words)
    hidden = (targets != -100).view(50, 10, 3)
    assert torch.equal(hidden.all(-1), hidden.any(-1))
    assert 0.2 < float(hidden.float().mean()) < 0.4


def test_wrong_shares_are_refused():
    with pytest.raises(DougongError, match=r"masking\.share is 1\.5"):
        Masking(share=1.5)
    with pytest.raises(DougongError, match="together"):
        Masking(masked=0.8, random=0.3)


def test_masked_lm_equals_cross_entropy_of_the_logits_and_is_learned():
    torch.manual_seed(0)
    model, generator = encoder(), seeded()
    tokens = (torch.arange(8)[:, None] + 2).repeat(1, 16)  # neighbours tell what is hidden
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        seen, targets = mask_tokens(tokens, MASK, VOCAB, generator, Masking(0.2, 1.0, 0.0))
        out = model(seen)
        loss = masked_lm(model.features(out.hidden), model.head, targets)
        mean = loss.sum / loss.weight
        expected = F.cross_entropy(out.logits.flatten(0, 1), targets.flatten())
        assert torch.allclose(mean, expected, rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        losses.append(float(mean.detach()))
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_classification_of_texts_and_tokens():
    logits = torch.randn(4, 5, 3, generator=seeded(), requires_grad=True)
    targets = torch.randint(0, 3, (4, 5), generator=seeded(1))
    targets[0, 2:] = -100
    loss = classification(logits, targets)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert torch.allclose(loss.sum, expected)
    assert int(loss.weight) == 17
    kept = targets != -100
    assert int(loss.metrics["accuracy"]) == int((logits.argmax(-1) == targets)[kept].sum())
    one = classification(logits[:, 0], targets[:, 0])
    assert torch.allclose(one.sum / one.weight, F.cross_entropy(logits[:, 0], targets[:, 0]))


def test_spans_are_told_among_real_tokens():
    logits = torch.randn(3, 6, 2, generator=seeded())
    real = torch.ones(3, 6, dtype=torch.bool)
    real[0, 4:] = False
    targets = torch.tensor([[1, 3], [0, 5], [-100, -100]])
    loss = span(logits, targets, real)
    first = sum(F.cross_entropy(logits[:1, :4, side], targets[:1, side]) for side in (0, 1)) / 2
    second = sum(F.cross_entropy(logits[1:2, :, side], targets[1:2, side]) for side in (0, 1)) / 2
    assert torch.allclose(loss.sum, first + second)
    assert int(loss.weight) == 2


def test_regression_leaves_out_what_is_not_known():
    loss = regression(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, float("nan"), 2.0]))
    assert (float(loss.sum), float(loss.weight)) == (5.0, 2.0)


def test_a_classifier_learns_which_token_a_text_holds():
    torch.manual_seed(0)
    model = encoder(Classifier(("without", "with"), at="mean"))
    assert replace(model.spec, task=None).parameters() == model.spec.parameters() - 2 * 17
    tokens = torch.randint(3, VOCAB, (64, 8), generator=seeded())
    targets = torch.arange(64) % 2
    tokens[targets == 1, 3] = 2
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        loss = classification(model(tokens).logits, targets)
        optimizer.zero_grad()
        (loss.sum / loss.weight).backward()
        optimizer.step()
    assert float(loss.metrics["accuracy"] / loss.weight) > 0.95
