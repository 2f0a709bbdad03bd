"""What a request may ask of the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from dougong.base import DougongError
from dougong.engine.grammar import Grammar
from dougong.engine.processor import LogitsProcessor

Speculation = Literal["prompt_lookup", "mtp", "draft"]


@dataclass(frozen=True)
class Contrastive:
    """Contrastive search (Su et al. 2022): of the k most probable tokens take the one that maximises
    (1 - alpha) p(token) - alpha max_j cos(h(token), h_j), which punishes hidden states that have been there before."""

    alpha: float = 0.6
    k: int = 4

    def __post_init__(self) -> None:
        if not _is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise _wrong("contrastive.alpha", self.alpha, "a number from 0 (greedy) to 1")
        if not _is_int(self.k) or self.k < 1:
            raise _wrong("contrastive.k", self.k, "a whole number from 1")


@dataclass(frozen=True)
class Sampling:
    """How the next tokens are chosen, and when to stop. The defaults sample from the model's own distribution.

    max_tokens          at most this many new tokens (fewer where the model's context ends first)
    min_tokens          no end-of-text id and no stop id before this many
    temperature         logits are divided by it; 0 takes the most probable token (greedy)
    top_k               only the k most probable tokens; None for all
    top_p               only the fewest tokens whose probabilities sum to p or more; 1 for all
    min_p               only tokens at least min_p times as probable as the most probable one; 0 for all
    typical_p           only the tokens whose surprise is nearest to the expected one, up to probability p; 1 for all
    repetition_penalty  of tokens in prompt or answer positive logits are divided by it, others multiplied; 1: off
    presence_penalty    taken off the logit of every token that the answer has already
    frequency_penalty   the same, once for each time that it has it
    logit_bias          pairs (id, bias), or a mapping: added to the logits
    banned              ids that never come; a sequence of ids bans its last one where the others stand before it
    forced              ids with which the answer begins
    seed                of this request alone: what shares the batch does not matter. Requests with equal prompts and
                        equal seeds get equal answers; None draws a fresh seed
    stop                strings that end the text; they are cut from it, wherever token borders lie
    include_stop        leave the stop string in the text
    stop_ids            ids that end the text besides the model's own end-of-text ids
    ignore_eos          go on past end-of-text ids, up to max_tokens (for benchmarks)
    logprobs            report the chosen tokens' log-probabilities
    top_logprobs        report this many most probable tokens at each place
    n                   answers to each prompt; answer i has the seed seed + i
    best_of             draw this many and give the n with the highest mean log-probability; None: n
    beams               width of a beam search, which gives the n best of them; 1: none. It scores by log-probability
                        alone, so temperature and seed are without effect
    length_penalty      a finished beam's score is its sum of log-probabilities / tokens ** length_penalty
    early_stopping      True: end a beam search with `beams` finished ones; False: when no running beam's score now is
                        better than theirs; "never": only when none could become better
    contrastive         a contrastive search in place of drawing (temperature and seed are without effect)
    speculation         guess tokens ahead and keep what the model confirms; the distribution stays the model's own.
                        "prompt_lookup": what followed the last tokens before; "mtp": the model's own further layers;
                        "draft": the engine's draft model
    draft_tokens        tokens guessed at a time
    grammar             what the answer must match
    processor           makes another distribution of the model's own, from its logits and hidden states (a kNN-LM);
                        everything else here, and the log-probabilities reported, are then of that one

    Logits are changed in the order processor, logit_bias, repetition_penalty, presence and frequency penalty, banned,
    min_tokens, grammar, forced; then the temperature acts, then top_k, top_p, min_p and typical_p. Raises DougongError
    that names field, value and remedy.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = True
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[int | tuple[int, ...], ...] = ()
    forced: tuple[int, ...] = ()
    min_tokens: int = 0
    include_stop: bool = False
    top_logprobs: int = 0
    n: int = 1
    best_of: int | None = None
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    contrastive: Contrastive | None = None
    speculation: Speculation | None = None
    draft_tokens: int = 4
    grammar: Grammar | None = None
    processor: LogitsProcessor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "stop_ids", _ids("stop_ids", self.stop_ids))
        object.__setattr__(self, "forced", _ids("forced", self.forced))
        object.__setattr__(self, "banned", _banned(self.banned))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        for name, least in (("max_tokens", 1), ("min_tokens", 0), ("n", 1), ("beams", 1), ("draft_tokens", 1)):
            self._whole(name, least)
        self._whole("top_logprobs", 0)
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise _wrong("temperature", self.temperature, "0 for greedy, or a positive number")
        if self.top_k is not None and (not _is_int(self.top_k) or self.top_k < 1):
            raise _wrong("top_k", self.top_k, "a whole number from 1, or None for all tokens")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value <= 1:
                raise _wrong(name, value, "a number above 0 and up to 1 (1 for all tokens)")
        if not _is_number(self.min_p) or not 0 <= self.min_p <= 1:
            raise _wrong("min_p", self.min_p, "a number from 0 (all tokens) to 1")
        if not _is_number(self.repetition_penalty) or not 0 < self.repetition_penalty < math.inf:
            raise _wrong("repetition_penalty", self.repetition_penalty, "a number above 0 (1 for none)")
        for name in ("presence_penalty", "frequency_penalty", "length_penalty"):
            value = getattr(self, name)
            if not _is_number(value) or not math.isfinite(value):
                raise _wrong(name, value, "a finite number")
        if self.seed is not None and (not _is_int(self.seed) or not 0 <= self.seed < 1 << 63):
            raise _wrong("seed", self.seed, "a whole number from 0 to 2^63 - 1, or None for a fresh one")
        self._check_searches()

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not _is_int(value) or value < least:
            raise _wrong(name, value, f"a whole number from {least}")

    def _check_searches(self) -> None:
        """What several fields say together."""
        if self.best_of is not None and (not _is_int(self.best_of) or self.best_of < self.n):
            raise _wrong("best_of", self.best_of, f"a whole number from n = {self.n}, or None")
        if self.best_of is not None and self.best_of > self.n and not self.logprobs:
            raise _wrong("logprobs", self.logprobs, "True with best_of, which ranks by them")
        if self.beams > 1 and self.n > self.beams:
            raise _wrong("n", self.n, f"at most beams = {self.beams}")
        if self.early_stopping not in (True, False, "never"):
            raise _wrong("early_stopping", self.early_stopping, "True, False or 'never'")
        if self.contrastive is not None and not isinstance(self.contrastive, Contrastive):
            raise _wrong("contrastive", self.contrastive, "Contrastive(alpha, k), or None")
        if self.speculation not in (None, "prompt_lookup", "mtp", "draft"):
            raise _wrong("speculation", self.speculation, "'prompt_lookup', 'mtp', 'draft' or None")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise _wrong("grammar", self.grammar, "a Grammar such as Grammar.json_schema(...), or None")
        if self.processor is not None and not isinstance(self.processor, LogitsProcessor):
            raise _wrong("processor", self.processor, "a LogitsProcessor, with check and process, or None")
        if self.grammar is not None and (self.ignore_eos or self.min_tokens):
            raise DougongError("a grammar says where the text ends; leave ignore_eos and min_tokens out")
        if self.min_tokens > self.max_tokens:
            raise _wrong("min_tokens", self.min_tokens, f"at most max_tokens = {self.max_tokens}")
        searches = [
            name
            for name, on in (
                ("beams", self.beams > 1),
                ("contrastive", self.contrastive is not None),
                ("speculation", self.speculation is not None),
            )
            if on
        ]
        if len(searches) > 1:
            raise DougongError(f"{' and '.join(searches)} are different ways to go on; choose one")
        cuts = self.top_k is not None or self.top_p < 1 or self.min_p > 0 or self.typical_p < 1
        if cuts and (self.beams > 1 or self.contrastive is not None):
            raise DougongError(f"{searches[0]} does not draw, so top_k, top_p, min_p and typical_p mean nothing to it")
        if searches and self.best_of is not None and self.best_of > self.n:
            raise _wrong("best_of", self.best_of, f"None with {searches[0]}")
        if self.contrastive is not None and self.n > 1:
            raise _wrong("n", self.n, "1 with contrastive, which draws nothing: all answers would be equal")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @cached_property
    def adjusts(self) -> bool:
        """Whether logits are changed (or masked) before a token is chosen, the grammar left aside."""
        return bool(
            self.logit_bias
            or self.banned
            or self.forced
            or self.min_tokens
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
        )


