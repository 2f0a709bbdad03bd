"""What every ChatModel keeps to; a new one inherits `ChatModelContract` and says how it is made."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dougong.chat import ChatModel, Message, Tool, ToolCall, collect

ASK = [Message("user", "hi")]
WEATHER = Tool("weather", "now", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})


class ChatModelContract(ABC):
    """model(reply): a model that answers so, each time it is asked."""

    @abstractmethod
    def model(self, reply: Message) -> ChatModel: ...

    def test_an_answer(self) -> None:
        model = self.model(Message("assistant", "你好 😀\n there"))
        answer = model.complete(ASK)
        assert answer == Message("assistant", "你好 😀\n there")
        assert answer.finish_reason == "stop"
        assert answer.usage is not None

    def test_streamed_it_is_the_same(self) -> None:
        model = self.model(Message("assistant", "hello there", tool_calls=(ToolCall("weather", {"city": "北京"}),)))
        deltas = list(model.stream(ASK, tools=[WEATHER]))
        assert collect(deltas) == model.complete(ASK, tools=[WEATHER])
        assert len(deltas) > 2
        assert collect(deltas).finish_reason == "tool_calls"

    def test_parallel_calls_and_reasoning(self) -> None:
        calls = tuple(ToolCall("weather", {"city": city}) for city in ("北京", "Rome"))
        reply = Message("assistant", "I look.", "Two cities.", calls)
        assert self.model(reply).complete(ASK, tools=[WEATHER]) == reply

    def test_a_conversation_with_results(self) -> None:
        call = ToolCall("weather", {"city": "Rome"})
        talk = [*ASK, Message("assistant", tool_calls=(call,)), Message("tool", "sunny", tool_call_id=call.id)]
        assert self.model(Message("assistant", "Sunny.")).complete(talk, tools=[WEATHER]).content == "Sunny."

    def test_a_stream_can_be_left(self) -> None:
        model = self.model(Message("assistant", "hello there"))
        stream = model.stream(ASK)
        next(stream)
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert model.complete(ASK).content == "hello there"
