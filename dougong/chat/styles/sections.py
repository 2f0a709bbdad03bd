"""Calls in sections of special tokens: DeepSeek and Kimi.

DeepSeek V2.5 to R1: function<sep>NAME, then the arguments in a fenced block. V3.1: NAME<sep>{arguments}.
Kimi K2: functions.NAME:0<sep>{arguments}.
"""

from __future__ import annotations

import re
from functools import partial

from dougong.chat.message import ToolCall
from dougong.chat.styles.style import Read, Style, Tools
from dougong.chat.styles.values import leading_json

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_NAME = re.compile(r"\s*(?:functions\.)?(.+?)(?::\d+)?\s*")


def read_section(text: str, tools: Tools, final: bool, begin: str, separator: str, end: str) -> Read | None:
    close = text.find(end)
    if close < 0 and not final:
        return None
    stop = len(text) if close < 0 else close + len(end)
    call = _call(text[len(begin) : None if close < 0 else close], separator)
    return Read(stop, problem=f"what stands after {begin} is no call") if call is None else Read(stop, (call,))


def _call(body: str, separator: str) -> ToolCall | None:
    head, found, rest = body.partition(separator)
    if not found:
        return None
    if head.strip() == "function":
        head, _, rest = rest.partition("\n")
    fenced = _FENCE.fullmatch(rest)
    written = fenced[1] if fenced else rest
    name = _NAME.fullmatch(head)
    value = leading_json(written, 0)
    if name is None or value is None or not isinstance(value[0], dict) or written[value[1] :].strip():
        return None
    # Kimi's template writes a call's id in place of its name, so the id is kept as the model wrote it.
    return ToolCall(name[1], value[0], *([head.strip()] if head.strip() != name[1] else []))


_DEEPSEEK = "<｜tool▁call▁begin｜>"
DEEPSEEK = Style(
    "deepseek",
    {_DEEPSEEK: partial(read_section, begin=_DEEPSEEK, separator="<｜tool▁sep｜>", end="<｜tool▁call▁end｜>")},
    signs=(_DEEPSEEK, "<｜tool▁calls▁begin｜>"),
    silent=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    inner=("<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
)

_KIMI = "<|tool_call_begin|>"
KIMI = Style(
    "kimi",
    {_KIMI: partial(read_section, begin=_KIMI, separator="<|tool_call_argument_begin|>", end="<|tool_call_end|>")},
    signs=(_KIMI,),
    silent=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    inner=("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
)
