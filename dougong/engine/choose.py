"""The next token of every row of a batch, each by what its own request asks.

Most rows are greedy or cut the vocabulary to a few tokens, so: the finite check, the greedy answer and its value come
from one pass over the logits; a distribution is cut on a short list of the best tokens wherever that provably gives
what the whole vocabulary would, and on the whole vocabulary elsewhere. Which of them a row takes depends on its own
logits alone: the batch around it never matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine.filters import distribution, draw, penalise_presence, penalise_repetition, remaining
from dougong.engine.grammar import apply_masks
from dougong.engine.largest import argmax, topk
from dougong.engine.sampling import Sampling
from dougong.parts.shapes import Float, Int

# Best tokens that are looked at for a nucleus, first and where those are too few; sorting all takes far longer.
SHORT_LISTS = (256, 8192)
# Numbers that are drawn from at once: what fits into a processor's cache is passed over several times at little cost.
_AT_ONCE = 1 << 18


@runtime_checkable
class Guide(Protocol):
    """What says which tokens may come next."""

    def mask(self) -> Int[Tensor, " words"]:
        """Allowed tokens, 32 to an int32, the lowest bit first."""
        ...


@runtime_checkable
class Row(Protocol):
    """What choosing needs to know of a request."""

    @property
    def sampling(self) -> Sampling: ...
    @property
    def generator(self) -> torch.Generator: ...
    @property
    def prompt(self) -> Sequence[int]: ...
    @property
    def output(self) -> Sequence[int]:
        """Ids generated so far."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end its text."""
        ...

    @property
    def matcher(self) -> Guide | None:
        """Where its output stands in its grammar."""
        ...


@dataclass(frozen=True)
class Ahead:
    """A request as it would be if it had said `output`: for those who look several tokens ahead, or along beams."""

    sampling: Sampling
    generator: torch.Generator
    prompt: Sequence[int]
    output: Sequence[int]
    ends: frozenset[int]
    matcher: Guide | None = None


class Choice(NamedTuple):
    """token: None where nothing is allowed (bans and grammar leave no token). logprob: of the token under the model
    itself, log softmax(logits), untempered; 0 where not asked for. top: the most probable (id, log-probability)."""

    token: int | None
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def choose(logits: Float[Tensor, "B V"], rows: Sequence[Row]) -> list[Choice]:
    """The next token of each row. Draws take one number of the row's generator each; the matchers are not moved on.

    Raises DougongError when logits are not finite.
    """
    logits = logits.float()
    best = greedy = argmax(logits)
    if not bool(logits.gather(-1, best[:, None]).isfinite().all()):
        raise DougongError("the model's logits are not finite; its weights are damaged, or overflow in this dtype")
    scores = adjusted(logits, rows)
    dead: list[bool] | None = None
    if scores is not logits:
        greedy = argmax(scores)
        dead = (scores.gather(-1, greedy[:, None])[:, 0] == -torch.inf).tolist()
    tokens = greedy
    drawn = [row for row, each in enumerate(rows) if not each.sampling.greedy and not (dead and dead[row])]
    if drawn:
        tokens = greedy.clone()
        whole = len(drawn) == len(rows)
        uniform = uniforms([rows[row].generator for row in drawn], logits.device)
        tokens[drawn] = sampled(scores if whole else scores[drawn], [rows[row].sampling for row in drawn], uniform)
    return told(logits, tokens, rows, dead, best)