def _wrong(name: str, value: Any, expected: str) -> DougongError:
    return DougongError(f"{name} is {value!r}; expected {expected}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _strings(value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(each, str) and each for each in values):
        raise _wrong("stop", value, "strings of at least one character each")
    return tuple(values)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    values = (value,) if _is_int(value) else value
    if not isinstance(values, Sequence) or not all(_is_int(each) and each >= 0 for each in values):
        raise _wrong(name, value, "token ids, whole numbers from 0")
    return tuple(values)


def _banned(value: Any) -> tuple[int | tuple[int, ...], ...]:
    expected = "token ids, or sequences of at least one id"
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _wrong("banned", value, expected)
    out = tuple(tuple(each) if isinstance(each, Sequence) else each for each in value)
    for each in out:
        ids = each if isinstance(each, tuple) else (each,)
        if not ids or not all(_is_int(token) and token >= 0 for token in ids):
            raise _wrong("banned", value, expected)
    return out


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    try:
        pairs = tuple((each[0], each[1]) for each in (value.items() if isinstance(value, Mapping) else value))
        known = all(_is_int(i) and i >= 0 and _is_number(bias) and math.isfinite(bias) for i, bias in pairs)
    except (TypeError, IndexError, KeyError):
        known, pairs = False, ()
    if not known:
        raise _wrong("logit_bias", value, "pairs of a token id and a finite number, or a mapping")
    return tuple((token, float(bias)) for token, bias in pairs)
