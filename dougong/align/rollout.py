"""Rollouts: answers from the engine, their rewards, and what an update needs to learn from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dougong.align import advantages as adv
from dougong.align.kl import check_divergence, next_coefficient
from dougong.align.logprobs import logprobs
from dougong.align.policy import divergence
from dougong.align.rewards.choose import Scoring
from dougong.align.rewards.sample import Sample, Task
from dougong.align.rl_recipe import Rl
from dougong.base import DougongError
from dougong.data.batch import IGNORED, Batch
from dougong.data.loader import permutation
from dougong.engine import Completion, Engine, Sampling
from dougong.hub import LanguageModel
from dougong.model import Model
from dougong.parts.context import Context


@dataclass(frozen=True)
class Prompt:
    """A task, and its messages as the ids that the model answers to."""

    task: Task
    ids: list[int]


@dataclass(frozen=True)
class Answered:
    """Groups of answers to prompts, in order, `samples` to each."""

    samples: tuple[Sample, ...]
    completions: tuple[Completion, ...]
    rewards: Tensor  # (groups, samples)
    failed: int  # answers without a reward of their own
    resampled: int  # groups thrown away because all their rewards were equal


@dataclass(frozen=True, eq=False)
class Experience:
    """A rollout ready to be learnt from: a batch of all its answers, each a row, with everything in `further`; the
    place in the order of prompts, and the coefficient of the divergence, with which the next one begins; figures."""

    batch: Batch
    cursor: int
    coefficient: float
    stats: Mapping[str, float]


def prompt_at(cursor: int, count: int, seed: int) -> int:
    """The index of the prompt that is drawn as number `cursor`: every epoch visits all in an order of its own."""
    epoch, place = divmod(cursor, count)
    return int(permutation(count, seed, epoch, 2)[place])


def prompts_of(lm: LanguageModel, tasks: Sequence[Task], room: int) -> list[Prompt]:
    """The tasks that leave `room` tokens of the model's context for an answer."""
    assert lm.tokenizer is not None
    found = [
        Prompt(task, lm.tokenizer.render_ids(list(task.messages), add_generation_prompt=True).ids) for task in tasks
    ]
    return [prompt for prompt in found if len(prompt.ids) + room <= lm.spec.context]


def answer(
    lm: LanguageModel, prompts: Sequence[Prompt], seeds: Sequence[int], recipe: Rl, greedy: bool = False
) -> list[Completion]:
    """One answer to each prompt, from an engine made for these weights."""
    how = recipe.rollout
    temperature = 0.0 if greedy else how.temperature
    samplings = [Sampling(max_tokens=how.max_tokens, temperature=temperature, seed=seed) for seed in seeds]
    return Engine(lm, max_batch=how.side).generate([prompt.ids for prompt in prompts], samplings)


def sample_of(task: Task, completion: Completion) -> Sample:
    return Sample(task, completion.text, tuple(completion.tokens), completion.finish_reason == "stop")


def answer_groups(
    lm: LanguageModel, prompts: Sequence[Prompt], recipe: Rl, scoring: Scoring, number: int, cursor: int
) -> tuple[Answered, int]:
    """Groups of answers to the next prompts, and the cursor after them.

    A dynamic method (DAPO) draws further prompts for groups of equal rewards, at most `tries` times in all, and keeps
    such groups only where nothing better came.
    """
    how, rules = recipe.rollout, recipe.rules
    good: list[tuple[list[Sample], list[Completion], list[float]]] = []
    dull: list[tuple[list[Sample], list[Completion], list[float]]] = []
    failed = drawn = 0
    for _ in range(how.tries if rules.dynamic else 1):
        missing = how.prompts - len(good)
        if not missing:
            break
        chosen = [prompts[prompt_at(cursor + at, len(prompts), recipe.seed)] for at in range(missing)]
        repeated = [prompt for prompt in chosen for _ in range(how.samples)]
        seeds = [_seed(recipe.seed, number, drawn + at) for at in range(len(repeated))]
        cursor, drawn = cursor + missing, drawn + len(repeated)
        completions = answer(lm, repeated, seeds, recipe)
        samples = [sample_of(prompt.task, done) for prompt, done in zip(repeated, completions, strict=True)]
        scored = scoring(samples)
        failed += len(scored.failures)
        for at in range(0, len(samples), how.samples):
            span = slice(at, at + how.samples)
            group = (samples[span], completions[span], scored.values[span])
            (dull if rules.dynamic and len(set(group[2])) == 1 else good).append(group)
    kept = (good + dull)[: how.prompts]
    resampled = len(good) + len(dull) - len(kept)
    return (
        Answered(
            tuple(sample for group in kept for sample in group[0]),
            tuple(done for group in kept for done in group[1]),
            torch.tensor([group[2] for group in kept]),
            failed,
            resampled,
        ),
        cursor,
    )


