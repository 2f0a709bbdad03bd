"""What a request means to the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dougong.base import DougongError
from dougong.chat.local import default_sampling
from dougong.serve.errors import APIError
from dougong.serve.limits import Limits
from dougong.serve.requests import Generation

if TYPE_CHECKING:
    from dougong.engine import Sampling
    from dougong.engine.grammar import Grammar
    from dougong.hub import LanguageModel

TOP = 20
"""Most probable tokens told at each place, at most."""

GRAMMAR = 1 << 16
"""Characters of a schema, a regular expression or a grammar, at most."""

_SAME = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p", "typical_p", "n")
_SAME += ("repetition_penalty", "min_tokens", "ignore_eos")


def sampling_of(
    lm: LanguageModel, body: Generation, limits: Limits, asked: int | None, top: int, **more: Any
) -> Sampling:
    """asked: new tokens; top: log-probabilities at each place. Raises APIError that names the field."""
    if body.n is not None and not 1 <= body.n <= limits.answers:
        raise APIError(400, f"n is {body.n}; this server gives 1 to {limits.answers} answers", "n")
    if asked is not None and not 1 <= asked <= limits.max_tokens:
        raise APIError(400, f"max_tokens is {asked}; this server takes 1 to {limits.max_tokens}", "max_tokens")
    if not 0 <= top <= TOP:
        raise APIError(400, f"top_logprobs is {top}; this server takes 0 to {TOP}", "top_logprobs")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    if stop is not None and len(stop) > 16:
        raise APIError(400, f"stop has {len(stop)} texts; this server takes up to 16", "stop")
    fields: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    if body.seed is not None:
        fields["seed"] = body.seed & ((1 << 63) - 1)  # OpenAI's are signed
    if body.top_k is not None and body.top_k <= 0:
        fields["top_k"] = lm.spec.vocab  # -1 and 0 mean all, elsewhere
    try:
        return default_sampling(
            lm,
            max_tokens=asked or limits.max_tokens,
            stop=tuple(stop) if stop else None,
            stop_ids=tuple(body.stop_token_ids) if body.stop_token_ids else None,
            logit_bias=_bias(body.logit_bias, lm.spec.vocab),
            grammar=grammar_of(body),
            top_logprobs=top,
            **fields,
            **more,
        )
    except DougongError as error:
        name = str(error).split(" ", 1)[0]
        raise APIError(400, str(error), name if name in type(body).model_fields else None) from None


def grammar_of(body: Generation) -> Grammar | None:
    """What the answer must match."""
    from dougong.engine.grammar import Grammar

    shape = body.response_format
    try:
        match shape and shape.type:
            case "json_object":
                return Grammar.json()
            case "json_schema":
                return Grammar.json_schema(shape.json_schema.schema_)  # pyright: ignore
            case "regex":
                return Grammar.regex(shape.pattern)  # pyright: ignore
            case "choice":
                return Grammar.choice(shape.choices)  # pyright: ignore
            case "ebnf":
                return Grammar.ebnf(shape.grammar)  # pyright: ignore
    except DougongError as error:
        raise APIError(400, str(error), "response_format") from None
    return None


def check_grammar(grammar: Grammar | None) -> None:
    """Raise APIError for a grammar that cannot be used, before it meets the engine."""
    if grammar is None:
        return
    if len(grammar.text) > GRAMMAR:
        told = f"the {grammar.kind} has {len(grammar.text)} characters; this server takes up to {GRAMMAR}"
        raise APIError(400, told, "response_format")
    try:
        grammar.ebnf_text()
    except DougongError as error:
        raise APIError(400, str(error), "response_format", "invalid_schema") from None
    except ImportError:
        raise APIError(501, "this server lacks the package xgrammar, so it cannot constrain answers") from None


def _bias(given: dict[str, float] | None, vocab: int) -> tuple[tuple[int, float], ...] | None:
    if not given:
        return None
    out = []
    for name, bias in given.items():
        if not name.isascii() or not name.isdigit() or int(name) >= vocab:
            raise APIError(400, f"logit_bias has the key {name!r}; expected token ids below {vocab}", "logit_bias")
        if not -100 <= bias <= 100:
            raise APIError(400, f"logit_bias[{name}] is {bias}; expected -100 to 100", "logit_bias")
        out.append((int(name), bias))
    return tuple(out)
