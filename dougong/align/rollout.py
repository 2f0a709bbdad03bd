"""Rollouts: answers and rewards (align/answers.py) made into what an update needs to learn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dougong.align import advantages as adv
from dougong.align.answers import Answered, Prompt, answer, answer_groups, prompt_at, prompts_of, sample_of
from dougong.align.condense import condensed
from dougong.align.kl import check_divergence, next_coefficient
from dougong.align.logprobs import logprobs
from dougong.align.policy import divergence
from dougong.align.reference import as_reference
from dougong.align.rl_recipe import Rl
from dougong.base import DougongError
from dougong.data.batch import IGNORED, Batch
from dougong.engine import Completion
from dougong.hub import LanguageModel
from dougong.model import Model
from dougong.parts.context import Context
from dougong.parts.experts import MoE
from dougong.train.ranks import ALONE, Ranks

__all__ = [
    "Answered",
    "Experience",
    "Prompt",
    "answer",
    "answer_groups",
    "experience",
    "figure_names",
    "of_batch",
    "prompt_at",
    "prompts_of",
    "rows_of",
    "sample_of",
    "state_values",
]


@dataclass(frozen=True, eq=False)
class Experience:
    """A rollout ready to be learnt from: a batch of its answers, each a row, with everything in `further` (of all, or
    where it makes no difference of those that teach something: align/condense.py); the place in the order of prompts,
    and the coefficient of the divergence, with which the next one begins; figures of all answers."""

    batch: Batch
    cursor: int
    coefficient: float
    stats: Mapping[str, float]


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
def of_batch(
    model: Model, batch: Batch, what: str, parts: int, low: bool, temperature: float = 1.0, ranks: Ranks = ALONE
) -> Tensor:
    """(B, T) values of a model over a batch, in `parts`: "logprobs" of the targets, or the "values" of the states in
    which they were chosen. Every rank computes its share of the rows."""
    share = ranks.share(len(batch.tokens))
    if share.start == share.stop:
        return torch.cat(ranks.gather(torch.zeros(0, batch.tokens.shape[1])))
    batch, parts = batch.rows(share.start, share.stop), max(1, parts // ranks.world)
    device = model.like.device
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
    return torch.cat(ranks.gather(torch.cat(found)))


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
    ranks: Ranks = ALONE,
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
        further["old"] = _old(answered, batch, policy.model, recipe, parts, low, ranks)
    kl = torch.zeros(mask.shape)
    if reference is not None:
        with as_reference(reference, policy.model):
            against = of_batch(reference, batch, "logprobs", parts, low, how.temperature, ranks)
        kl = torch.where(mask, divergence(further["old"], against, "k1"), 0.0)
        if rules.kl_in == "loss":
            further["reference"] = against
        per_token = float(torch.where(mask, divergence(further["old"], against), 0.0).sum() / mask.sum())
        check_divergence(recipe.kl, per_token, number)
    penalties = coefficient * kl if rules.kl_in == "reward" else torch.zeros_like(kl)
    further |= _advantages(recipe, answered.rewards, penalties, mask, value, batch, parts, low, ranks)
    answers = len(batch.tokens)
    if not further.keys() - {"advantages"} and not _routed(policy.model):
        batch, further["advantages"] = condensed(batch, further["advantages"], rules.how, ranks.world)
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
    following = next_coefficient(recipe.kl, coefficient, measured, answers)
    done = Batch(batch.tokens, batch.targets, batch.positions, None, batch.filled, further)
    return Experience(done, cursor, following, stats)


def _routed(model: Model) -> bool:
    """Whether routers of experts add a loss of their own, which all rows count in."""
    return any(isinstance(layer.ffn, MoE) for layer in model.spec.layers)


def figure_names(reference: bool) -> list[str]:
    """What further["stats"] of a rollout holds, in order."""
    names = ["reward", "reward_deviation", "answer_tokens", "ended", "equal_groups", "resampled_groups"]
    return [*names, "failed_rewards", *(["kl_answer", "kl_coefficient"] if reference else [])]


def _old(answered: Answered, batch: Batch, model: Model, recipe: Rl, parts: int, low: bool, ranks: Ranks) -> Tensor:
    """Log-probabilities under the policy that answered. The engine's are those of the model itself, so they hold where
    answers were drawn from just that, in the precision that training computes in."""
    if recipe.rollout.temperature != 1 or low:
        return of_batch(model, batch, "logprobs", parts, low, recipe.rollout.temperature, ranks)
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
    ranks: Ranks,
) -> dict[str, Tensor]:
    """The advantages (B, T), and for a value model its values and the returns."""
    rules, loss = recipe.rules, recipe.loss
    scores = rewards.flatten()
    if rules.advantages == "value":
        assert value is not None
        values = torch.where(mask, of_batch(value, batch, "values", parts, low, ranks=ranks), 0.0)
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
