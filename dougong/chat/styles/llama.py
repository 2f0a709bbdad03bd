"""Llama 3's calls: <|python_tag|> (or nothing) and {"name": ..., "parameters": ...}, or name.call(key=value)."""

from __future__ import annotations

from dougong.chat.styles.bare import python_calls
from dougong.chat.styles.style import Read, Style, Tools
from dougong.chat.styles.tagged import FUNCTION, read_function
from dougong.chat.styles.values import calls_from, leading_json

TAG = "<|python_tag|>"


def read_python_tag(text: str, tools: Tools, final: bool) -> Read | None:
    """The tag holds to the end of the message; several objects are parted by semicolons, which are no text."""
    body = text[len(TAG) :]
    if body.lstrip().startswith(("{", "[")):
        end = len(TAG)
        value = leading_json(text, end)
        calls = calls_from(value[0]) if value else None
        if value is None or calls is None:
            if value is None and not final:
                return None
            return Read(value[1] if value else len(text), problem=f"what stands after {TAG} is no call")
        return Read(value[1], calls)
    if not final:
        return None
    calls = python_calls(body)
    if calls is None:
        return Read(len(text), problem=f"what stands after {TAG} is code, not a call of a tool")
    named = tuple(type(call)(call.name.removesuffix(".call"), call.arguments, call.id) for call in calls)
    return Read(len(text), named)


LLAMA = Style(
    "llama",
    {TAG: read_python_tag, FUNCTION: read_function},
    signs=(TAG, '"parameters": dictionary'),
    key="parameters",
)
