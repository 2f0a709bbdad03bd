"""Mistral's calls: [TOOL_CALLS] and a JSON list of them, or (since 2025) [TOOL_CALLS]name[ARGS]{arguments} for each."""

from __future__ import annotations

import re

from dougong.chat.message import ToolCall, new_call_id
from dougong.chat.styles.style import Read, Style, Tools
from dougong.chat.styles.values import calls_from, leading_json

OPEN = "[TOOL_CALLS]"
_HEAD = re.compile(r"\s*([\w.:/-]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*(?=\{)")


def read_mistral(text: str, tools: Tools, final: bool) -> Read | None:
    body = text[len(OPEN) :]
    head = _HEAD.match(body)
    value = None
    if head or body.lstrip()[:1] in ("[", "{"):
        value = leading_json(text, len(OPEN) + (head.end() if head else 0))
    if value is None:
        return Read(len(text), problem=f"what stands after {OPEN} is no call") if final else None
    calls = calls_from(value[0]) if head is None else (ToolCall(head[1], value[0], head[2] or new_call_id()),)
    return Read(value[1], problem=f"what stands after {OPEN} is no call") if calls is None else Read(value[1], calls)


MISTRAL = Style("mistral", {OPEN: read_mistral}, signs=(OPEN,), inner=("[ARGS]", "[CALL_ID]"), opener=f"{OPEN}[")
