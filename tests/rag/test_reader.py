"""The reader: what each token sees, no look ahead, passages that are read; and the store that they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dougong.base import DougongError
from dougong.data.batch import Batch
from dougong.model import Model, initialise
from dougong.parts.linear import Linear
from dougong.rag.neighbours import Asker, Neighbours, shared_run
from dougong.rag.reader import NONE, log_probs, read, reader_spec, reading, reads

VOCAB, CHUNK, CHUNKS, FOUND, EACH = 40, 4, 3, 2, 6


def shaken(seed: int = 0) -> Model:
    """A reader in which nothing is zero: as it is made, what is read changes nothing yet."""
    model = initialise(Model(reader_spec(VOCAB, 32, 2, context=32, reading=(0, 1), heads=2)), seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Linear):
            weight = module.weight
            weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def drawn(seed: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (rows, CHUNK * CHUNKS + 2), generator=generator)
    passages = torch.randint(0, VOCAB, (rows, CHUNKS, FOUND, EACH), generator=generator)
    passages[..., -1] = NONE
    return tokens, passages


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_a_token_reads_what_the_last_whole_chunk_asked_for(tokens: int, chunk: int, each: int) -> None:
    seen = reads(tokens, tokens // chunk, chunk, each)
    assert seen.shape == (tokens, 1 + tokens // chunk * each)
    for place in range(tokens):
        whole = (place + 1) // chunk  # chunks known whole when the token at `place` has been read
        wanted = [0] if whole == 0 else [0, *range(1 + (whole - 1) * each, 1 + whole * each)]
        assert seen[place].nonzero().flatten().tolist() == wanted


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_passages_of_a_chunk_reach_the_predictions_after_it_and_no_other(chunk: int) -> None:
    model, (tokens, passages) = shaken(), drawn(1)
    before = read(model, tokens, passages, CHUNK).output.logits
    changed = passages.clone()
    changed[0, chunk] = (changed[0, chunk] + 7) % VOCAB
    after = read(model, tokens, changed, CHUNK).output.logits
    moved = (after - before).abs().amax(-1) > 1e-5
    first = (chunk + 1) * CHUNK - 1  # the chunk's last token, which predicts the next chunk's first
    assert not moved[0, :first].any() and moved[0, first]
    assert not moved[1].any()


def test_a_later_token_changes_no_earlier_prediction() -> None:
    model, (tokens, passages) = shaken(), drawn(2)
    before = read(model, tokens, passages, CHUNK).output.logits
    tokens = tokens.clone()
    tokens[:, 7] = (tokens[:, 7] + 1) % VOCAB
    after = read(model, tokens, passages, CHUNK).output.logits
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-5)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


def test_a_prefix_gives_what_the_whole_row_gives() -> None:
    model, (tokens, passages) = shaken(), drawn(3)
    whole = read(model, tokens, passages, CHUNK).output.logits
    for length in (1, CHUNK, CHUNK + 3, 3 * CHUNK):
        part = read(model, tokens[:, :length], passages[:, : length // CHUNK], CHUNK).output.logits
        assert torch.allclose(part, whole[:, :length], atol=1e-4)


def test_neither_padding_nor_the_order_of_passages_matters() -> None:
    model, (tokens, passages) = shaken(), drawn(4)
    plain = read(model, tokens, passages, CHUNK).output.logits
    assert torch.allclose(read(model, tokens, passages.flip(2), CHUNK).output.logits, plain, atol=1e-4)
    longer = F.pad(passages, (0, 3), value=NONE)
    assert torch.allclose(read(model, tokens, longer, CHUNK).output.logits, plain, atol=1e-4)
    more = torch.cat((passages, torch.full_like(passages[:, :, :1], NONE)), 2)
    assert torch.allclose(read(model, tokens, more, CHUNK).output.logits, plain, atol=1e-4)
    assert not torch.allclose(read(model, tokens, passages.flip(3), CHUNK).output.logits, plain, atol=1e-2)
    none = read(model, tokens, torch.full_like(passages, NONE), CHUNK).output.logits
    assert torch.isfinite(none).all() and not torch.allclose(none, plain, atol=1e-2)


def test_one_softmax_over_the_vocabulary_and_over_what_is_read() -> None:
    model, (tokens, passages) = shaken(), drawn(6)
    with torch.no_grad():
        run, told = read(model, tokens, passages, CHUNK), log_probs(model, tokens, passages, CHUNK)
    assert torch.allclose(told.exp().sum(-1), torch.ones(told.shape[:2]), atol=1e-4)
    flat = passages.flatten(2)
    for row in range(len(tokens)):
        for place in range(tokens.shape[1]):
            weights = run.output.logits[row, place].exp()
            asked = (place + 1) // CHUNK - 1
            for at in range(FOUND * EACH if asked >= 0 else 0):
                token, ends = int(flat[row, asked, at]), at % EACH == EACH - 1
                follows = NONE if ends else int(flat[row, asked, at + 1])
                if NONE not in (token, follows):
                    state = run.states[row, asked * FOUND * EACH + at]
                    weights[follows] += (run.output.hidden[row, place] @ state / 32**0.5).exp()
            assert torch.allclose(told[row, place].exp(), weights / weights.sum(), atol=1e-4)


@given(st.integers(0, 10_000), st.integers(1, CHUNK * CHUNKS + 2), st.floats(0, 1))
def test_it_is_a_distribution_whatever_passages_are_missing(seed: int, length: int, gone: float) -> None:
    model, (tokens, passages) = shaken(), drawn(seed)
    lost = torch.rand(passages.shape, generator=torch.Generator().manual_seed(seed)) < gone
    some = passages.masked_fill(lost, NONE)[:, : length // CHUNK]
    with torch.no_grad():
        told = log_probs(model, tokens[:, :length], some, CHUNK)
        assert torch.allclose(told.exp().sum(-1), torch.ones(told.shape[:2]), atol=1e-4)
        none = log_probs(model, tokens[:, :length], torch.full_like(some, NONE), CHUNK)
        plain = read(model, tokens[:, :length], torch.full_like(some, NONE), CHUNK).output.logits.log_softmax(-1)
    assert torch.allclose(none, plain, atol=1e-4)  # with nothing to copy, the vocabulary's own


def test_the_objective_is_the_loss_of_what_follows() -> None:
    model, (tokens, passages) = shaken(), drawn(7)
    targets = tokens[:, 1:].clone()
    targets[0, :3] = -100
    positions = torch.arange(targets.shape[1]).expand(len(targets), -1)
    batch = Batch(tokens[:, :-1].contiguous(), targets, positions, None, None, {"passages": passages})
    loss = reading(CHUNK)(model, batch)
    told = log_probs(model, tokens[:, :-1], passages, CHUNK)
    wanted = F.nll_loss(told.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    assert int(loss.weight) == targets.numel() - 3
    assert torch.allclose(loss.sum, wanted, rtol=1e-4)


def test_cost_and_shape_are_those_of_the_spec() -> None:
    model, (tokens, passages) = shaken(), drawn(5)
    assert sum(each.numel() for each in model.parameters()) == model.spec.parameters()
    with pytest.raises(DougongError, match="expected \\(2, 3, passages, tokens\\)"):
        read(model, tokens, passages[:, :2], CHUNK)
    with pytest.raises(DougongError, match="no encoder"):
        read(initialise(Model(reader_spec(VOCAB, 32, 2, heads=2, encoder=0))), tokens, passages, CHUNK)
    for wrong in (VOCAB, NONE - 1):
        passages[0, 0, 0, 0] = wrong
        with pytest.raises(DougongError, match=f"{wrong}.*expected -1 \\(none\\) to {VOCAB - 1}"):
            read(model, tokens, passages, CHUNK)
    with pytest.raises(DougongError, match=r"layers \[2\], but there are layers 0 to 1"):
        reader_spec(VOCAB, 32, 2, reading=(0, 2))
    with pytest.raises(DougongError, match="width is 32 for 5 heads"):
        reader_spec(VOCAB, 32, 2, reading=(0,), heads=5)


def secrets(seed: int, rows: int = 16) -> tuple[Batch, Tensor]:
    """A text whose second chunk repeats a word that stands in the first chunk's passage alone, after the token that the
    first chunk ends with; chance is 1 in 15."""
    generator = torch.Generator().manual_seed(seed)
    word = torch.randint(1, 16, (rows, 1), generator=generator)
    tokens = torch.cat((torch.full((rows, CHUNK), 20), word.expand(-1, CHUNK), word), 1)
    passages = torch.randint(21, VOCAB, (rows, 2, 1, EACH), generator=generator)
    passages[:, 0, 0, 1], passages[:, 0, 0, 2:3] = 20, word
    targets = torch.full_like(tokens[:, 1:], -100)
    targets[:, CHUNK - 1] = word[:, 0]
    positions = torch.arange(2 * CHUNK).expand(rows, -1)
    return Batch(tokens[:, :-1].contiguous(), targets, positions, None, None, {"passages": passages}), word


def test_a_tiny_one_learns_to_read_what_stands_in_the_passage_alone() -> None:
    model = initialise(Model(reader_spec(VOCAB, 32, 1, context=32, reading=(0,), heads=2)), 0).train()
    optimizer, objective = torch.optim.AdamW(model.parameters(), 1e-2), reading(CHUNK)
    for step in range(80):
        loss = objective(model, secrets(step)[0])
        optimizer.zero_grad()
        (loss.sum / loss.weight).backward()
        optimizer.step()
    model.eval()
    batch, _ = secrets(1000)
    other = batch.further["passages"].roll(1, 0)
    with torch.no_grad():
        told = objective(model, batch)
        fooled = objective(model, Batch(batch.tokens, batch.targets, batch.positions, None, None, {"passages": other}))
    assert float(told.sum / told.weight) < 0.5 < np.log(15) < float(fooled.sum / fooled.weight)


DOCUMENTS = (
    "the stone bridge was built of granite in the valley",
    "the stone bridge was built of timber in the valley",
    "a mill turns where the river is fast and the wheel is wide",
)


def store(groups: list[int], closed: tuple[int, ...] = ()) -> Neighbours:
    words = {word: number for number, word in enumerate(dict.fromkeys(" ".join(DOCUMENTS).split()))}
    names = list(words)
    ids = [[words[word] for word in text.split()] for text in DOCUMENTS]
    return Neighbours(ids, groups, lambda row: " ".join(names[each] for each in row), 5, closed)


def test_a_chunk_is_found_with_what_followed_it_and_never_by_its_own_text() -> None:
    held = store([0, 1, 2])
    assert len(held) == 7 and held.first == [0, 2, 4, 7]
    asked = held.passages(np.array([0]))[:, :5]
    (own,) = held.find(asked, 1, [Asker(0)])  # as document 0: its own chunk is left out, its twin's is found
    assert own.tolist() == [2]
    assert held.passages(own)[0].tolist()[:5] == asked[0].tolist()
    (any_group,) = held.find(asked, 1, [Asker(NONE)])
    assert any_group.tolist() == [0]
    (found,) = store([0, 0, 2]).find(asked, 2, [Asker(0)])  # the twin is a near copy: one group
    assert 0 not in found and 2 not in found and 3 not in found
    assert (held.passages(np.array([[NONE]])) == NONE).all()
    with pytest.raises(DougongError, match="2 groups of 3 documents"):
        store([0, 1])
    with pytest.raises(DougongError, match="none of 1 documents has a token"):
        Neighbours([[]], [0], lambda row: "", 5)
    with pytest.raises(DougongError, match="1 askers for 2 chunks"):
        held.find(np.concatenate((asked, asked)), 1, [Asker(0)])
    for wrong in (7, -2):
        with pytest.raises(DougongError, match=f"numbers are {wrong} to {wrong}; expected -1"):
            held.passages(np.array([wrong]))


@given(st.integers(1, 8), st.integers(0, 3), st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_nobody_is_given_what_is_closed_to_them(k: int, asking: int, groups: list[int]) -> None:
    held = store(groups, closed=(2,))
    asked = held.passages(np.arange(len(held)))[:, :5]
    past = (held.first[2], held.first[2] + 1)
    found = held.find(asked, k, [Asker(asking, past)] * len(asked))
    owners = [place for place in range(3) for _ in range(held.first[place], held.first[place + 1])]
    for row in found:
        real = row[row != NONE].tolist()
        assert len(set(real)) == len(real) and (row[len(real) :] == NONE).all()
        for number in real:
            own = past[0] <= number < past[1]
            assert own or (owners[number] != 2 and groups[owners[number]] != asking)


def test_of_a_closed_document_only_its_own_past_is_read() -> None:
    held = store([0, 1, 2], closed=(0,))
    asked = held.passages(np.array([0]))[:, :5]
    assert held.find(asked, 3, [Asker(2)])[0].tolist()[0] == 2  # document 0 is nobody else's
    assert 0 not in held.find(asked, 7, [Asker(2)])[0]
    assert held.find(asked, 1, [Asker(0, (0, 1))])[0].tolist() == [0]
    assert 1 not in held.find(asked, 7, [Asker(0, (0, 1))])[0]  # not its past


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_the_longest_shared_run(one: list[int], other: list[int]) -> None:
    runs = {tuple(one[a:b]) for a in range(len(one)) for b in range(a + 1, len(one) + 1)}
    theirs = {tuple(other[a:b]) for a in range(len(other)) for b in range(a + 1, len(other) + 1)}
    assert shared_run(one, other) == max(map(len, runs & theirs), default=0)
    assert shared_run([NONE, NONE], [NONE, NONE]) == 0
