"""Does a model that reads what was found predict better, and better than one that remembers more?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.base import record_to
from dougong.data.batch import Batch
from dougong.data.documents import near_duplicate_groups, split_documents
from dougong.data.loader import LoaderState
from dougong.data.stdlib import standard_library
from dougong.engine import Engine
from dougong.hub import LanguageModel
from dougong.lab import facts
from dougong.lab.experiment import Budget, Results, Study, place
from dougong.lab.facts import Facts, world
from dougong.lab.statistics import Mean, difference, separates
from dougong.model import Model, ModelSpec, initialise
from dougong.rag.datastore import Datastore
from dougong.rag.knn import KnnLM
from dougong.rag.neighbours import Asker, Neighbours, shared_run
from dougong.rag.reader import NONE, log_probs, reader_spec, reading
from dougong.report import Group, Interval, bar_chart, table
from dougong.tokenizer import Tokenizer, train_tokenizer
from dougong.train.loop import Training, next_token, train
from dougong.train.optimizers import Optimizer
from dougong.train.ranks import Ranks
from dougong.train.schedule import Schedule

VOCAB, WIDTH, CHUNK, CHUNKS, FOUND = 1024, 64, 32, 4, 2
LENGTH = CHUNK * CHUNKS
POOL, TESTED, STORED = 4000, 192, 600  # rows to learn from, rows of the test, rows whose states a kNN-LM keeps
DROPPED = 0.125  # share of the chunks that learn to do without passages
SHARE, NEIGHBOURS = 0.15, 16  # of the kNN-LM
NEAR = CHUNK // 8  # a passage that shares a longer run of tokens with what is predicted may give it away

LIBRARY, FACTS = "library", "facts"
READER, DECODER, LONGER = "reader", "decoder", "decoder, equal operations"
FACT_READER, FACT_DECODER = "facts, reader", "facts, decoder"
WORLD, ASKED_OF = 2000, 200  # rows of the made-up world to learn from, and of the one that is tested
GIVEN = ("found", "found elsewhere", "random", "none")
ROWS = [(one, other) for one in GIVEN[:2] for other in GIVEN[2:]]
"""What is compared row by row within a seed."""


def spec_of(name: str) -> ModelSpec:
    """The reader: three layers, two of which read, and an encoder of one. The decoder: five, as many parameters. Of
    made-up facts two layers, both of which read, against four."""
    if name == FACT_READER:
        return reader_spec(facts.VOCAB, WIDTH, 2, context=facts.LENGTH, reading=(0, 1), encoder=1)
    if name == FACT_DECODER:
        return reader_spec(facts.VOCAB, WIDTH, 4, context=facts.LENGTH, encoder=0)
    if name == READER:
        return reader_spec(VOCAB, WIDTH, 3, context=LENGTH + 1, reading=(1, 2), encoder=1)
    return reader_spec(VOCAB, WIDTH, 5, context=LENGTH + 1, encoder=0)


def operations(name: str) -> float:
    """Forward operations of a row; of the reader with all its passages, each read by itself."""
    spec, passages = spec_of(name), CHUNKS * FOUND
    if spec.encoder is None:
        return spec.flops(LENGTH)
    source = 1 + passages * 2 * CHUNK
    apart = passages * spec.encoder.flops(2 * CHUNK) + spec.encoder.flops(1)
    return spec.flops(LENGTH, source=source) - spec.encoder.flops(source) + apart


@dataclass(frozen=True)
class Rows:
    """tokens (N, LENGTH + 1); passages (N, CHUNKS, FOUND, 2 CHUNK), found for each whole chunk in the texts to learn
    from, and in the row's own document before the row; elsewhere: in other documents alone. Near copies of the document
    are never among them, nor what stands in it after the row's beginning."""

    tokens: Tensor
    passages: Tensor
    elsewhere: Tensor


@lru_cache(maxsize=1)
def corpus() -> tuple[Tokenizer, Rows, Rows]:
    """The tokenizer, rows to learn from, held-out rows: of Python's standard library, split by document, near copies on
    one side. Held-out documents are in the store for their own later rows, and for no other."""
    sides = split_documents(list(standard_library()))
    tokenizer = train_tokenizer((each.text for each in sides[0]), VOCAB)
    documents = tokenizer.encode_batch([each.text for side in sides for each in side])
    learned = len(sides[0])
    groups = list(range(len(documents)))
    for first, members in near_duplicate_groups(sides[0]).items():
        for member in members:
            groups[member] = first
    store = Neighbours(documents, groups, tokenizer.decode, CHUNK, range(learned, len(documents)))
    learn = _rows(documents, range(learned), groups, store, POOL)
    return tokenizer, learn, _rows(documents, range(learned, len(documents)), groups, store, TESTED)


