"""What the members of a team are called when they talk, and when two of their answers are the same."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dougong.agent.agent import Agent

_LED = re.compile(
    r"^(?:so |thus |therefore |hence )?,? ?(?:the |my )?(?:final |correct )?answer(?: is| ?:| ?=)+ ?"
    r"|^(?:所以|因此)?,?(?:最终|正确)?答案(?:是|为|:)+ ?"
)
_NUMBER = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|0|[1-9]\d*)(?:\.\d+)?")
_PAIRS = ("**", "__", "*", "_", "`", '"', "'", "“”", "‘’", "「」", "$")


def names(members: Sequence[Agent]) -> list[str]:
    """A name for each member, numbered where several have the same, as their runs are: writer, writer#2."""
    seen: Counter[str] = Counter()
    found: list[str] = []
    for member in members:
        seen[member.name] += 1
        found.append(member.name + (f"#{seen[member.name]}" if seen[member.name] > 1 else ""))
    return found


def alike(answer: str) -> str:
    """An answer without what does not matter when answers are counted.

    That is: case, width of characters, white space, marks and emphasis around it, "The answer is" before it, how a
    number is written (1,000 and 1000.0), how JSON is laid out. Whole sentences that say the same in other words stay
    different: who expects them gives `vote` a key of their own.
    """
    text = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    if text[:1] in ("{", "["):
        try:
            return json.dumps(json.loads(answer), sort_keys=True)
        except (ValueError, RecursionError):
            pass
    plain = _bare(_LED.sub("", _bare(text)).replace("\u2212", "-"))
    if _NUMBER.fullmatch(plain) and len(plain) <= 28:  # Decimal's own precision
        return format(Decimal(plain.replace(",", "")).normalize(), "f")
    return plain or text


def _bare(text: str) -> str:
    """Without marks at the end, and without quotes and emphasis around the whole."""
    while True:
        plain = text.rstrip(".!。 ").lstrip()
        for pair in _PAIRS:
            opens, closes = pair if len(pair) == 2 and pair[0] != pair[1] else (pair, pair)
            inner = plain[len(opens) : len(plain) - len(closes)]
            if inner and plain.startswith(opens) and plain.endswith(closes) and opens not in inner:
                plain = inner
                break
        if plain == text or not plain:
            return plain
        text = plain
