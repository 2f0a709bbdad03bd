"""Reinforcement learning as a job: on the one trainer, whose batches are rollouts of the one engine.

A rollout is made when its first update is due, with the weights as they are then, and kept in RUN/rollouts until no
checkpoint needs it any more. So a stopped run goes on in the middle of a rollout, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dougong.align.heads import with_task
from dougong.align.kept import Rollouts
from dougong.align.logprobs import logprobs, with_routing
from dougong.align.policy import policy_objective, value_loss
from dougong.align.reference import reference_of
from dougong.align.rewards.choose import Scoring
from dougong.align.rewards.sample import Reward, Task
from dougong.align.rl_recipe import Rl
from dougong.align.rollout import (
    Experience,
    answer,
    answer_groups,
    experience,
    figure_names,
    prompts_of,
    sample_of,
    state_values,
)
from dougong.align.tasks import read_tasks
from dougong.base import DougongError
from dougong.data import Conversation
from dougong.data.batch import IGNORED, Batch
from dougong.data.chat import hold_out
from dougong.data.loader import LoaderState, permutation
from dougong.hub import LanguageModel, load, save
from dougong.model import Model
from dougong.parts.heads import value as value_head
from dougong.train.loop import Batches, Objective, train
from dougong.train.objectives import Loss
from dougong.train.optimizers import Optimizer
from dougong.train.precision import choose_precision
from dougong.train.ranks import Ranks
from dougong.train.recipe import ChatData, Sft, begin, finish
from dougong.train.schedule import Schedule
from dougong.train.sft import sft
from dougong.train.tuned import load_for_chat, mergeable, open_for_chat, save_tuned, tuned, with_heads
from dougong.tune import detach, load_adapter, merge


def split_tasks(tasks: Sequence[Task], held_out: float) -> tuple[list[Task], list[Task]]:
    """(training, held-out) by a hash of what is asked."""
    return hold_out(tasks, held_out, lambda each: each.messages)


def minibatch(batch: Batch, recipe: Rl, number: int, update: int) -> Batch:
    """The rows of one update of rollout `number`: every epoch cuts all rows in an order of its own."""
    epoch, part = divmod(update, recipe.rollout.minibatches)
    if recipe.rollout.minibatches == 1:
        return batch
    order = permutation(len(batch.tokens), recipe.seed, number, epoch, 4)
    rows = len(order)
    begin, end = (rows * at // recipe.rollout.minibatches for at in (part, part + 1))
    return batch.take(torch.from_numpy(order[begin:end].copy()))


def objective(recipe: Rl, value: Model | None, names: Sequence[str]) -> Objective:
    """The loss of one update; it reads a batch's `further` as `experience` fills it. `names`: of its figures, which
    are of all answers; "entropy" is that of the batch's rows alone."""
    rules, how, loss = recipe.rules, recipe.rollout, recipe.loss
    high = rules.high if loss.clip_high is None else loss.clip_high
    level = rules.level if loss.level is None else loss.level

    def compute(model: Model, batch: Batch) -> Loss:
        mask = batch.targets != IGNORED
        policy, entropy, output = logprobs(model, batch, how.temperature, entropy=True)
        further = batch.further
        # Of a rollout with one update the policy is still the one that answered.
        old = further["old"] if how.updates > 1 else policy.detach()
        added = None
        if value is not None:
            values = state_values(value, batch).float()
            added = loss.value_weight * value_loss(values, further["values"], further["returns"], loss.value_clip)
        found = policy_objective(
            policy, old, further["advantages"], mask, rules.how, loss.clip, high, further.get("reference"),
            float(further["coefficient"][0]), added, how.max_tokens, level,
        )  # fmt: skip
        share = found.weight / mask.sum().clamp(min=1)
        metrics = {name: stat * found.weight for name, stat in zip(names, further["stats"][0], strict=True)}
        metrics["entropy"] = torch.where(mask, entropy, 0.0).sum() * share
        if added is not None:
            metrics["value_loss"] = torch.where(mask, added.detach(), 0.0).sum() * share / max(loss.value_weight, 1e-8)
        return with_routing(replace(found, metrics={**found.metrics, **metrics}), output)

    return compute


