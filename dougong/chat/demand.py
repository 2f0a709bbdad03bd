"""A call that is demanded: the schema that its JSON obeys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dougong.base import DougongError
from dougong.chat.message import Tool


def call_schema(tools: Sequence[Tool], key: str = "arguments") -> dict[str, Any]:
    """JSON schema of {"name": one of the tools, key: what that tool takes}. Raises DougongError without tools."""
    if not tools:
        raise DougongError("a call is demanded, but there are no tools")
    forms: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for tool in tools:
        parameters = dict(tool.parameters)
        parameters.setdefault("type", "object")
        for name in ("$defs", "definitions"):  # "#/$defs/..." counts from the root of the whole schema
            definitions.setdefault(name, {}).update(parameters.pop(name, {}))
        forms.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, key: parameters},
                "required": ["name", key],
            }
        )
    found = {name: inner for name, inner in definitions.items() if inner}
    return {**(forms[0] if len(forms) == 1 else {"anyOf": forms}), **found}