def _seed(seed: int, number: int, index: int) -> int:
    """A seed of one answer's own: the same in a resumed run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{index}".encode()).digest()[:7], "big")


def rows_of(completions: Sequence[Completion], pad: int) -> Batch:
    """Each prompt with its answer as a row, padded at the end; the targets are the answers' tokens."""
    longest = max(len(each.prompt) + len(each.tokens) for each in completions) - 1
    shape = (len(completions), max(longest, 1))
    tokens = torch.full(shape, pad, dtype=torch.int64)
    targets = torch.full(shape, IGNORED, dtype=torch.int64)
    filled = torch.zeros(len(completions), dtype=torch.int64)
    for row, each in enumerate(completions):
        whole = torch.tensor(each.prompt + each.tokens, dtype=torch.int64)
        begin, end = len(each.prompt) - 1, len(whole) - 1
        tokens[row, :end] = whole[:-1]
        targets[row, begin:end] = whole[1 + begin :]
        filled[row] = end
    positions = torch.arange(shape[1]).expand(shape).contiguous()
    return Batch(tokens, targets, positions, None, filled)


@torch.no_grad()
def of_batch(model: Model, batch: Batch, what: str, parts: int, low: bool, temperature: float = 1.0) -> Tensor:
    """(B, T) values of a model over a batch, in `parts`: "logprobs" of the targets, or the "values" of the states in
    which they were chosen."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    found = []
    for micro in batch.micro(parts):
        micro = micro.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            if what == "values":
                found.append(state_values(model, micro).float().cpu())
            else:
                found.append(logprobs(model, micro, temperature)[0].cpu())
    model.train(training)
    return torch.cat(found)


def state_values(model: Model, batch: Batch) -> Tensor:
    """(B, T): what the value model expects after the tokens up to each place."""
    ctx = Context.of(batch.tokens, None, batch.documents, batch.positions, model.spec.causal)
    return model.run(batch.tokens, ctx).value


def experience(
    recipe: Rl,
    answered: Answered,
    policy: LanguageModel,
    reference: Model | None,
    value: Model | None,
    number: int,
    cursor: int,
    coefficient: float,
    low: bool = False,
) -> Experience:
    """Turn answers and rewards into a batch with advantages. Raises DougongError when no answer has a token, or the
    policy has left its reference."""
    rules, how = recipe.rules, recipe.rollout
    pad = (policy.tokenizer.pad_id if policy.tokenizer else None) or 0
    batch = rows_of(answered.completions, pad)
    mask = batch.targets != IGNORED
    if not bool(mask.any()):
        raise DougongError("every answer is empty: the prompts fill the model's context; shorten them")
    parts = max(1, recipe.training.accumulate * how.minibatches)
    further: dict[str, Tensor] = {}
    needs_old = how.updates > 1 or reference is not None
    if needs_old:
        further["old"] = _old(answered, batch, policy.model, recipe, parts, low)
    kl = torch.zeros(mask.shape)
    if reference is not None:
        against = of_batch(reference, batch, "logprobs", parts, low, how.temperature)
        kl = torch.where(mask, divergence(further["old"], against, "k1"), 0.0)
        if rules.kl_in == "loss":
            further["reference"] = against
        per_token = float(torch.where(mask, divergence(further["old"], against), 0.0).sum() / mask.sum())
        check_divergence(recipe.kl, per_token, number)
    penalties = coefficient * kl if rules.kl_in == "reward" else torch.zeros_like(kl)
    further |= _advantages(recipe, answered.rewards, penalties, mask, value, batch, parts, low)
    measured = float(kl.sum(-1).mean())
    lengths = mask.sum(-1).float()
    equal = adv.equal_groups(answered.rewards)
    stats = {
        "reward": float(answered.rewards.mean()),
        "reward_deviation": float(answered.rewards.std()) if answered.rewards.numel() > 1 else 0.0,
        "answer_tokens": float(lengths.mean()),
        "ended": sum(sample.finished for sample in answered.samples) / len(answered.samples),
        "equal_groups": float(equal.float().mean()),
        "resampled_groups": float(answered.resampled),
        "failed_rewards": float(answered.failed),
    }
    if reference is not None:
        stats |= {"kl_answer": measured, "kl_coefficient": coefficient}
    rows = len(batch.tokens)
    names = figure_names(reference is not None)
    further["stats"] = torch.tensor([stats[name] for name in names]).expand(rows, -1).contiguous()
    further["coefficient"] = torch.full((rows,), coefficient)
    following = next_coefficient(recipe.kl, coefficient, measured, rows)
    done = Batch(batch.tokens, batch.targets, batch.positions, None, batch.filled, further)
    return Experience(done, cursor, following, stats)


def figure_names(reference: bool) -> list[str]:
    """What further["stats"] of a rollout holds, in order."""
    names = ["reward", "reward_deviation", "answer_tokens", "ended", "equal_groups", "resampled_groups"]
    return [*names, "failed_rewards", *(["kl_answer", "kl_coefficient"] if reference else [])]


def _old(answered: Answered, batch: Batch, model: Model, recipe: Rl, parts: int, low: bool) -> Tensor:
    """Log-probabilities under the policy that answered. The engine's are those of the model itself, so they hold where
    answers were drawn from just that, in the precision that training computes in."""
    if recipe.rollout.temperature != 1 or low:
        return of_batch(model, batch, "logprobs", parts, low, recipe.rollout.temperature)
    old = torch.zeros(batch.targets.shape)
    for row, each in enumerate(answered.completions):
        begin = len(each.prompt) - 1
        old[row, begin : begin + len(each.tokens)] = torch.tensor(each.logprobs)
    return old


def _advantages(
    recipe: Rl,
    rewards: Tensor,
    penalties: Tensor,
    mask: Tensor,
    value: Model | None,
    batch: Batch,
    parts: int,
    low: bool,
) -> dict[str, Tensor]:
    """The advantages (B, T), and for a value model its values and the returns."""
    rules, loss = recipe.rules, recipe.loss
    scores = rewards.flatten()
    if rules.advantages == "value":
        assert value is not None
        values = torch.where(mask, of_batch(value, batch, "values", parts, low), 0.0)
        each = adv.token_rewards(scores, penalties, mask)
        found, returns = adv.generalised_advantages(each, values, mask, loss.gamma, loss.lam)
        return {"advantages": adv.whiten(found, mask), "values": values, "returns": returns}
    if rules.advantages == "returns":
        each = adv.token_rewards(scores, penalties, mask)
        return {"advantages": adv.whiten(adv.returns_to_go(each, mask, loss.gamma), mask)}
    shaped = (scores - penalties.sum(-1)).view_as(rewards)
    if rules.advantages == "others":
        found = adv.leave_one_out(shaped)
    else:
        found = adv.group_relative(shaped, scale=rules.advantages == "group")
    return {"advantages": torch.where(mask, found.flatten()[:, None], 0.0)}
