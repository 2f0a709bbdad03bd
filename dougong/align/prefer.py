"""Preference tuning as a job: pairs, verdicts or steps to a model that prefers, or to one that scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from dougong.align.heads import with_task
from dougong.align.objectives import objective
from dougong.align.preferences import read_preferences
from dougong.align.prepare import Preference, Preparer, prepare
from dougong.align.recipe import SCORING, WITH_REFERENCE, Prefer
from dougong.align.reference import kept_logprobs, reference_of
from dougong.base import DougongError
from dougong.data.batch import Batch
from dougong.data.chat import hold_out
from dougong.data.loader import LoaderState, iterate
from dougong.hub import LanguageModel
from dougong.model import Model
from dougong.parts.heads import TokenClassifier, reward
from dougong.train.loop import Objective, train
from dougong.train.precision import choose_precision
from dougong.train.ranks import Ranks
from dougong.train.recipe import begin, finish
from dougong.train.tuned import check_length, mergeable, open_for_chat, save_tuned, save_whole, tuned, with_heads
from dougong.tune import disabled
from dougong.tune.tuning import Tuning


def split(examples: Sequence[Preference], held_out: float) -> tuple[list[Preference], list[Preference]]:
    """(training, held-out) by a hash of the prompt, so that a prompt is on one side only."""
    return hold_out(examples, held_out, lambda each: each.prompt)


@torch.no_grad()
def held_out_metrics(model: Model, preparer: Preparer, loss_of: Objective, batch: int) -> dict[str, float]:
    """Loss and metrics over all held-out units once."""
    rows = preparer.prepared.rows
    total: dict[str, float] = {}
    weight = 0.0
    device = model.like.device
    for start in range(0, rows.count, batch):
        chosen = rows.build([(0, row) for row in range(start, min(start + batch, rows.count))])
        loss = loss_of(model, preparer(chosen, Ranks()).to(device))
        weight += float(loss.weight)
        for name, value in {"loss": loss.sum, **loss.metrics}.items():
            total[name] = total.get(name, 0.0) + float(value)
    return {f"held_out_{name}": value / weight for name, value in total.items()}


def start_model(recipe: Prefer) -> LanguageModel:
    """The model to teach: the one that the recipe names; for scores with a head of one score, or of two verdicts."""
    lm = open_for_chat(recipe.model)
    if recipe.method not in SCORING:
        if lm.spec.head is None:
            raise DougongError(f"{recipe.model} has no head over the vocabulary; name a model that talks")
        return lm
    task = reward() if recipe.method == "reward" else TokenClassifier(("wrong", "right"))
    return lm if lm.spec.task == task else with_task(lm, task, recipe.seed)


def tuned_model(recipe: Prefer) -> tuple[LanguageModel, Tuning | None]:
    """`start_model`, ready to train: with the recipe's adapter, which a score's new head goes with.

    Raises DougongError for rows that are too long, and for scores with an adapter that cannot be merged: nothing but a
    whole model holds the head.
    """
    lm, scoring = start_model(recipe), recipe.method in SCORING
    tuning = tuned(lm, with_heads(recipe.tune) if scoring else recipe.tune, recipe.seed)
    check_length(lm, recipe.length, recipe.model)
    if scoring and tuning is not None and not mergeable(tuning):
        raise DougongError(
            f"{recipe.tune.method} is no change of a weight, and a model that scores is saved whole; choose a method "
            "that can be merged, such as lora"
        )
    return lm, tuning


def _preparers(
    recipe: Prefer, lm: LanguageModel, tuning: Tuning | None, examples: Sequence[Preference], ranks: Ranks
) -> list[Preparer]:
    """What makes batches of the examples to learn from, and, on the first rank and where there are any, of those held
    out; with the reference's log-probabilities, or who computes them.

    Raises DougongError where nothing is left to learn from.
    """
    assert lm.tokenizer is not None
    learn, check = split(examples, recipe.data.held_out)
    if not learn:
        raise DougongError(f"no example is left to learn from ({len(examples)} read); lower data.held_out")
    prepared = [prepare(recipe, lm.tokenizer, learn)]
    if not prepared[0].rows.count:
        raise DougongError(
            f"none of the {len(learn)} examples has its answers within rows of {recipe.length} tokens; raise length"
        )
    if check and ranks.first:
        unseen = prepare(recipe, lm.tokenizer, check)
        prepared += [unseen] if unseen.rows.count else []  # all may be too long
    low = choose_precision(recipe.training.precision, recipe.run, ranks) == "bfloat16"
    compared = recipe.method in WITH_REFERENCE
    reference = reference_of(lm.model, tuning) if compared and recipe.reference == "copy" else None
    made = [Preparer(recipe, lm.model, reference, each, low) for each in prepared]
    if compared and recipe.reference == "once":
        (recipe.run / "reference").mkdir(exist_ok=True)
        for each, name, sharing in zip(made, ("reference", "held_out"), (ranks, Ranks()), strict=False):
            place, rows = recipe.run / "reference" / f"{name}.json", each.prepared.rows
            with disabled(lm):
                each.use(kept_logprobs(place, rows.identity, lm.model, each.segments(), recipe.length, sharing, low))
    return made


def prefer(
    recipe: Prefer,
    examples: Sequence[Preference] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, float]:
    """Run a recipe, on the given preferences or on those of `data.path`; the result is RUN/model, or RUN/adapter.

    Returns the figures that it also writes to RUN/result.json. Raises DougongError for whatever is wrong with recipe,
    model or data, before training; `Stopped` when interrupted.
    """
    ranks, done = begin(recipe, examples, "preferences", resume)
    if done is not None:
        return done
    if examples is None:
        examples = list(read_preferences(recipe.data.path))
    lm, tuning = tuned_model(recipe)
    preparers = _preparers(recipe, lm, tuning, examples, ranks)
    prepared = preparers[0].prepared
    loss_of = objective(recipe.method, recipe.loss)
    training = recipe.training
    if recipe.epochs:
        training = replace(training, steps=max(1, math.ceil(recipe.epochs * prepared.rows.count / recipe.batch)))

    def stream(state: LoaderState | None, ranks: Ranks) -> Iterator[tuple[Batch, LoaderState]]:
        rows = iterate(prepared.rows, recipe.batch, seed=recipe.seed, state=state, rank=ranks.rank, world=ranks.world)
        for batch, after in rows:
            yield preparers[0](batch, ranks), after

    def evaluate(model: Model) -> Mapping[str, float]:
        return held_out_metrics(model, preparers[1], loss_of, recipe.batch) if len(preparers) > 1 else {}

    before = evaluate(lm.model)
    torch.manual_seed(recipe.seed)  # of dropout; a resumed run goes on with the state it stopped in
    train(
        lm.model, stream, training, recipe.run, objective=loss_of, evaluate=evaluate, resume=resume,
        label="prefer", quiet=quiet, blind=math.inf,
    )  # fmt: skip
    lm.model.eval()
    after = evaluate(lm.model)
    figures: dict[str, float] = {
        "examples": len(prepared.rows.units),
        "rows": prepared.rows.count,
        "filled": prepared.rows.filled,
        "truncated": prepared.truncated,
        "dropped": prepared.dropped,
        "equal_sides": prepared.equal,
        "steps": training.steps,
        **{f"{name}_before": value for name, value in before.items()},
        **after,
    }

    def save() -> None:
        if recipe.method in SCORING:
            save_whole(lm, recipe.run, tuning)
        else:
            save_tuned(lm, recipe.run, recipe.model, tuning)

    return finish(recipe, ranks, figures, save)
