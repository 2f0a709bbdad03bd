"""Calls and arguments out of text: JSON that ends somewhere, and values whose type only the tool's schema tells."""

from __future__ import annotations

import json
from typing import Any

from dougong.chat.message import ToolCall, call_from
from dougong.chat.styles.style import Tools

_DECODER = json.JSONDecoder()
_PYTHON = {"True": True, "False": False, "None": None}  # as templates print values that they do not encode


def leading_json(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON value at `start` (white space before it allowed) and where it ends, or None."""
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def calls_from(value: Any) -> tuple[ToolCall, ...] | None:
    """One call, or a list of calls, from parsed JSON; None where any of them is none."""
    items = value if isinstance(value, list) else [value]
    calls = [call_from(_unwrapped(item), item.get("id") if isinstance(item, dict) else None) for item in items]
    return None if not calls or None in calls else tuple(call for call in calls if call is not None)


def _unwrapped(item: Any) -> Any:
    """{"type": "function", "function": {...}} is the same call with a wrapper."""
    inner = item.get("function") if isinstance(item, dict) else None
    if isinstance(inner, dict):
        return inner
    return {"name": inner, **item} if isinstance(inner, str) else item


def inside_string(text: str) -> bool:
    """Whether a JSON text that breaks off here breaks off inside a string."""
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = inside
        elif character == '"':
            inside = not inside
    return inside


def typed(text: str, tool: str, argument: str, tools: Tools) -> Any:
    """An argument written without quotes: a string where the schema says so, else the JSON value it spells, if any."""
    properties = tools[tool].parameters.get("properties") if tool in tools else None
    schema = properties.get(argument) if isinstance(properties, dict) else None
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    if text.strip() in _PYTHON:
        return _PYTHON[text.strip()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
