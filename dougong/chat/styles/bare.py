"""Calls without a marker, at the beginning of a message: Llama's {"name", "parameters"}, the same as a list, lists of
Python calls (Llama 3.2 and 4), and GLM-4's name on a line of its own with the arguments below it.

Nothing but the name of an offered tool tells them from an answer that happens to look so.
"""

from __future__ import annotations

import ast
import re

from dougong.chat.message import ToolCall
from dougong.chat.styles.style import Read, Tools
from dougong.chat.styles.values import calls_from, leading_json

# A call's first key; an object that begins with another is an answer, and streams on as such.
_OBJECT = re.compile(r"""\s*\[?\s*\{\s*"(?:name|function|type|id|parameters|arguments)"\s*:""")
_OBJECT_START = re.compile(r"""\s*(?:\[\s*)?(?:\{\s*(?:"(?:[a-z]*|[a-z]+"\s*))?)?""")
_PYTHON = re.compile(r"\s*\[\s*([A-Za-z_][\w.]*)\(")
_PYTHON_START = re.compile(r"\s*\[\s*([A-Za-z_][\w.]*)?")
_LINE = re.compile(r"\s*([\w.-]+)[ \t]*\r?\n\s*(?=\{)")
_LINE_START = re.compile(r"\s*([\w.-]*)[ \t]*(?:\r|\r?\n\s*)?")


def may_be_call(text: str, tools: Tools) -> bool:
    """Whether a message that begins so may be a bare call."""
    if _OBJECT.match(text) or _OBJECT_START.fullmatch(text):
        return True
    if found := _PYTHON.match(text):
        return found[1] in tools
    if found := _LINE.match(text):
        return found[1] in tools
    begun = _PYTHON_START.fullmatch(text) or _LINE_START.fullmatch(text)
    if begun is None:
        return False
    name = begun[1] or ""
    # A name that goes on growing; once it has ended, it must be a tool's.
    return name in tools if name and text[-1:].isspace() else any(tool.startswith(name) for tool in tools)


def read_bare(text: str, tools: Tools, final: bool) -> Read | None:
    """Read a message for which `may_be_call` held."""
    if _PYTHON.match(text):
        return _python(text, tools, final)
    line = _LINE.match(text)
    value = leading_json(text, line.end() if line else 0)
    if value is None:
        suspicious = line is not None or _OBJECT.match(text) is not None
        if not final:
            return None
        return Read(len(text), problem="a call breaks off or is no JSON" if suspicious else "")
    found, end = value
    if line is not None:
        calls = (ToolCall(line[1], found),) if isinstance(found, dict) else None
    else:
        calls = calls_from(found)
    if calls is None or any(call.name not in tools for call in calls):
        return Read(end)  # JSON, but no call: an answer
    return Read(end, calls)


def _python(text: str, tools: Tools, final: bool) -> Read | None:
    """[name(key=value, ...), ...] with literal values, up to the first bracket where that is Python."""
    start = len(text) - len(text.lstrip())
    close = text.find("]", start)
    while close >= 0:
        calls = python_calls(text[start : close + 1])
        if calls is not None:
            return Read(close + 1, calls if all(call.name in tools for call in calls) else ())
        close = text.find("]", close + 1)
    return Read(len(text), problem="a list of calls breaks off or is no Python") if final else None


def python_calls(source: str) -> tuple[ToolCall, ...] | None:
    """The calls of a Python list or of a single call, read without running anything; None where it is anything else."""
    try:
        tree = ast.parse(source.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        calls = []
        for node in nodes:
            if not isinstance(node, ast.Call) or node.args or not all(word.arg for word in node.keywords):
                return None
            arguments = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
            calls.append(ToolCall(ast.unparse(node.func), arguments))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return tuple(calls) or None
