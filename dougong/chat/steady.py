"""A model that is asked for its most probable answer, so that what is measured can be measured again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, final

from dougong.chat.delta import Delta
from dougong.chat.message import Message, Tool
from dougong.chat.model import ChatModel

if TYPE_CHECKING:
    from dougong.engine import Sampling


@final
class Steady(ChatModel):
    """Another model, greedy and with answers of at most `longest` tokens wherever the caller names no sampling."""

    def __init__(self, base: ChatModel, longest: int = 256):
        self._base, self._longest = base, longest

    def stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        schema: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Delta]:
        from dougong.engine import Sampling

        chosen = Sampling(temperature=0.0, max_tokens=self._longest) if sampling is None else sampling
        return self._base.stream(messages, tools, schema, chosen)
