"""What the runner stores changes nothing: logits are the model's, whatever the pages, chunks, forks and company."""

from __future__ import annotations

import pytest
import torch

from dougong.base import DougongError
from dougong.engine.pages import OutOfPages
from dougong.engine.runner import Runner
from dougong.engine.work import Work, by_cost, stacked
from dougong.model import decoder_spec
from tests.contract.models import SPECS
from tests.contract.models import build as build_small
from tests.hub.draws import DRAWN
from tests.hub.test_family_contract import build as build_family

from .kinds import MEMORY, all_free, close, expected, feed, moved, text

pytestmark = pytest.mark.usefixtures("unchecked")

MODEL = moved(decoder_spec(50, 32, 2, 4, 256, kv_heads=2))


def crowd(runner: Runner, model, texts: list[list[int]], chunk: int) -> list[torch.Tensor]:
    """Logits of several texts that are read at the same time, each at its own pace."""
    seqs = [runner.open(each, expect=len(each)) for each in texts]
    out: list[list[torch.Tensor]] = [[] for _ in texts]
    step = 0
    while any(seq.length < len(each) for seq, each in zip(seqs, texts, strict=True)):
        work, numbers = [], []
        for number, (seq, each) in enumerate(zip(seqs, texts, strict=True)):
            # Half of the text in chunks, the rest token by token; every third step one sits out.
            size = chunk if seq.length < len(each) // 2 else 1
            part = each[seq.length : seq.length + size]
            if part and (step + number) % 3:
                work.append(Work(seq, part, len(part)))
                numbers.append(number)
        step += 1
        for number, result in zip(numbers, runner.step(work) if work else [], strict=True):
            out[number].append(result.logits)
    for seq in seqs:
        runner.close(seq)
    return [torch.cat(each) for each in out]


def check(model, page_size: int, chunk: int, lengths: tuple[int, ...] = (21, 9, 14)) -> None:
    runner = Runner(model, MEMORY, page_size, prefixes=False)
    texts = [text(model, length, seed) for seed, length in enumerate(lengths)]
    for each, logits in zip(texts, crowd(runner, model, texts, chunk), strict=True):
        close(logits, expected(model, each))
    assert all_free(runner)
    alone = runner.open(texts[0])
    close(feed(runner, alone, texts[0], chunk), expected(model, texts[0]))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("page_size", "chunk"), [(1, 5), (16, 4), (4, 40)])
def test_small_models_in_a_crowd(name: str, page_size: int, chunk: int) -> None:
    check(build_small(name), page_size, chunk)


@pytest.mark.parametrize("family", DRAWN)
def test_families_in_a_crowd(family: str) -> None:
    pytest.importorskip("transformers", reason="the configurations are those of transformers")
    check(build_family(family), 4, 5)


def test_without_room_for_lanes_steps_gather() -> None:
    runner = Runner(MODEL, MEMORY, 4)
    runner.lanes._budget = 0
    texts = [text(MODEL, length, length) for length in (40, 33, 5)]
    for each, logits in zip(texts, crowd(runner, MODEL, texts, 7), strict=True):
        close(logits, expected(MODEL, each))
    assert not runner.lanes.buffers


@pytest.mark.parametrize(("kv", "tolerance", "least"), [("int8", 0.03, 1e-4), ("fp8", 0.15, 1e-3)])
def test_keys_and_values_as_bytes(kv, tolerance: float, least: float) -> None:
    tokens = text(MODEL, 60)
    exact = expected(MODEL, tokens)
    found = []
    for chunk, lanes in ((60, True), (7, True), (1, True), (1, False)):
        runner = Runner(MODEL, MEMORY, 4, kv)
        if not lanes:
            runner.lanes._budget = 0
        found.append(feed(runner, runner.open(tokens), tokens, chunk))
    for logits in found:
        difference = float((logits - exact).norm() / exact.norm())
        assert least < difference < tolerance
        close(logits, found[0])  # what is stored does not depend on how it came


def test_bytes_take_less_room() -> None:
    plain, small_bytes = (Runner(MODEL, MEMORY, 4, kv).layout.token_bytes() for kv in (None, "int8"))
    size = MODEL.spec.layers[0].mixer.head_size
    assert small_bytes * 4 * size == plain * (size + 2)