def told(
    logits: Float[Tensor, "B V"],
    tokens: Int[Tensor, " B"],
    rows: Sequence[Row],
    dead: Sequence[bool] | None = None,
    best: Int[Tensor, " B"] | None = None,
) -> list[Choice]:
    """Tokens that were chosen, with the log-probabilities that their requests asked for. dead: rows that have none.
    best: where each row's largest logit stands, if that is known."""
    wanted = [row for row, each in enumerate(rows) if each.sampling.logprobs or each.sampling.top_logprobs]
    logprobs = [0.0] * len(rows)
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(rows)
    if wanted:
        own = logits if len(wanted) == len(rows) else logits[wanted]
        norm = log_norm(own, None if best is None else best[wanted])
        chosen = own.gather(-1, tokens[wanted][:, None])[:, 0] - norm
        for row, value in zip(wanted, chosen.tolist(), strict=True):
            logprobs[row] = value if rows[row].sampling.logprobs else 0.0
        most = min(max(rows[row].sampling.top_logprobs for row in wanted), logits.shape[-1])
        if most:
            values, ids = topk(own, most)
            pairs = zip(wanted, ids.tolist(), (values - norm[:, None]).tolist(), strict=True)
            for row, some, scored in pairs:
                count = rows[row].sampling.top_logprobs
                tops[row] = tuple(zip(some[:count], scored[:count], strict=True))
    return [
        Choice(None if dead is not None and dead[row] else token, logprobs[row], tops[row])
        for row, token in enumerate(tokens.tolist())
    ]


def log_norm(logits: Float[Tensor, "B V"], best: Int[Tensor, " B"] | None = None) -> Float[Tensor, " B"]:
    """log sum exp(logits), by way of softmax, whose one fused pass takes a quarter of logsumexp's time on a CPU: the
    best token has the probability exp(best) / sum, which is at least 1 / V and so loses nothing in float32."""
    best = (argmax(logits) if best is None else best)[:, None]
    return (logits.gather(-1, best) - logits.softmax(-1).gather(-1, best).log())[:, 0]


def uniforms(generators: Sequence[torch.Generator], device: torch.device) -> Float[Tensor, " B"]:
    """One number in [0, 1) of each. On the CPU whatever the device: a seed then means the same everywhere."""
    return torch.cat([torch.rand(1, generator=each, dtype=torch.float64) for each in generators]).to(device)


