"""Training an embedder: a query's own passage must be nearer than the others (InfoNCE)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.base import DougongError, atomic_file, write_json
from dougong.hub import LanguageModel, save
from dougong.model import Model
from dougong.parts.context import Context
from dougong.parts.frozen import FrozenStorage
from dougong.parts.shapes import Bool, Float
from dougong.rag.embedder import pooled
from dougong.train.objectives import Loss


@dataclass(frozen=True)
class Pair:
    """A query, the passage that answers it, and passages that look as if they did (hard negatives)."""

    query: str
    passage: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """How an embedder is trained. dims: prefixes of the vector that must work by themselves too (Matryoshka); limit:
    tokens of a text."""

    steps: int = 100
    batch: int = 16
    rate: float = 2e-5
    warmup: float = 0.1
    temperature: float = 0.05
    dims: tuple[int, ...] = ()
    limit: int = 128
    seed: int = 0
    keep_every: int = 25


def info_nce(
    queries: Float[Tensor, "B D"],
    passages: Float[Tensor, "P D"],
    temperature: float = 0.05,
    same: Bool[Tensor, "B P"] | None = None,
) -> Loss:
    """InfoNCE (van den Oord et al. 2018) with the passages of the other queries, and any more after them, as negatives:

        sum over i of -ln( exp(q_i . p_i / temperature) / sum over j of exp(q_i . p_j / temperature) )

    Row i of `passages` answers query i; all rows are of length 1. same: passages that answer a query as well as its own
    and must not count against it; they are left out of its sum.
    """
    scores = queries @ passages.T / temperature
    own = torch.arange(len(queries), device=queries.device)
    if same is not None:
        others = same.clone()
        others[own, own] = False
        scores = scores.masked_fill(others, -torch.inf)
    total = F.cross_entropy(scores, own, reduction="sum")
    right = (scores.argmax(1) == own).sum()
    weight = torch.tensor(float(len(queries)), device=queries.device)
    return Loss(total, weight, {"accuracy": right.float().detach()})


def matryoshka(
    queries: Float[Tensor, "B D"],
    passages: Float[Tensor, "P D"],
    dims: Sequence[int],
    temperature: float = 0.05,
    same: Bool[Tensor, "B P"] | None = None,
) -> Loss:
    """The mean of `info_nce` over the first d dimensions, for each d of `dims` (Kusupati et al. 2022)."""
    losses = [
        info_nce(F.normalize(queries[:, :each], dim=-1), F.normalize(passages[:, :each], dim=-1), temperature, same)
        for each in dims
    ]
    total = torch.stack([loss.sum for loss in losses]).mean()
    return Loss(total, losses[0].weight, losses[-1].metrics)


def train_embedder(
    lm: LanguageModel,
    pairs: Sequence[Pair],
    settings: Training,
    progress: Callable[[int, float, float], None] | None = None,
    kept: Path | None = None,
) -> None:
    """Train `lm`'s weights in place, with mean pooling. progress: (steps done, loss a query, share of queries whose own
    passage came first). kept: a file that the training is kept in every `keep_every` steps and, where it is there
    already, gone on from, to the same bits. The rate rises over the warm-up, then falls in a line to 0.

    Raises DougongError for too few pairs, an unknown dimension, or a loss that is not finite (the weights are then of
    no use).
    """
    width = lm.spec.width
    wrong = [each for each in settings.dims if not 1 <= each <= width]
    if wrong:
        raise DougongError(f"dims {settings.dims}; expected each from 1 to {width}")
    if lm.tokenizer is None:
        raise DougongError("the model has no tokenizer, so it cannot be trained on texts")
    model = pooled(lm, "mean")
    dims = settings.dims or (width,)

    def vectors(texts: list[str]) -> Tensor:
        assert lm.tokenizer is not None
        rows = [_cut(row, settings.limit) for row in lm.tokenizer.encode_batch(texts, wrap=True)]
        longest = max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        padding = torch.tensor([[place >= len(row) for place in range(longest)] for row in rows])
        return model.run(tokens, Context.of(tokens, padding, causal=model.spec.causal)).embedding.float()

    def loss(batch: list[Pair], step: int) -> Loss:
        passages = [each.passage for each in batch] + [text for each in batch for text in each.negatives]
        same = torch.tensor([[text == each.passage for text in passages] for each in batch])
        queries = vectors([each.query for each in batch])
        return matryoshka(queries, vectors(passages), dims, settings.temperature, same)

    fitted(model, pairs, settings, loss, progress, kept)


def fitted(
    model: Model,
    pairs: Sequence[Pair],
    settings: Training,
    loss_of: Callable[[list[Pair], int], Loss],
    progress: Callable[[int, float, float], None] | None,
    kept: Path | None,
) -> None:
    """The loop that trainings on pairs share. loss_of: a batch and the number of its step -> its loss, with the queries
    that it got right as "accuracy"."""
    if len(pairs) < 2 or settings.batch < 2 or settings.steps < 1:
        raise DougongError(
            f"{len(pairs)} pairs, batch {settings.batch}, {settings.steps} steps; expected at least 2 pairs, a batch "
            "of 2 and a step"
        )
    if any(isinstance(each, FrozenStorage) for each in model.modules()):
        raise DougongError("the encoder is quantised, so it cannot learn; open it without @int8 or @int4")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=0.01)
    warm = max(1, round(settings.warmup * settings.steps))

    def rate(step: int) -> float:
        return min((step + 1) / warm, max(0.0, (settings.steps - step) / max(1, settings.steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # of dropout
        saved = None if kept is None else Kept(kept, model, optimizer, schedule, _mark(pairs, settings))
        begun = 0 if saved is None else saved.load()
        for step, batch in enumerate(_batches(pairs, settings)):
            if step < begun:
                continue
            loss = loss_of(batch, step)
            value = float(loss.sum.detach() / loss.weight)
            if not torch.isfinite(loss.sum):
                raise DougongError(f"the loss is {value} at step {step}; lower the rate ({settings.rate}), begin anew")
            optimizer.zero_grad()
            (loss.sum / loss.weight).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if saved is not None and (step + 1) % settings.keep_every == 0:
                saved.save(step + 1)
            if progress is not None:
                progress(step + 1, value, float(loss.metrics["accuracy"] / loss.weight))
    model.eval()


def _mark(pairs: Sequence[Pair], settings: Training) -> str:
    """What tells one training from another: its settings and its pairs."""
    return hashlib.blake2b(repr((settings, list(pairs))).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@final
class Kept:
    """A training as it stands, in a file, so that it can be gone on with: weights, optimizer, rate, random numbers."""

    def __init__(self, path: Path, model: Model, optimizer: Any, schedule: Any, mark: str):
        self._path, self._parts, self._mark = path, {"model": model, "optimizer": optimizer, "rate": schedule}, mark

    def save(self, steps: int) -> None:
        held = {name: part.state_dict() for name, part in self._parts.items()}
        with atomic_file(self._path, "wb") as stream:
            torch.save({**held, "random": torch.get_rng_state(), "steps": steps, "mark": self._mark}, stream)

    def load(self) -> int:
        """Bring all parts to where they stood; the steps done, 0 where there is no file. Raises DougongError for a file
        of another training."""
        if not self._path.exists():
            return 0
        try:
            held = torch.load(self._path, weights_only=True)
            mark, steps = held["mark"], int(held["steps"])
        except Exception as error:  # a damaged file fails anywhere in zip or pickle
            raise DougongError(f"{self._path} is no training to go on with: {error}; remove it") from error
        if mark != self._mark:
            raise DougongError(f"{self._path} is of other pairs or settings; give the same ones, or remove it")
        for name, part in self._parts.items():
            part.load_state_dict(held[name])
        torch.set_rng_state(held["random"])
        return steps


def _cut(row: list[int], limit: int) -> list[int]:
    return row if len(row) <= limit else [*row[: limit - 1], row[-1]]


def _batches(pairs: Sequence[Pair], settings: Training) -> Iterator[list[Pair]]:
    """`steps` batches; every pair once before any comes again, in an order that the seed gives."""
    drawn, order = random.Random(settings.seed), []
    for _ in range(settings.steps):
        while len(order) < settings.batch:
            again = list(range(len(pairs)))
            drawn.shuffle(again)
            order += again
        batch, order = order[: settings.batch], order[settings.batch :]
        yield [pairs[place] for place in batch]


def save_embedder(lm: LanguageModel, path: str | Path, limit: int = 256) -> None:
    """The model in Hugging Face layout, with the two files by which sentence-transformers knows how it is pooled."""
    save(lm, path)
    width = lm.spec.width
    write_json(
        Path(path) / "1_Pooling" / "config.json",
        {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    )
    write_json(Path(path) / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
    names = ("Transformer", "Pooling", "Normalize")
    write_json(
        Path(path) / "modules.json",
        [
            {
                "idx": place,
                "name": str(place),
                "path": "" if place == 0 else f"{place}_{name}",
                "type": f"sentence_transformers.models.{name}",
            }
            for place, name in enumerate(names)
        ],
    )
