"""Calls between tags: <tool_call>...</tool_call> with JSON (Hermes, Qwen, ours), with <function=...> (Qwen's coders) or
with <arg_key> (GLM-4.5) inside; and <function=...>...</function> alone (Llama, and coders that forget the tag)."""

from __future__ import annotations

import re
from typing import Any

from dougong.chat.message import ToolCall
from dougong.chat.styles.style import Read, Style, Tools
from dougong.chat.styles.values import calls_from, inside_string, leading_json, typed

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_ARGUMENT = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def read_tagged(text: str, tools: Tools, final: bool) -> Read | None:
    close = _close(text)
    if close is None and not final:
        return None
    body = text[len(OPEN) : close]
    calls = _body(body, tools)
    if calls is not None:
        return Read(len(text) if close is None else close + len(CLOSE), calls)
    # A model that forgets the closing tag goes on with the next opening one.
    first = leading_json(text, len(OPEN)) if body.lstrip().startswith(("{", "[")) else None
    calls = calls_from(first[0]) if first else None
    if first and calls and text[first[1] :].lstrip().startswith(OPEN):
        return Read(first[1], calls)
    if close is None:
        return Read(len(text), problem=f"a call has no {CLOSE}")
    return Read(close + len(CLOSE), problem=f"what stands between {OPEN} and {CLOSE} is no call")


def _close(text: str) -> int | None:
    """Where the closing tag is; one inside a JSON string is not it."""
    is_json = text[len(OPEN) :].lstrip().startswith(("{", "["))
    close = text.find(CLOSE)
    while close >= 0 and is_json and inside_string(text[len(OPEN) : close]):
        close = text.find(CLOSE, close + 1)
    return None if close < 0 else close


def _body(body: str, tools: Tools) -> tuple[ToolCall, ...] | None:
    body = body.strip()
    if body.startswith(("{", "[")):
        value = leading_json(body, 0)
        return calls_from(value[0]) if value and not body[value[1] :].strip() else None
    if body.startswith(FUNCTION):
        call = _function(body.removesuffix(FUNCTION_END), tools)
        return None if call is None else (call,)
    return _keys_and_values(body, tools)


def _keys_and_values(body: str, tools: Tools) -> tuple[ToolCall, ...] | None:
    """name <arg_key>k</arg_key> <arg_value>v</arg_value> ..."""
    name, bracket, _ = body.partition("<arg_key>")
    arguments: dict[str, Any] = {}
    rest = body[len(name) :]
    name = name.strip()
    while found := _ARGUMENT.match(rest):
        arguments[found[1].strip()] = typed(found[2], name, found[1].strip(), tools)
        rest = rest[found.end() :]
    if rest.strip() or not re.fullmatch(r"[\w.:/-]+", name) or not (bracket or name in tools):
        return None
    return (ToolCall(name, arguments),)


def read_function(text: str, tools: Tools, final: bool) -> Read | None:
    """<function=name>{JSON}</function> or <function=name><parameter=key>value</parameter>...</function>."""
    close = text.find(FUNCTION_END)
    while close >= 0 and text.partition(">")[2].lstrip().startswith("{") and inside_string(text[:close]):
        close = text.find(FUNCTION_END, close + 1)
    if close < 0 and not final:
        return None
    end = len(text) if close < 0 else close + len(FUNCTION_END)
    call = _function(text[: None if close < 0 else close], tools)
    if call is None:
        return Read(end, problem=f"what begins with {FUNCTION} is no call")
    return Read(end, (call,))


def _function(text: str, tools: Tools) -> ToolCall | None:
    name, bracket, rest = text.removeprefix(FUNCTION).partition(">")
    rest = rest.strip()
    if not bracket or not name.strip() or "\n" in name:
        return None
    name = name.strip().strip("\"'")
    if rest.startswith("{"):
        value = leading_json(rest, 0)
        whole = value is not None and isinstance(value[0], dict) and not rest[value[1] :].strip()
        return ToolCall(name, value[0]) if value and whole else None
    if _PARAMETER.sub("", rest).strip():
        return None
    return ToolCall(name, {key: typed(value, name, key, tools) for key, value in _PARAMETER.findall(rest)})


TAGGED = Style(
    "tagged",
    {OPEN: read_tagged, FUNCTION: read_function},
    signs=(OPEN, FUNCTION),
    inner=(CLOSE, FUNCTION_END, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    opener=f"{OPEN}\n",
)
