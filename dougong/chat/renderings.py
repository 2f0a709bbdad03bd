"""Messages as chat templates take them, in the forms that templates differ in.

Templates want arguments as an object or as JSON text, empty content as "" or null, call ids of nine letters, a system
message or none. Rather than guessing from a template's text, the forms are tried in turn until one is rendered in which
every tool, call and result is there. The last forms need no template that knows tools: they spell them in the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dougong.chat.message import Message, Tool


@dataclass(frozen=True)
class Rendering:
    """One form of a conversation."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


def renderings(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[Rendering]:
    """The forms to try, the most usual first."""
    messages = named_results(messages)
    given = [tool.to_openai() for tool in tools] or None
    called = any(message.tool_calls or message.role == "tool" for message in messages)
    for short in (False, True) if called else (False,):
        for empty in ("", None) if called else ("",):
            for as_text in (False, True) if called else (False,):
                yield Rendering([_plain(message, as_text, empty, short) for message in messages], given)
    if messages[0].role == "system":
        yield Rendering([_plain(message) for message in _system_inside(messages)], given)
    if called or tools:
        spelled = _spelled(messages, tools)
        yield Rendering([_plain(message) for message in spelled], None)
        yield Rendering([_plain(message) for message in _system_inside(spelled)], None)


def shown(text: str, messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    """Whether a rendered conversation holds every tool, every call and what users and tools said."""
    needed = [tool.name for tool in tools]
    needed += [call.name for message in messages for call in message.tool_calls]
    needed += [message.content.strip() for message in messages if message.role in ("user", "tool")]
    return all(each in text or _escaped(each) in text or _escaped(each, True) in text for each in needed)


def _escaped(text: str, ascii_only: bool = False) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def named_results(messages: Sequence[Message]) -> list[Message]:
    """Every tool's message with the tool's name, found by the id of its call, which some templates print."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    out = []
    for message in messages:
        name = names.get(message.tool_call_id or "") if message.role == "tool" and not message.name else None
        out.append(replace(message, name=name) if name else message)
    return out


def _plain(message: Message, as_text: bool = False, empty: str | None = "", short: bool = False) -> dict[str, Any]:
    def call_id(given: str) -> str:
        return hashlib.sha256(given.encode()).hexdigest()[:9] if short else given

    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        data["reasoning_content"] = message.reasoning
    if message.tool_calls:
        data["content"] = message.content or empty
        data["tool_calls"] = [
            {
                "id": call_id(call.id),
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False) if as_text else call.arguments,
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        data["tool_call_id"] = call_id(message.tool_call_id)
    if message.name is not None:
        data["name"] = message.name
    return data


def _system_inside(messages: Sequence[Message]) -> list[Message]:
    """The system message at the head of the first user's."""
    if messages[0].role != "system" or len(messages) < 2 or messages[1].role != "user":
        return list(messages)
    joined = Message("user", f"{messages[0].content}\n\n{messages[1].content}", name=messages[1].name)
    return [joined, *messages[2:]]


_HOW = (
    "You can call these tools:\n{tools}\n"
    'To call one, write <tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call>, once for each call.'
)


def _spelled(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Tools in the system message, calls in the assistant's text, results as messages of the user."""
    out = list(messages)
    if tools:
        listed = "\n".join(json.dumps(tool.to_openai()["function"], ensure_ascii=False) for tool in tools)
        how = _HOW.format(tools=listed)
        if out[0].role == "system":
            out[0] = Message("system", f"{out[0].content}\n\n{how}")
        else:
            out.insert(0, Message("system", how))
    spelled: list[Message] = []
    for message in out:
        if message.role == "tool":
            result = f"<tool_response>\n{message.content}\n</tool_response>"
            if spelled and spelled[-1].role == "user":
                spelled[-1] = Message("user", f"{spelled[-1].content}\n{result}")
            else:
                spelled.append(Message("user", result))
        elif message.tool_calls:
            calls = [
                json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
                for call in message.tool_calls
            ]
            tagged = [f"<tool_call>{call}</tool_call>" for call in calls]
            spelled.append(Message("assistant", "\n".join([message.content, *tagged] if message.content else tagged)))
        else:
            spelled.append(message)
    return spelled
