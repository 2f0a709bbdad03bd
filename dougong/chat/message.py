"""What is said: messages, tools and calls of tools, frozen, and their form in OpenAI's API and in chat templates."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dougong.base import DougongError

Role = Literal["system", "user", "assistant", "tool"]

_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """Nine letters and digits: the strictest form that any template asks for (Mistral's)."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


@dataclass(frozen=True)
class ToolCall:
    """A model asks for tool `name` with `arguments` (an object); `id` ties the result to it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_call_id, compare=False)

    def to_openai(self) -> dict[str, Any]:
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


@dataclass(frozen=True)
class Tool:
    """What a model may call: its name, what it does, and the JSON schema (an object) of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or len(self.name) > 128:
            raise DougongError(f"a tool's name is {self.name!r:.60}; expected 1 to 128 characters")
        if not isinstance(self.parameters, Mapping):
            raise DougongError(f"the parameters of the tool {self.name} are {self.parameters!r:.60}; expected a schema")

    def to_openai(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @staticmethod
    def from_openai(data: Any) -> Tool:
        """Read {"type": "function", "function": {...}} or the function alone. Raises DougongError."""
        function = data.get("function", data) if isinstance(data, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DougongError(f'a tool is {data!r:.80}; expected {{"type": "function", "function": {{"name": ...}}}}')
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        return Tool(function["name"], function.get("description") or "", parameters)


@dataclass(frozen=True)
class Usage:
    """Tokens read and tokens written; `cached` of the read ones were already computed."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    role          system, user, assistant or tool
    content       the text
    reasoning     what an assistant thought before it (never sent to the user unasked)
    tool_calls    what an assistant asks for
    tool_call_id  of a tool's message: the call that it answers
    name          of a tool's message: the tool; of a user's: who speaks
    Of a model's answer besides: why it ended ("stop", "length", "tool_calls", or as an endpoint says), what it cost,
    and notes on what was malformed in it.
    """

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    finish_reason: str | None = field(default=None, compare=False)
    usage: Usage | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise DougongError(f"a message's role is {self.role!r}; expected {', '.join(get_args(Role))}")
        if not isinstance(self.content, str):
            raise DougongError(f"the content of the {self.role}'s message is {self.content!r:.60}; expected text")
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))

    def to_openai(self) -> dict[str, Any]:
        """As requests carry it."""
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            data["reasoning_content"] = self.reasoning
        if self.tool_calls:
            data["tool_calls"] = [call.to_openai() for call in self.tool_calls]
        if self.tool_call_id is not None:
            data["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            data["name"] = self.name
        return data

    @staticmethod
    def from_openai(data: Any, where: str = "the message") -> Message:
        """Read a message of a request or an answer. Raises DougongError that names `where`.

        "developer" is a system role; content may be null or a list of text parts. Calls whose arguments are no JSON
        object become text, with a note.
        """
        if not isinstance(data, Mapping):
            raise DougongError(f"{where} is {data!r:.60}; expected an object with role and content")
        role = {"developer": "system", "function": "tool"}.get(data.get("role", ""), data.get("role"))
        content = _text(data.get("content"), f"{where}.content")
        calls, spoiled = read_calls(data.get("tool_calls") or (), where)
        reasoning = data.get("reasoning_content") or data.get("reasoning")
        for name in ("name", "tool_call_id"):
            if data.get(name) is not None and not isinstance(data[name], str):
                raise DougongError(f"{where}.{name} is {data[name]!r:.60}; expected text")
        return Message(
            role=role,  # pyright: ignore[reportArgumentType]  (checked by the message)
            content="\n".join([content, *spoiled] if content else spoiled),
            reasoning=reasoning if isinstance(reasoning, str) else "",
            tool_calls=calls,
            tool_call_id=data.get("tool_call_id"),
            name=data.get("name"),
            notes=tuple(f"a call is malformed and was left as text: {text[:80]}" for text in spoiled),
        )


def _text(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise DougongError(f"{where} is {content!r:.60}; expected text or a list of text parts")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise DougongError(
                f'{where} has a part {kind!r:.60}; this model takes {{"type": "text", "text": ...}} alone'
            )
        texts.append(part["text"])
    return "\n".join(texts)


def read_calls(data: Any, where: str) -> tuple[tuple[ToolCall, ...], list[str]]:
    """Calls of a message in OpenAI's form, and the text of those that are malformed."""
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise DougongError(f"{where}.tool_calls is {data!r:.60}; expected a list")
    calls: list[ToolCall] = []
    spoiled: list[str] = []
    for call in data:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        made = call_from(function, call.get("id")) if isinstance(function, Mapping) else None
        if made is None:
            spoiled.append(json.dumps(call, ensure_ascii=False, default=str))
        else:
            calls.append(made)
    return tuple(calls), spoiled


def call_from(function: Any, call_id: Any = None) -> ToolCall | None:
    """A call from {"name": ..., "arguments" or "parameters": an object, or JSON text of one}; None if it is none."""
    if not isinstance(function, Mapping):
        return None
    name = function.get("name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    arguments = {} if arguments is None else arguments
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments, call_id) if isinstance(call_id, str) and call_id else ToolCall(name, arguments)