def warm_up(recipe: Rl, tasks: Sequence[Task], resume: bool, quiet: bool) -> Path:
    """ReFT's first stage: imitate the tasks' solutions in RUN/warmup; returns the folder of the model that results.

    It trains what the recipe trains: all weights, or an adapter, which is merged into the model that the second stage
    starts from and is compared with. Raises DougongError where there is nothing to imitate, and for adapters that no
    weights can hold.
    """
    shown = [
        Conversation((*task.messages, {"role": "assistant", "content": task.solution}), source=task.source)
        for task in tasks
        if task.solution
    ]
    if not shown:
        raise DougongError("no task has a solution to imitate; set warmup to 0, or add solutions")
    run, ranks = recipe.run / "warmup", Ranks.join()
    start = open_for_chat(recipe.model)
    tuning = tuned(start, recipe.tune, recipe.seed)
    if tuning is not None and not mergeable(tuning):
        raise DougongError(
            f"{recipe.tune.method} is no change of a weight, so what the warm-up learns cannot be where the second "
            "stage starts; choose a method that can be merged, such as lora, or set warmup to 0"
        )
    training = replace(
        recipe.training, steps=recipe.warmup, schedule=Schedule("constant", warmup=0), evaluate=0,
        optimizer=Optimizer(rate=recipe.training.optimizer.rate * 10, weight_decay=0.0),
    )  # fmt: skip
    stage = Sft(
        recipe.model, run, ChatData(held_out=0.0), recipe.tune, training, batch=recipe.rollout.prompts,
        length=start.spec.context, seed=recipe.seed,
    )  # fmt: skip
    begun = (run / "recipe.yaml").is_file()
    ranks.wait()
    sft(stage, shown, resume=resume and begun, quiet=quiet)
    if ranks.first and (run / "adapter").is_dir():  # once more when resumed: the last time may have been cut short
        learnt = load_for_chat(recipe.model)
        load_adapter(learnt, run / "adapter")
        merge(learnt)
        save(learnt, run / "model")
    ranks.wait()
    return run / "model"


def rollout_batches(
    recipe: Rl, kept: Rollouts, make: Callable[[int, int, float], Experience], identity: str
) -> Batches:
    """The updates' batches, rollout after rollout, each made (number, cursor, coefficient) as its first update is due.

    Raises DougongError for the state of a run that `identity` does not describe.
    """

    def stream(state: LoaderState | None, ranks: Ranks) -> Iterator[tuple[Batch, LoaderState]]:
        if state is not None and state.identity != identity:
            raise DougongError(f"the run was begun with {state.identity}; it is now {identity}; restore it")
        number, inside = divmod(state.taken if state else 0, recipe.rollout.updates)
        cursor, coefficient = 0, recipe.coefficient
        if number and not inside:
            before = kept.read(number - 1)
            cursor, coefficient = before.cursor, before.coefficient
        kept.begin(number + (inside > 0))
        while True:
            made = kept.read(number) if inside else make(number, cursor, coefficient)
            for update in range(inside, recipe.rollout.updates):
                taken = number * recipe.rollout.updates + update + 1
                batch = minibatch(made.batch, recipe, number, update)
                share = ranks.share(len(batch.tokens))
                yield batch.rows(share.start, share.stop), LoaderState(taken, identity)
            cursor, coefficient, inside, number = made.cursor, made.coefficient, 0, number + 1

    return stream


