"""An answer as it comes: pieces that put together are the message."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dougong.chat.message import Message, ToolCall, Usage


@dataclass(frozen=True)
class Delta:
    """A piece of an assistant's message; most hold one thing. A call comes whole, when it is known to be well-formed.

    note: what is wrong with the text beside it. finish_reason and usage come with the last piece.
    """

    content: str = ""
    reasoning: str = ""
    call: ToolCall | None = None
    note: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


def collect(deltas: Iterable[Delta]) -> Message:
    """The whole message."""
    pieces = list(deltas)
    return Message(
        role="assistant",
        content="".join(piece.content for piece in pieces),
        reasoning="".join(piece.reasoning for piece in pieces),
        tool_calls=tuple(piece.call for piece in pieces if piece.call is not None),
        finish_reason=next((piece.finish_reason for piece in reversed(pieces) if piece.finish_reason), None),
        usage=next((piece.usage for piece in reversed(pieces) if piece.usage), None),
        notes=tuple(piece.note for piece in pieces if piece.note),
    )
