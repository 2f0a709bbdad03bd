"""An answer that an endpoint streams as server-sent events: lines of "data: " with a piece in JSON, the last "[DONE]".

Nothing is believed of the other side: every shape of JSON is an answer or a ChatError, and neither a line without an
end nor arguments without an end fill the memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from dougong.chat.delta import Delta
from dougong.chat.message import Usage, read_calls
from dougong.chat.model import ChatError

LONGEST = 16 << 20
"""characters of a line, of a call's arguments, of an answer that comes whole"""
_END = re.compile(r"\r\n|\n|\r")


def deltas(texts: Iterable[str], url: str) -> Iterator[Delta]:
    """Pieces of the answer, out of the stream's text as it arrives. Calls are held until all of their arguments are
    there; meanwhile, and for events that say nothing, empty pieces come, so that whoever reads can stop reading.

    Raises ChatError for an event that is malformed, and for a stream that ends before [DONE].
    """
    calls: dict[int, _Call] = {}
    reason: str | None = None
    usage: Usage | None = None
    for data in _events(texts, url):
        usage = usage_of(data.get("usage")) or usage
        heard = False
        try:
            for choice in data.get("choices") or ():
                piece = choice.get("delta") or {}
                thought = piece.get("reasoning_content") or piece.get("reasoning")
                if thought:
                    heard = True
                    yield Delta(reasoning=_text(thought))
                if piece.get("content"):
                    heard = True
                    yield Delta(content=_text(piece["content"]))
                for part in piece.get("tool_calls") or ():
                    calls.setdefault(int(part.get("index") or 0), _Call()).add(part, url)
                reason = _text(choice.get("finish_reason") or reason or "")
        except (AttributeError, TypeError, ValueError):
            raise ChatError(f"{url} sent an event that is malformed: {data!r:.120}") from None
        if not heard:
            yield Delta()
    for _, call in sorted(calls.items()):
        function = {"name": call.name, "arguments": "".join(call.arguments)}
        made, spoiled = read_calls([{"id": call.id, "function": function}], f"the answer of {url}")
        yield from (Delta(call=each) for each in made)
        yield from (
            Delta(content=text, note=f"a call is malformed and was left as text: {text[:80]}") for text in spoiled
        )
    yield Delta(finish_reason=reason or "stop", usage=usage)


class _Call:
    """A call as it comes."""

    def __init__(self) -> None:
        self.id: str | None = None
        self.name = ""
        self.arguments: list[str] = []
        self.length = 0

    def add(self, part: Any, url: str) -> None:
        function = part.get("function") or {}
        self.id = part.get("id") or self.id
        self.name += _text(function.get("name") or "")
        self.arguments.append(_text(function.get("arguments") or ""))
        self.length += len(self.arguments[-1])
        if self.length > LONGEST or len(self.name) > LONGEST:
            raise ChatError(f"{url} sent a call of more than {LONGEST:,} characters", 400)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _events(texts: Iterable[str], url: str) -> Iterator[dict[str, Any]]:
    """The objects of the stream; {} for a line that holds none. Raises ChatError when it ends before [DONE]."""
    spoke = False
    for line in _lines(texts, url):
        name, _, value = line.partition(":")
        if name != "data":
            if line or not spoke:  # else the blank line that ends an event
                yield {}
            spoke = False
            continue
        spoke = True
        if value.strip() == "[DONE]":
            return
        try:
            data = json.loads(value)
        except (ValueError, RecursionError):
            raise ChatError(f"{url} sent an event that is no JSON: {value[:120]!r}") from None
        if isinstance(data, dict) and data.get("error"):
            error = data["error"]
            raise ChatError(f"{url}: {error.get('message') if isinstance(error, dict) else error}")
        yield data if isinstance(data, dict) else {}
    raise ChatError(f"{url} broke off its answer before [DONE]")


def _lines(texts: Iterable[str], url: str) -> Iterator[str]:
    """Whole lines. Raises ChatError for one that is too long."""
    kept: list[str] = []
    length = 0
    for text in texts:
        first, *rest = _END.split(text)
        kept.append(first)
        length += len(first)
        if length > LONGEST:
            raise ChatError(f"{url} sent a line of more than {LONGEST:,} characters", 400)
        if rest:
            yield "".join(kept)
            yield from rest[:-1]
            kept, length = [rest[-1]], len(rest[-1])
    yield "".join(kept)


def usage_of(data: Any) -> Usage | None:
    """Tokens as the endpoint counts them; None where it does not say, or says something else than numbers."""
    if not isinstance(data, dict):
        return None
    details = data.get("prompt_tokens_details")
    counts = [
        data.get("prompt_tokens"),
        data.get("completion_tokens"),
        details.get("cached_tokens") if isinstance(details, dict) else 0,
    ]
    whole = [count if isinstance(count, int) and count >= 0 else 0 for count in counts]
    return Usage(*whole)