def _rows(documents: list[list[int]], those: range, groups: list[int], store: Neighbours, most: int) -> Rows:
    """Up to `most` rows, drawn once for all seeds, each from one document."""
    cut = [(each, start) for each in those for start in range(0, len(documents[each]) - LENGTH, LENGTH)]
    chosen = [cut[each] for each in np.random.default_rng(0).permutation(len(cut))[:most]]
    tokens = np.array([documents[each][start : start + LENGTH + 1] for each, start in chosen])
    chunks = tokens[:, :LENGTH].reshape(-1, CHUNK)

    def found(past: bool) -> Tensor:
        askers = []
        for each, start in chosen:
            # The last chunk before the row is left out: what followed it is the row.
            end = store.first[each] + max(0, start // CHUNK - 1) if past else store.first[each]
            askers += [Asker(groups[each], (store.first[each], end))] * CHUNKS
        held = store.passages(store.find(chunks, FOUND, askers))
        return torch.from_numpy(held.reshape(len(tokens), CHUNKS, FOUND, 2 * CHUNK))

    with_past = found(True)
    return Rows(torch.from_numpy(tokens), with_past, found(False) if those.start else with_past)


@dataclass(frozen=True)
class Reading:
    """Batches of rows with their passages, some of which are taken away."""

    text: str
    rows: int
    seed: int

    def __call__(self, state: LoaderState | None, ranks: Ranks) -> Iterator[tuple[Batch, LoaderState]]:
        learn, taken = learnt(self.text), 0 if state is None else state.taken
        length = learn.tokens.shape[1] - 1
        while True:
            rng = np.random.default_rng((self.seed, taken))
            chosen = torch.from_numpy(rng.integers(0, len(learn.tokens), self.rows))
            gone = torch.from_numpy(rng.random((self.rows, CHUNKS)) < DROPPED)
            passages = learn.passages[chosen].masked_fill(gone[..., None, None], NONE)
            tokens = learn.tokens[chosen]
            taken += 1
            positions = torch.arange(length).expand(self.rows, -1)
            batch = Batch(
                tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions, None, None, {"passages": passages}
            )
            yield batch, LoaderState(taken, self.text)


def learnt(text: str) -> Rows | Facts:
    """The rows to learn from: of the library, or of a made-up world."""
    return corpus()[1] if text == LIBRARY else world(0, WORLD)


def given(test: Rows | Facts, what: str) -> Tensor:
    """The passages of a condition: those found, those found in other documents, those that other rows found, none."""
    if what == "none":
        return torch.full_like(test.passages, NONE)
    if what == "random":
        return test.passages.roll(len(test.passages) // 2, 0)
    return test.elsewhere if what == "found elsewhere" and isinstance(test, Rows) else test.passages


def losses(model: Model, test: Rows | Facts, passages: Tensor | None, at_once: int = 16) -> Tensor:
    """Nats of every target token, (N, T)."""
    told, chunk = [], (test.tokens.shape[1] - 1) // CHUNKS
    for first in range(0, len(test.tokens), at_once):
        rows = test.tokens[first : first + at_once]
        tokens, targets = rows[:, :-1], rows[:, 1:]
        if passages is None:
            scores = model(tokens).logits.float().log_softmax(-1)
        else:
            scores = log_probs(model, tokens, passages[first : first + at_once], chunk)
        told.append(-scores.gather(-1, targets[..., None])[..., 0])
    return torch.cat(told)


@lru_cache(maxsize=1)
def sizes() -> Tensor:
    """Bytes of every target token of the test, (TESTED, LENGTH)."""
    tokenizer, _, test = corpus()
    each = torch.tensor([len(tokenizer.token_bytes(token)) for token in range(VOCAB)])
    return each[test.tokens[:, 1:]]


@lru_cache(maxsize=1)
def far() -> Tensor:
    """Of the test's chunks after the first, (TESTED, CHUNKS - 1): True where no passage shares a run of more than NEAR
    tokens with the chunk that is predicted by it: what is gained there is not copied."""
    test = corpus()[2]
    chunks = test.tokens[:, :LENGTH].view(-1, CHUNKS, CHUNK)
    return torch.tensor(
        [
            [
                all(shared_run(row[after].tolist(), each.tolist()) <= NEAR for each in passages[after - 1])
                for after in range(1, CHUNKS)
            ]
            for row, passages in zip(chunks, test.passages, strict=True)
        ]
    )


def bits(nats: Tensor, kept: Tensor | None = None) -> float:
    """Bits a byte over the tokens that are kept (all)."""
    weights = torch.ones_like(nats) if kept is None else kept.to(nats.dtype)
    return float((nats * weights).sum() / (sizes() * weights).sum()) / math.log(2)


def apart(name: str, one: Tensor, other: Tensor, draws: int = 2000) -> dict[str, float]:
    """How many bits a byte one way of reading is from another on the same rows, and the 95% interval of a bootstrap
    over the rows (percentiles)."""
    bytes_of, gaps = sizes().sum(1).double(), (one - other).double().sum(1) / math.log(2)
    drawn = torch.from_numpy(np.random.default_rng(0).integers(0, len(gaps), (draws, len(gaps))))
    means = gaps[drawn].sum(1) / bytes_of[drawn].sum(1)
    low, high = (float(means.quantile(share)) for share in (0.025, 0.975))
    return {name: float(gaps.sum() / bytes_of.sum()), f"{name}, low": low, f"{name}, high": high}


def after_reading(chunks: Tensor) -> Tensor:
    """The target tokens of chunks after the first, (N, LENGTH), from which chunks are: target t is token t + 1."""
    tokens = chunks.repeat_interleave(CHUNK, 1)
    return F.pad(tokens, (CHUNK - 1, 1), value=False)


class Retrieval(Study):
    title = ("A model that reads what was found", "边检索边阅读的模型")
    question = (
        "One model reads retrieved passages by cross-attention (RETRO), chunk after chunk; one of as many parameters "
        "cannot. Who predicts better: made-up facts of a world that was never learned from, and held-out modules of "
        "Python's library?",
        "一个模型逐块通过交叉注意力阅读检索到的段落（RETRO），另一个参数同样多但不能阅读。"
        "对从未学过的虚构世界中的事实，以及 Python 标准库的未见模块，谁预测得更好？",
    )

    def budget(self) -> Budget:
        return Budget(steps=300, rows=16)

    def tried(self) -> dict[str, Any]:
        return {name: record_to(spec_of(name)) for name in (FACT_READER, FACT_DECODER, READER, DECODER, LONGER)}

    def trial(self, name: str, seed: int, folder: Path, budget: Budget, quiet: bool) -> dict[str, Any]:
        model = initialise(Model(spec_of(name)), seed)
        times = operations(READER) / operations(DECODER) if name == LONGER else 1.0
        steps = max(1, round(budget.steps * times))
        training = Training(
            steps=steps,
            optimizer=Optimizer(rate=4e-3),
            schedule=Schedule("cosine", warmup=max(1, steps // 10), final=0.05),
            checkpoint=0,
        )
        text = FACTS if name in (FACT_READER, FACT_DECODER) else LIBRARY
        objective = reading(facts.CHUNK if text == FACTS else CHUNK) if spec_of(name).encoder else next_token
        run, label = place(folder, name, seed), f"{name} seed {seed}"
        rows = Reading(text, budget.rows, seed)
        train(model, rows, training, run, objective=objective, resume=True, label=label, quiet=quiet)
        model.eval()
        with torch.no_grad():
            return {"updates": steps, "parameters": model.spec.parameters(), **self.measure(name, model)}

    def measure(self, name: str, model: Model) -> dict[str, float]:
        """Of facts: nats of the value that was asked. Of the library: bits a byte of the held-out rows, all, and those
        of chunks whose passages do not give them away."""
        if name in (FACT_READER, FACT_DECODER):
            return asked_values(model)
        test = corpus()[2]
        new = after_reading(far())
        if name == READER:
            told = {what: losses(model, test, given(test, what)) for what in GIVEN}
            return {
                **{what: bits(nats) for what, nats in told.items()},
                **{f"{what}, nothing alike": bits(nats, new) for what, nats in told.items()},
                **{
                    key: value
                    for one, other in ROWS
                    for key, value in apart(f"{one} - {other}", told[one], told[other]).items()
                },
            }
        nats = losses(model, test, None)
        measured = {"none": bits(nats), "none, nothing alike": bits(nats, new)}
        return measured | ({"kNN-LM": _knn(model)} if name == DECODER else {})

    def figures(self, results: Results) -> list[str]:
        ways = [(FACT_READER, what) for what in ("found", "random", "none")] + [(FACT_DECODER, "none")]
        values = [(f"{name}, {what}", results.mean(name, what)) for name, what in ways]
        nats = [Group(label, [Interval(each.value, each.low, each.high)]) for label, each in values]
        groups, cells = [], []
        for name, what in _told(results):
            value, alike = results.mean(name, what), f"{what}, nothing alike"
            label = f"{name}, {what}" if name == READER or what != "none" else name
            groups.append(Group(label, [Interval(value.value, value.low, value.high)]))
            far_away = str(results.mean(name, alike)) if alike in results.values[name] else ""
            cells.append((label, str(value), far_away, round(results.mean(name, "updates").value)))
        heads = (
            ("model", "模型"),
            ("bits a byte", "每字节比特"),
            ("where passages share no run", "段落与所预测者无相同片段处"),
            ("updates", "更新次数"),
        )
        chart = ("Bits a byte of held-out modules", "未见模块的每字节比特数")
        fact = ("Nats of a value that only a passage tells", "只有段落里才有的答案：纳特")
        first = bar_chart(nats, [("nats", "纳特")], fact, ("nats", "纳特"))
        return [first, bar_chart(groups, [("bits a byte", "每字节比特")], chart, ("bits", "比特")), table(heads, cells)]

    def verdict(self, results: Results) -> list[str]:
        pairs = [
            ("passages that were found, instead of random ones", (READER, "found"), (READER, "random")),
            ("passages that were found, instead of none", (READER, "found"), (READER, "none")),
            ("passages found in other documents alone, instead of none", (READER, "found elsewhere"), (READER, "none")),
            ("the reader, instead of a decoder of its parameters", (READER, "found"), (DECODER, "none")),
            ("the reader, instead of a decoder of its operations", (READER, "found"), (LONGER, "none")),
            ("a kNN-LM over the decoder, instead of the decoder", (DECODER, "kNN-LM"), (DECODER, "none")),
        ]
        told = [f"Nats of a made-up fact, where guessing costs {math.log(len(facts.VALUES)):.2f}: {_facts(results)}."]
        told += [f"Bits a byte, {what}: {_gap(results.values, one, other)}." for what, one, other in pairs]
        for name in (f"{one} - {other}" for one, other in ROWS if f"{one} - {other}" in results.values[READER]):
            value, low, high = (results.values[READER][f"{name}{end}"][0] for end in ("", ", low", ", high"))
            told.append(
                f"Bits a byte over the rows of the test, first seed, {name}: {value:+.3f} ({low:+.3f} to {high:+.3f})."
            )
        alike = ", nothing alike"
        one, other = (READER, f"found{alike}"), (READER, f"none{alike}")
        told.append(
            f"In chunks of which no passage shares more than {NEAR} tokens on end, passages instead of none: "
            f"{_gap(results.values, one, other)}. That share of the chunks is {float(far().float().mean()):.0%}."
        )
        return told


def asked_values(model: Model) -> dict[str, float]:
    """Nats of the values that a row of another world asks for, the mean; guessing costs ln 12."""
    test = world(1, ASKED_OF)
    places = [each - 1 for each in facts.ASKED]
    if model.spec.encoder is None:
        return {"none": float(losses(model, test, None)[:, places].mean())}
    ways = ("found", "random", "none")
    return {what: float(losses(model, test, given(test, what))[:, places].mean()) for what in ways}


def _knn(model: Model) -> float:
    """Bits a byte of a kNN-LM over the model, whose datastore holds rows to learn from; both by the engine."""
    _, learn, test = corpus()
    engine = Engine(LanguageModel(model, None))
    datastore = Datastore(model.spec.width, model.spec.vocab)
    datastore.add_texts(engine, learn.tokens[:STORED, :-1].tolist())
    told = engine.score_texts(test.tokens.tolist(), processor=KnnLM(datastore, lam=SHARE, k=NEIGHBOURS))
    return bits(-torch.tensor([[each.logprob for each in row] for row in told]))


def _told(results: Results) -> list[tuple[str, str]]:
    wanted = [(READER, what) for what in GIVEN] + [(DECODER, "none"), (DECODER, "kNN-LM"), (LONGER, "none")]
    return [(name, what) for name, what in wanted if what in results.values[name]]


def _facts(results: Results) -> str:
    ways = [(FACT_READER, "found"), (FACT_READER, "random"), (FACT_READER, "none"), (FACT_DECODER, "none")]
    told = [f"{name.removeprefix('facts, ')}, {what} {results.mean(name, what)}" for name, what in ways]
    gap = _gap(results.values, ways[0], ways[-1])
    return f"{'; '.join(told)}; the reader with what was found, instead of the decoder: {gap}"


def _gap(values: Mapping[str, Mapping[str, Any]], one: tuple[str, str], other: tuple[str, str]) -> str:
    gap: Mean = difference(values[one[0]][one[1]], values[other[0]][other[1]])
    sure = "" if separates(gap) else ", not told apart"
    return f"{gap.value:+.3f} ± {gap.half:.3f}{sure}" if math.isfinite(gap.half) else f"{gap.value:+.3f}, one seed"


EXPERIMENT = Retrieval()