@pytest.mark.parametrize("name", ["llama", "mistral", "latent", "delta", "mamba"])
@pytest.mark.parametrize("kept", [8, 12, 23, 24])
def test_a_known_beginning_is_not_run_again(name: str, kept: int) -> None:
    model = build_small(name)
    runner = Runner(model, MEMORY, 4)
    first = text(model, 24, 1)
    seq = runner.open(first)
    assert seq.cached == 0
    feed(runner, seq, first, 4)
    second = first[:kept] + ([] if kept == 24 else text(model, 9, 2))
    other = runner.open(second)
    whole = len(second) == kept
    if runner.recurrent:  # its state goes back to the ends of chunks
        assert other.cached == (kept - 1 if whole else kept) // 4 * 4
    else:
        assert other.cached == (kept - 1 if whole else kept // 4 * 4)
    known = other.cached
    close(feed(runner, other, second, 3), expected(model, second)[known:])
    # The first goes on undisturbed, and so does a third after both are closed.
    more = [*first, *text(model, 5, 3)]
    close(feed(runner, seq, more, 1), expected(model, more)[24:])
    runner.close(seq)
    runner.close(other)
    assert all_free(runner)
    third = runner.open(second)
    assert third.cached >= known
    rest = third.cached
    close(feed(runner, third, second, 50), expected(model, second)[rest:])


def test_another_root_is_another_text() -> None:
    runner = Runner(MODEL, MEMORY, 4)
    tokens = text(MODEL, 20)
    feed(runner, runner.open(tokens), tokens, 20)
    assert runner.open(tokens).cached == 19
    assert runner.open(tokens, root=b"adapter").cached == 0
    runner.forget()
    assert runner.open(tokens).cached == 0


@pytest.mark.parametrize("name", ["llama", "mistral", "latent", "delta", "mamba"])
def test_forks_go_their_own_ways(name: str) -> None:
    model = build_small(name)
    runner = Runner(model, MEMORY, 4, prefixes=False)
    prompt = text(model, 10)
    first = runner.open(prompt)
    feed(runner, first, prompt, 10)
    before = [pages.free for pages in runner.pages]
    others = [runner.fork(first) for _ in range(3)]
    assert [pages.free for pages in runner.pages] == before  # nothing is copied until somebody writes
    seqs = [first, *others]
    endings = [text(model, 7, seed) for seed in range(4)]
    logits: list[list[torch.Tensor]] = [[] for _ in seqs]
    for place in range(7):
        work = [Work(seq, [ending[place]], 1) for seq, ending in zip(seqs, endings, strict=True)]
        for own, result in zip(logits, runner.step(work), strict=True):
            own.append(result.logits)
    for own, ending in zip(logits, endings, strict=True):
        close(torch.cat(own), expected(model, prompt + ending)[10:])
    for seq in seqs:
        runner.close(seq)
    assert all_free(runner)


@pytest.mark.parametrize("name", ["llama", "mistral", "latent", "delta", "mamba"])
def test_tokens_taken_back(name: str) -> None:
    model = build_small(name)
    runner = Runner(model, MEMORY, 4)
    prompt, wrong, right = text(model, 21, 1), text(model, 6, 2), text(model, 8, 3)
    seq = runner.open(prompt)
    feed(runner, seq, prompt, 30)
    mark = runner.mark(seq)
    feed(runner, seq, prompt + wrong, 3)
    if runner.recurrent:
        with pytest.raises(DougongError, match="mark and back"):
            runner.truncate(seq, 22)
        runner.back(seq, mark)
        base = prompt
    else:
        runner.truncate(seq, 22)
        base = prompt + wrong[:1]
    assert seq.tokens == base
    close(feed(runner, seq, base + right, 4), expected(model, base + right)[len(base) :])


def test_windows_give_their_pages_back() -> None:
    model = build_small("mistral")  # sees 5 tokens, of a context of 64
    model.spec.__dict__["context"] = 400
    runner = Runner(model, MEMORY, 4, prefixes=False)
    tokens = text(model, 300)
    seq = runner.open(tokens)
    close(feed(runner, seq, tokens, 20)[-50:], expected(model, tokens)[-50:])
    used = runner.pages[0].total - runner.pages[0].free
    assert used <= (5 + 64) // 4 + 2
    with pytest.raises(DougongError, match="gone already"):
        runner.truncate(seq, 100)
    runner.truncate(seq, 260)
    close(feed(runner, seq, tokens, 1), expected(model, tokens)[260:])


def test_pages_that_run_out_leave_everything_as_it_was() -> None:
    runner = Runner(MODEL, 60_000, 4, prefixes=False)
    total = runner.pages[0].total
    tokens = text(MODEL, 4 * total)
    seq, other = runner.open(tokens), runner.open(tokens)
    feed(runner, seq, tokens[: 4 * (total - 1)], 10)
    assert not runner.room_for(8) and runner.room_for(4)
    free = runner.pages[0].free
    with pytest.raises(OutOfPages):
        runner.step([Work(seq, tokens[:1], 1), Work(other, tokens[:8], 1)])
    assert seq.length == 4 * (total - 1) and other.length == 0
    runner.close(other)
    assert runner.pages[0].free <= free
    close(feed(runner, seq, tokens, 4), expected(MODEL, tokens)[4 * (total - 1) :])


@pytest.mark.parametrize("lanes", [True, False])
def test_broken_numbers_stay_where_they_are(lanes: bool) -> None:
    """A row whose numbers overflow shares passes with another: it is padded, and the other is read past its end."""
    model = moved(decoder_spec(50, 32, 2, 4, 64))
    model.embedding.weight.data[49] = torch.nan
    runner = Runner(model, MEMORY, 4)
    if not lanes:
        runner.lanes._budget = 0
    good, bad = [token % 49 for token in text(model, 14)], [49, 1, 2, *range(20)]
    first, second = runner.open(good), runner.open(bad)
    at = 0
    for mine, other in ((9, 3), (1, 8), (1, 1), (3, 1)):
        result, broken = runner.step(
            [Work(first, good[at : at + mine], mine), Work(second, bad[second.length : second.length + other], 1)]
        )
        at += mine
        close(result.logits[:, :49], expected(model, good[:at])[-mine:, :49])  # the head is tied
        assert not torch.isfinite(broken.logits).any()
    runner.scrub(second)
    runner.close(second)
    third = runner.open(good[:6])
    runner.close(first)
    close(feed(runner, third, good[:6], 2)[:, :49], expected(model, good[:6])[third.cached :, :49])


def test_lanes_learn_of_what_was_taken_back() -> None:
    runner = Runner(MODEL, MEMORY, 4)
    tokens, wrong = text(MODEL, 60), text(MODEL, 6, 5)
    seq = runner.open(tokens)
    feed(runner, seq, tokens[:21], 21)
    feed(runner, seq, tokens[:21] + wrong, 1)
    assert seq.synced == 27
    runner.truncate(seq, 21)
    feed(runner, seq, tokens[:50], 40)  # too much for a lane: only the pages know
    close(feed(runner, seq, tokens, 1), expected(MODEL, tokens)[50:])


def test_what_cannot_be_stored_is_told() -> None:
    with pytest.raises(DougongError, match="memory is 1000 bytes"):
        Runner(MODEL, 1000)
    with pytest.raises(DougongError, match="page_size is 0"):
        Runner(MODEL, MEMORY, 0)
    with pytest.raises(DougongError, match="kv is 'int3'"):
        Runner(MODEL, MEMORY, kv_dtype="int3")  # pyright: ignore[reportArgumentType]


def test_rows_share_a_pass_where_padding_is_cheap() -> None:
    assert by_cost([1, 1, 1, 100]) == [[0, 1, 2], [3]]
    assert by_cost([5, 1, 1]) == [[1, 2, 0]]
    assert by_cost([1] * 16 + [3]) == [list(range(16)), [16]]
    assert by_cost([100, 104]) == [[0, 1]]
    assert by_cost([]) == []


def test_logits_of_one_pass_are_not_copied() -> None:
    runner = Runner(MODEL, MEMORY, 4)
    texts = [text(MODEL, 6, seed) for seed in range(3)]
    seqs = [runner.open(each) for each in texts]
    work = [Work(seq, each, 1) for seq, each in zip(seqs, texts, strict=True)]
    results = runner.step([work[2], work[0], work[1]])
    logits, order = stacked(results)
    assert logits is results[0].rows
    for row, number in zip(logits, order, strict=True):
        assert torch.equal(row, results[number].logits[0])
    logits, order = stacked([results[0]] * 3)
    assert torch.equal(logits, results[0].logits.expand(3, -1)) and order == [0, 1, 2]
    logits, order = stacked(results[:2])
    assert torch.equal(logits[1], results[1].logits[0]) and order == [0, 1]
