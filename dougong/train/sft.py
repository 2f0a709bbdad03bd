"""Supervised fine-tuning as a job: conversations to examples to a model that answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from dougong.base import DougongError
from dougong.data import (
    Conversation,
    Example,
    PackedRows,
    encode_conversations,
    example_batches,
    mix,
    pack_examples,
    read_conversations,
)
from dougong.data.batch import Batch
from dougong.data.chat import hold_out
from dougong.data.loader import LoaderState
from dougong.model import Model
from dougong.train.loop import next_token, train
from dougong.train.ranks import Ranks
from dougong.train.recipe import ChatData, Sft, begin, finish
from dougong.train.tuned import check_length, load_for_chat, open_for_chat, save_tuned, tuned

__all__ = ["held_out_loss", "load_for_chat", "read_sources", "sft", "split_conversations"]


def read_sources(data: ChatData) -> list[list[Conversation]]:
    """The conversations of each path. Raises DougongError for files that are none (`read_conversations`)."""
    return [list(read_conversations(path)) for path in data.path]


def split_conversations(
    conversations: Sequence[Conversation], held_out: float
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held-out) by a hash of what is said, so that equal conversations fall on the same side."""
    return hold_out(conversations, held_out, lambda each: each.messages)


@torch.no_grad()
def held_out_loss(model: Model, rows: PackedRows, batch: int = 16) -> float:
    """Nats a token of the assistant, over all rows once."""
    total = weight = 0.0
    for start in range(0, rows.count, batch):
        chosen = rows.build([(0, row) for row in range(start, min(start + batch, rows.count))])
        loss = next_token(model, chosen.to(model.head.weight.device))
        total, weight = total + float(loss.sum), weight + float(loss.weight)
    return total / weight


def sft(
    recipe: Sft,
    conversations: Sequence[Conversation] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, float]:
    """Run a recipe, on the given conversations or on those of `data.path`; the model is RUN/model.

    Returns the figures that it also writes to RUN/result.json. Raises DougongError for whatever is wrong with recipe,
    model or data, before training; `Stopped` when interrupted.
    """
    ranks, done = begin(recipe, conversations, "conversations", resume)
    if done is not None:
        return done
    given = [list(conversations)] if conversations is not None else read_sources(recipe.data)
    lm = open_for_chat(recipe.model)
    assert lm.tokenizer is not None
    tuning = tuned(lm, recipe.tune, recipe.seed)
    check_length(lm, recipe.length, recipe.model)
    sides = [split_conversations(source, recipe.data.held_out) for source in given]
    weights = recipe.data.weights if conversations is None else ()
    learn = mix([side[0] for side in sides], weights, recipe.seed)
    check = [each for side in sides for each in side[1]]
    conversations = [each for source in given for each in source]
    if not learn:
        raise DougongError(f"no conversation is left to learn from ({len(conversations)} read); lower data.held_out")
    pad = lm.tokenizer.pad_id or 0

    def pack(chosen: list[Example]) -> PackedRows:
        return pack_examples(chosen, recipe.length, pad_id=pad, layout=recipe.layout, too_long=recipe.data.too_long)

    last = recipe.data.turns == "last"
    rows = pack(encode_conversations(lm.tokenizer, learn, last_turn=last))
    held_out = pack(encode_conversations(lm.tokenizer, check, last_turn=last)) if check else None
    training = recipe.training
    if recipe.epochs:
        training = replace(training, steps=max(1, math.ceil(recipe.epochs * rows.count / recipe.batch)))

    def stream(state: LoaderState | None, ranks: Ranks) -> Iterator[tuple[Batch, LoaderState]]:
        return example_batches(rows, recipe.batch, seed=recipe.seed, state=state, rank=ranks.rank, world=ranks.world)

    def evaluate(model: Model) -> Mapping[str, float]:
        return {"held_out_loss": held_out_loss(model, held_out)} if held_out is not None and ranks.first else {}

    before = evaluate(lm.model)
    torch.manual_seed(recipe.seed)  # of dropout; a resumed run goes on with the state it stopped in
    train(lm.model, stream, training, recipe.run, evaluate=evaluate, resume=resume, label="sft", quiet=quiet)
    after = evaluate(lm.model)
    figures = {
        "conversations": len(learn),
        "rows": rows.count,
        "filled": rows.filled,
        "truncated": rows.truncated,
        "dropped": rows.dropped,
        "steps": training.steps,
        "trained_parameters": sum(each.numel() for each in lm.model.parameters() if each.requires_grad),
        **{f"{name}_before": value for name, value in before.items()},
        **after,
    }
    return finish(recipe, ranks, figures, lambda: save_tuned(lm, recipe.run, recipe.model, tuning))
