"""Answers that have to be JSON: read leniently (models like fences and a word before), checked strictly."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

from dougong.agent.check import check
from dougong.base import DougongError

STARTS = 20
"""brackets from which JSON is tried; a text of brackets alone would take forever"""
_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)


def parsed(text: str, schema: dict[str, Any]) -> tuple[Any, str]:
    """The JSON of an answer that obeys `schema`, and ""; or None, and what is wrong with it, for the model to read.

    The whole text is tried, then what stands in a fence, then from each bracket to where the JSON there ends; the first
    that obeys is taken.
    """
    problem = "the answer is empty; expected JSON"
    for candidate in _candidates(text):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError) as error:
            problem = f"the answer is no JSON: {error}"
            continue
        problem = fault(value, schema)
        if not problem:
            return value, ""
    return None, problem


def fault(value: Any, schema: dict[str, Any]) -> str:
    """What keeps a value from obeying a schema; "" for nothing."""
    try:
        check(schema, value, "the answer")
    except (DougongError, RecursionError) as error:
        return str(error) or "the schema refers to itself without end"
    return ""


def _candidates(text: str) -> list[str]:
    text = text.strip()
    found = [text] if text else []
    found += [each.strip() for each in _FENCE.findall(text)]
    end = 0
    for start in (match.start() for match in islice(re.finditer(r"[\[{]", text), STARTS)):
        if start < end:
            continue  # inside of what was read
        try:
            _, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        found.append(text[start:end])
    return list(dict.fromkeys(found))
