"""Steps of ReAct as models write them: read leniently, for small models keep to no form for long."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from dougong.agent.tool import Action
from dougong.base import nearest

_LABEL = r"^[ \t>*_#-]*{name}[ \t]*(?:\d+[ \t]*)?[*_]*[ \t]*[:：][ \t]*[*_]*"
_ACTION = re.compile(_LABEL.format(name="Action"), re.IGNORECASE | re.MULTILINE)
_INPUT = re.compile(_LABEL.format(name=r"Action[ _]?(?:Input|Arguments?)"), re.IGNORECASE | re.MULTILINE)
_FINAL = re.compile(_LABEL.format(name=r"(?:The[ ])?Final[ ]Answer"), re.IGNORECASE | re.MULTILINE)
_THOUGHT = re.compile(_LABEL.format(name="Thought"), re.IGNORECASE | re.MULTILINE)
_NEXT = re.compile(
    _LABEL.format(name=r"(?:Thought|Observation|Action|(?:The[ ])?Final[ ]Answer)"), re.IGNORECASE | re.MULTILINE
)
_NAME = re.compile(r"[\"'`\[]*([\w.-]+)[\"'`\]]*")
_OPENED = re.compile(r"\s*(?:```[\w-]*\s*)?")
_NONE = re.compile(r"[\W_]*(?:none|n/a|no action|nothing)\b", re.IGNORECASE)
_FINISH = re.compile(r"[\"'`\[]*(final[ _]?answer|finish)\b", re.IGNORECASE)
MENDED = 20_000
"""characters of an object that is no JSON and may be mended; a longer one would take long"""
_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')  # one too many, outside of texts


@final
@dataclass(frozen=True)
class Step:
    """What a text asks for: a call, or nothing but an answer.

    problem: what is wrong with a call, for the model to read; formal: it has an input, so that it is meant as a call;
    length: characters of the text up to the call's end. What a model writes after that it made up.
    """

    thought: str = ""
    action: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    problem: str = ""
    formal: bool = False
    length: int = 0


def read_step(text: str, tools: Mapping[str, Action]) -> Step:
    """The first step of a text.

    "Action: name" and "Action Input: {...}" on lines of their own, in any case, numbered or in bold; also "Action:
    name({...})", "Action: name(key=value)", 'Action: name[words]', a single JSON object {"action": ...,
    "action_input": ...} after "Action:", input in a fence, with Python's quotes or a comma too many, or as bare words
    where the tool takes one argument. "Action: Finish[...]" and an action "Final Answer" give the answer; "Action:
    None" before a final answer is none. What stands before "Final Answer:" is thought; a text with neither is an answer
    as a whole. An action before a final answer comes first: its result is not known.
    """
    action, final = _ACTION.search(text), _FINAL.search(text)
    if action is not None and (final is None or action.start() < final.start()):
        idle = _NONE.match(_until_next(text[action.end() :])) and _named("none", tools) is None
        if final is None or not idle:
            return _call(text, action, tools)
    thought = _THOUGHT.sub("", text[: final.start()] if final else "").strip()
    said = text[final.end() :] if final else _THOUGHT.sub("", text)
    return Step(thought, answer=said.strip())


def _call(text: str, action: re.Match[str], tools: Mapping[str, Action]) -> Step:
    thought = _THOUGHT.sub("", text[: action.start()]).strip()
    rest = text[action.end() :]
    own = _until_next(rest)
    given = _INPUT.search(own)
    line = own[: given.start()] if given else own
    plain = _bare(line)

    def made(name: str, read: Any, end: int, problem: str = "") -> Step:
        formal = given is not None or plain.startswith("{")
        length = action.end() + end
        if problem:
            return Step(thought, problem=problem, formal=formal, length=length)
        if _FINISH.fullmatch(name) and _named(name, tools) is None:
            return Step(thought, answer=read if isinstance(read, str) else json.dumps(read, ensure_ascii=False))
        called, arguments, problem = _made(name, read, tools)
        return Step(thought, called, arguments, problem=problem, formal=formal, length=length)

    if plain.startswith("{") and given is None:
        whole, end = _object(rest)
        if whole is None:
            return made("", None, end, "what stands after Action: is no JSON; write it again")
        name = str(whole.get("action", whole.get("name", "")))
        inner = whole.get("action_input", whole.get("arguments", whole.get("input", {})))
        return made(name, inner, end)
    named = _NAME.match(plain) if _named("finish", tools) else _FINISH.match(plain) or _NAME.match(plain)
    if named is None:
        return made("", None, len(own), "Action: names no tool; write the name of one")
    if given is not None:
        read, end = _read(rest[given.end() :])
        return made(named[1], read, given.end() + end)
    after = rest.index(plain) + named.end()
    if plain[named.end() :].startswith(("(", "[")) and plain[-1:] in ("]", ")"):
        words = plain[named.end() + 1 : -1]
        keyed = _keywords(words, _named(named[1], tools)) if plain[-1] == ")" else None
        return made(named[1], _read(words)[0] if keyed is None else keyed, len(own))
    read, end = _read(rest[after:])
    return made(named[1], read, after + end)


def _until_next(text: str) -> str:
    """Up to the next label; a model that goes on makes the rest up."""
    following = _NEXT.search(text)
    return text[: following.start()] if following else text


def _read(text: str) -> tuple[Any, int]:
    """The object that a text begins with, or else its words up to the next label; and where that ends."""
    found, end = _object(text)
    if found is not None:
        return found, end
    own = _until_next(text)
    return _bare(own), len(own)


def _bare(text: str) -> str:
    """Without the fence around it."""
    opened = _OPENED.match(text)
    return text[opened.end() if opened else 0 :].strip().removesuffix("```").strip()


def _object(text: str) -> tuple[dict[str, Any] | None, int]:
    """The JSON object that a text begins with (a fence and a few characters aside), also one with a comma too many or
    as Python writes it; None for another text. And where it ends."""
    own = _until_next(text)
    start = text.find("{", 0, (_OPENED.match(text).end()) + 8)  # pyright: ignore[reportOptionalMemberAccess]
    if start < 0:
        return None, len(own)
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        return (value, end) if isinstance(value, dict) else (None, len(own))
    except (ValueError, RecursionError):
        pass
    written = own[start : own.rfind("}") + 1]
    for read in (_without_commas, ast.literal_eval) if len(written) <= MENDED else ():
        try:
            value = json.loads(json.dumps(read(written)))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return value, len(own)
    return None, len(own)


def _without_commas(text: str) -> Any:
    return json.JSONDecoder(strict=False).decode(_COMMA.sub(lambda found: found[1] or "", text))


def _keywords(words: str, action: Action | None) -> dict[str, Any] | None:
    """The arguments of a call as Python writes it: key=value, or values in the order of the parameters."""
    if action is None or not words.strip() or len(words) > MENDED or words.lstrip().startswith("{"):
        return None
    names = list(action.tool.parameters.get("properties") or {})
    try:
        call = ast.parse(f"f({words}\n)", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or len(call.args) > len(names):
            return None
        if call.args and len(names) == 1:
            return None  # words, which need no quotes
        pairs = [*zip(names, call.args, strict=False), *((each.arg, each.value) for each in call.keywords)]
        found = {key: ast.literal_eval(value) for key, value in pairs if key is not None}
        return json.loads(json.dumps(found)) if len(found) == len(pairs) else None
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _named(name: str, tools: Mapping[str, Action]) -> Action | None:
    """The tool of that name, in any case."""
    return next((action for own, action in tools.items() if own.casefold() == name.casefold()), None)


def _made(name: str, given: Any, tools: Mapping[str, Action]) -> tuple[str | None, dict[str, Any], str]:
    """A tool's name as it is, the arguments, and what is wrong with either."""
    action = _named(name, tools)
    if action is None:
        return None, {}, f"there is no tool {name!r:.60}{nearest(name[:60], tools)}"
    name = action.tool.name
    if isinstance(given, dict):
        return name, given, ""
    properties = dict(action.tool.parameters.get("properties") or {})
    if given in ("", None):
        return name, {}, ""
    # Words that begin as an object which names the argument were meant as one.
    quoted = [mark + key + mark for key in properties for mark in "\"'"]
    broken = isinstance(given, str) and given.startswith("{") and any(each in given for each in quoted)
    if len(properties) != 1 or broken:
        keys = ", ".join(properties) or "none"
        return None, {}, f"the input of {name} is no JSON object; its arguments are: {keys}"
    (key,) = properties
    return name, {key: _as(given, properties[key])}, ""


def _as(given: Any, schema: Any) -> Any:
    """Bare words as what the only argument is: a text, or what they say in JSON."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    text = given.strip() if isinstance(given, str) else given
    if kind == "string" and isinstance(text, str):
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text
