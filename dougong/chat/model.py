"""ChatModel: all that applications know of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dougong.base import DougongError
from dougong.chat.delta import Delta, collect
from dougong.chat.message import Message, Tool

if TYPE_CHECKING:
    from dougong.engine import Sampling


class ChatError(DougongError):
    """A model did not answer. status: of HTTP, None where the connection failed. retry_after: seconds, if told."""

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None):
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class ChatModel(ABC):
    """Answers conversations."""

    @abstractmethod
    def stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        schema: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Delta]:
        """The answer as it comes; see `complete`. Closing the iterator ends the work."""

    def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        schema: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
    ) -> Message:
        """The assistant's next message.

        tools: what the model may call; its calls are in the answer's `tool_calls`, and whoever asked runs them.
        schema: a JSON schema that the answer's content obeys. sampling: how tokens are chosen (default: the model's own
        way). Raises DougongError for what cannot be asked, ChatError when no answer comes. Malformed calls do not
        raise: they are in the content, with a note.
        """
        return collect(self.stream(messages, tools, schema, sampling))