def rl(
    recipe: Rl,
    tasks: Sequence[Task] | None = None,
    reward: Reward | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, float]:
    """Run a recipe, on the given tasks or on those of `data.path`; the policy is RUN/model, or RUN/adapter.

    Under torchrun every rank answers and scores a part of each rollout and learns from a part of each update's rows.

    reward: a function of samples in place of the recipe's `reward.kind`. Returns the figures that it also writes to
    RUN/result.json. Raises DougongError for whatever is wrong with recipe, model or data, before training; `Stopped`
    when interrupted.
    """
    rows, world = recipe.rollout.prompts * recipe.rollout.samples // recipe.rollout.minibatches, Ranks.join().world
    if rows < world:
        raise DougongError(f"an update has {rows} answers for {world} processes; raise rollout.prompts")
    ranks, done = begin(recipe, tasks, "tasks", resume)
    if done is not None:
        return done
    if tasks is None:
        tasks = list(read_tasks(recipe.data.path))
    learn, check = split_tasks(tasks, recipe.data.held_out)
    start = warm_up(recipe, learn, resume, quiet) if recipe.warmup else recipe.model
    lm = open_for_chat(start)
    assert lm.tokenizer is not None
    prompts = prompts_of(lm, learn, recipe.rollout.max_tokens)
    unseen = prompts_of(lm, check, recipe.rollout.max_tokens)[: recipe.data.checked]
    if not prompts:
        raise DougongError(
            f"none of the {len(learn)} prompts leaves {recipe.rollout.max_tokens} tokens of the model's context "
            f"({lm.spec.context}) for an answer; lower rollout.max_tokens"
        )
    scoring = Scoring(recipe.reward, recipe.rollout.max_tokens, reward)
    low = choose_precision(recipe.training.precision, recipe.run, ranks) == "bfloat16"
    value = _value_model(recipe, lm) if recipe.rules.advantages == "value" else None
    tuning = tuned(lm, recipe.tune, recipe.seed)
    wants_reference = recipe.coefficient > 0 or recipe.kl.limit > 0
    reference = reference_of(lm.model, tuning) if wants_reference else None
    kept = Rollouts(recipe.run, recipe, ranks)

    def make(number: int, cursor: int, coefficient: float) -> Experience:
        answered, after = answer_groups(lm, prompts, recipe, scoring, number, cursor, ranks)
        made = experience(recipe, answered, lm, reference, value, number, after, coefficient, low, ranks)
        kept.keep(number, made, answered)
        return made

    names = figure_names(reference is not None)
    stream = rollout_batches(recipe, kept, make, f"{len(prompts)} tasks, {recipe.rollout}, seed {recipe.seed}")

    def evaluate(model: Model) -> Mapping[str, float]:
        if not unseen or not ranks.first:
            return {}
        done = answer(lm, unseen, [0] * len(unseen), recipe, greedy=True)
        scored = scoring([sample_of(prompt.task, each) for prompt, each in zip(unseen, done, strict=True)])
        return {"held_out_reward": sum(scored.values) / len(scored.values)}

    before = evaluate(lm.model)
    torch.manual_seed(recipe.seed)  # of dropout; a resumed run goes on with the state it stopped in
    train(
        lm.model, stream, recipe.training, recipe.run, objective=objective(recipe, value, names), evaluate=evaluate,
        resume=resume, label="rl", quiet=quiet, beside=value, blind=math.inf,
    )  # fmt: skip
    lm.model.eval()
    after = evaluate(lm.model)
    figures: dict[str, float] = {
        "tasks": len(prompts),
        "too_long": len(learn) - len(prompts),
        "steps": recipe.training.steps,
        **{f"{name}_before": number for name, number in before.items()},
        **after,
    }
    return finish(recipe, ranks, figures, lambda: save_tuned(lm, recipe.run, start, tuning))


def _value_model(recipe: Rl, lm: LanguageModel) -> Model:
    """The model of PPO's value function: a copy of the policy, or what the recipe names, under a head of one number;
    with an adapter of its own where the recipe's method changes weights, else trained whole."""
    start = lm if recipe.value is None else load(recipe.value)
    if recipe.value is not None and start.spec.vocab != lm.spec.vocab:
        raise DougongError(f"{recipe.value} has another vocabulary than the policy; name a model of the same family")
    made = with_task(start, value_head(), recipe.seed)
    tuning = tuned(made, with_heads(recipe.tune), recipe.seed)
    if tuning is not None and not mergeable(tuning):
        detach(made)
    return made.model