def adjusted(scores: Float[Tensor, "B V"], rows: Sequence[Row]) -> Float[Tensor, "B V"]:
    """Scores after what each row asks: bias, penalties, bans, grammar, forced tokens. A copy, or `scores` itself where
    nothing is asked. The order is that of transformers, where it has them."""
    asking = [row for row, each in enumerate(rows) if each.sampling.adjusts]
    guided = [row for row, each in enumerate(rows) if each.matcher is not None]
    if not asking and not guided:
        return scores
    scores = scores.clone()
    vocab = scores.shape[-1]
    if asking:
        _add_bias(scores, [(row, rows[row].sampling.logit_bias) for row in asking])
        _penalise(scores, [(row, rows[row]) for row in asking])
        out = [(row, token) for row in asking for token in _banned(rows[row]) if token < vocab]
        if out:
            at, ids = torch.tensor(out, device=scores.device).T
            scores[at, ids] = -torch.inf
    if guided:
        masks = torch.full((len(rows), (vocab + 31) // 32), -1, dtype=torch.int32)
        for row in guided:
            matcher = rows[row].matcher
            assert matcher is not None
            masks[row] = matcher.mask()
        apply_masks(scores, masks)
    for row in asking:
        forced, done = rows[row].sampling.forced, len(rows[row].output)
        if done < len(forced):
            scores[row] = -torch.inf
            scores[row, forced[done]] = 0
    return scores


def _add_bias(scores: Tensor, biases: Sequence[tuple[int, tuple[tuple[int, float], ...]]]) -> None:
    flat = [(row, token, bias) for row, pairs in biases for token, bias in pairs if token < scores.shape[-1]]
    if flat:
        at, ids, values = zip(*flat, strict=True)
        device = scores.device
        place = (torch.tensor(at, device=device), torch.tensor(ids, device=device))
        scores.index_put_(place, torch.tensor(values, device=device, dtype=scores.dtype), accumulate=True)


def _penalise(scores: Tensor, rows: Sequence[tuple[int, Row]]) -> None:
    seen = [(at, [*row.prompt, *row.output]) for at, row in rows if row.sampling.repetition_penalty != 1]
    if seen:
        penalty = [row.sampling.repetition_penalty for _, row in rows if row.sampling.repetition_penalty != 1]
        sizes, at, ids = _places(seen, scores.device)
        penalise_repetition(scores, at, ids, _spread(penalty, sizes, scores))
    asking = [
        (at, row)
        for at, row in rows
        if row.output and (row.sampling.presence_penalty or row.sampling.frequency_penalty)
    ]
    if asking:
        sizes, at, ids = _places([(at, row.output) for at, row in asking], scores.device)
        presence = _spread([row.sampling.presence_penalty for _, row in asking], sizes, scores)
        frequency = _spread([row.sampling.frequency_penalty for _, row in asking], sizes, scores)
        penalise_presence(scores, at, ids, presence, frequency)


def _places(groups: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes of groups of ids in one row each, and side by side the rows and the ids of all."""
    sizes = torch.tensor([len(ids) for _, ids in groups])
    at = torch.tensor([row for row, _ in groups]).repeat_interleave(sizes)
    ids = torch.tensor([token for _, some in groups for token in some], dtype=torch.int64)
    return sizes, at.to(device), ids.to(device)


def _spread(values: Sequence[float], sizes: Tensor, like: Tensor) -> Tensor:
    """Each value as often as its group has ids."""
    return torch.tensor(values, dtype=like.dtype).repeat_interleave(sizes).to(like.device)


def _banned(row: Row) -> list[int]:
    """Ids that may not come next."""
    out: list[int] = []
    for each in row.sampling.banned:
        if isinstance(each, int):
            out.append(each)
            continue
        before = list(each[:-1])
        if not before or (list(row.prompt[-len(before) :]) + list(row.output))[-len(before) :] == before:
            out.append(each[-1])
    if len(row.output) < row.sampling.min_tokens:
        out += row.ends
    return out


def sampled(
    scores: Float[Tensor, "B V"], samplings: Sequence[Sampling], uniform: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """A token of each row, drawn by inversion of its cut distribution with the row's number."""
    tokens = torch.empty(scores.shape[0], dtype=torch.int64, device=scores.device)
    alike: dict[tuple[float, int | None, float, float, float], list[int]] = {}
    for row, each in enumerate(samplings):
        key = (each.temperature, each.top_k, each.top_p, each.min_p, each.typical_p)
        alike.setdefault(key, []).append(row)
    for key, rows in alike.items():
        size = max(1, _AT_ONCE // scores.shape[-1]) if scores.device.type == "cpu" else len(rows)
        lists = SHORT_LISTS if key[1] is None else (key[1] + 1,)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            own = scores[part[0] : part[-1] + 1] if part[-1] - part[0] == len(part) - 1 else scores[part]
            tokens[part] = _drawn(own, samplings[part[0]], uniform[part], lists)
    return tokens


def _drawn(
    scores: Float[Tensor, "B V"], sampling: Sampling, uniform: Float[Tensor, " B"], lists: Sequence[int]
) -> Int[Tensor, " B"]:
    """Draw on the first of the short lists that is long enough, row by row, or on the whole vocabulary."""
    if not lists or 4 * lists[0] > scores.shape[-1] or (sampling.top_k is None and sampling.top_p >= 1):
        return draw(distribution(scores, sampling), uniform)
    values, ids = topk(scores, lists[0])
    if sampling.top_k is not None:
        # One more than asked for: where the last two tie, top_k keeps tokens beyond the list.
        enough = values[:, -1] < values[:, -2]
        probabilities = distribution(values[:, :-1], sampling)
    else:
        scaled = (scores - values[:, :1]) / sampling.temperature
        each = scaled.softmax(-1).gather(-1, ids)
        before = each.cumsum(-1, dtype=torch.float64) - each
        # What the list leaves out is outside the nucleus where that ends in the list (a little earlier, for rounding).
        enough = before[:, -1] > sampling.top_p + 1e-6
        inside = scaled.gather(-1, ids).masked_fill(before >= sampling.top_p, -torch.inf)
        probabilities = remaining(inside, sampling)
    tokens = ids.gather(-1, draw(probabilities, uniform)[:, None])[:, 0]
    if not bool(enough.all()):
        rest = (~enough).nonzero()[:, 0]
        tokens[rest] = _drawn(scores[rest], sampling, uniform[rest], lists[1:])
    return tokens
