"""Conversations: chat data in the formats that people publish, and their encoding with loss on the assistant alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dougong.base import DougongError
from dougong.data.documents import hash_fraction
from dougong.data.example import Example
from dougong.data.readers import read_records, well_formed

if TYPE_CHECKING:
    from dougong.tokenizer import Tokenizer

T = TypeVar("T")

# {"role": "system" | "user" | "assistant" | "tool", "content": str, "tool_calls"?: [...], "reasoning_content"?: str}
Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
# Chains of thought beside an answer.
REASONING = ("reasoning", "reasoning_content", "rationale", "chain_of_thought", "cot")
# Reading these as text alone would drop what the answers speak of.
MEDIA = ("images", "videos", "audios", "image", "video", "audio")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them, the tools offered (JSON schemas), and where they came from."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    source: str = "unknown"


def read_conversations(paths: str | Path | Iterable[str | Path]) -> Iterator[Conversation]:
    """The conversations of .json and .jsonl files (or .gz of them), the format of each told by its keys.

    messages: {"messages": [{"role", "content"}], "tools"?}. sharegpt: {"conversations": [{"from", "value"}], "system"?,
    "tools"?} with function_call and observation turns. alpaca: {"instruction", "input"?, "output", "system"?,
    "history"?}. pairs: {"prompt", "response" or "completion"}, {"question", "answer", "context"?} as in GSM8K. Of the
    last three the reasoning before the answer may stand apart ("reasoning", "rationale", "chain_of_thought" or "cot").
    Content may be text or a list of text, reasoning and tool-call parts.

    Raises DougongError that names the file, the number of the example (from 1), and its keys when the format is not
    known, a turn is malformed, media are attached, no assistant speaks, or the data are preference pairs.
    """
    return read_records(paths, conversation_from, "conversations")


def conversation_from(row: Any, source: str, where: str = "") -> Conversation:
    """One conversation from one row of data; `where` names the row in errors. See read_conversations."""
    where = where or source
    if not isinstance(row, Mapping):
        raise DougongError(f"{where} is {type(row).__name__}; expected an object with messages")
    keys = _keys(row)
    for key in MEDIA:
        if row.get(key):
            raise DougongError(f"{where} has {key}; this reader takes text alone (its keys: {keys})")
    if isinstance(row.get("label"), bool):
        raise DougongError(f"{where} has a good-or-bad label: it is preference data, not examples to imitate")
    reader = next((reader for needed, reader in READERS if needed <= row.keys()), None)
    if reader is None:
        hint = "; it looks like plain text, which read_documents reads" if "text" in row else ""
        hint = "; it is preference data" if any(str(key).startswith("rejected") for key in row) else hint
        raise DougongError(
            f"{where} has the keys {keys}; expected messages, conversations, instruction and output, "
            f"or prompt and response{hint}"
        )
    if reader is not _alpaca and {"chosen", "rejected"} <= row.keys():
        raise DougongError(f"{where} has chosen and rejected answers: it is preference data, not examples to imitate")
    messages = tuple(reader(row, where))
    if not any(message["role"] == "assistant" for message in messages):
        raise DougongError(f"{where} has no assistant message to learn from (its keys: {keys})")
    return Conversation(messages, _tools(row.get("tools"), where), source)


def asked(row: Mapping[str, Any], keys: Sequence[str]) -> list[Any] | None:
    """The raw turns in which a row asks: its system's, and under the first of `keys` that it has a text, turns, or an
    instruction with its input. None where it has none of the keys."""
    key = next((key for key in keys if key in row), None)
    if key is None:
        return None
    system = row.get("system")
    turns: list[Any] = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    if isinstance(row[key], list):
        return [*turns, *row[key]]
    return [*turns, {"role": "user", "content": _instruction(row) if key == "instruction" else row[key]}]


def _instruction(row: Mapping[str, Any]) -> str:
    """Alpaca's instruction with its input."""
    return "\n".join(part for part in (row["instruction"], row.get("input")) if isinstance(part, str) and part)


def hold_out(items: Sequence[T], share: float, said: Callable[[T], Iterable[Message]]) -> tuple[list[T], list[T]]:
    """(the rest, about `share` of the items), by a hash of the messages that `said` gives: equal ones stay together."""
    sides: tuple[list[T], list[T]] = ([], [])
    for each in items:
        sides[hash_fraction("".join(str(message["content"]) for message in said(each))) < share].append(each)
    return sides


def _alpaca(row: Mapping[str, Any], where: str) -> Iterator[Message]:
    if row.get("system"):
        yield _message("system", row["system"], where)
    for turn in row.get("history") or ():
        if not isinstance(turn, Sequence) or isinstance(turn, str) or len(turn) != 2:
            raise DougongError(f"{where}: history holds {turn!r}; expected pairs of question and answer")
        yield _message("user", turn[0], where)
        yield _message("assistant", turn[1], where)
    yield _message("user", _instruction(row), where)
    yield _answer(row, row["output"], where)


def _sharegpt(row: Mapping[str, Any], where: str) -> Iterator[Message]:
    yield from _turns(row, "conversations", where)


def _messages(row: Mapping[str, Any], where: str) -> Iterator[Message]:
    yield from _turns(row, "messages", where)


def _prompt(row: Mapping[str, Any], where: str) -> Iterator[Message]:
    answer = row["response"] if "response" in row else row["completion"]
    # TRL's conversational form of the same pair holds lists of messages.
    if isinstance(row["prompt"], list) and isinstance(answer, list):
        yield from _turns({"messages": [*row["prompt"], *answer]}, "messages", where)
        return
    if row.get("system"):
        yield _message("system", row["system"], where)
    yield _message("user", row["prompt"], where)
    yield _answer(row, answer, where)


def _question(row: Mapping[str, Any], where: str) -> Iterator[Message]:
    parts = [part for part in (row.get("context"), row["question"]) if isinstance(part, str) and part]
    yield _message("user", "\n".join(parts), where)
    yield _answer(row, row["answer"], where)


def _answer(row: Mapping[str, Any], answer: Any, where: str) -> Message:
    """The assistant's message, with the reasoning that stands beside it in the row."""
    message = _message("assistant", answer, where)
    told = next((row[key] for key in REASONING if isinstance(row.get(key), str) and row[key]), None)
    return message if told is None else {**message, "reasoning_content": well_formed(told)}


READERS: tuple[tuple[set[str], Callable[[Mapping[str, Any], str], Iterator[Message]]], ...] = (
    ({"messages"}, _messages),
    ({"conversations"}, _sharegpt),
    ({"instruction", "output"}, _alpaca),
    ({"prompt", "response"}, _prompt),
    ({"prompt", "completion"}, _prompt),
    ({"question", "answer"}, _question),
)


def _turns(row: Mapping[str, Any], key: str, where: str) -> Iterator[Message]:
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        raise DougongError(f"{where}: {key} is {_short(turns)}; expected a list of turns")
    if isinstance(row.get("system"), str) and row["system"]:
        yield _message("system", row["system"], where)
    for index, turn in enumerate(turns):
        place = f"{where}, turn {index + 1}"
        if not isinstance(turn, Mapping):
            raise DougongError(f"{place} is {_short(turn)}; expected role and content, or from and value")
        name = turn.get("role", turn.get("from"))
        if name not in ROLES:
            raise DougongError(f"{place} has the role {name!r} (its keys: {_keys(turn)}); known: {', '.join(ROLES)}")
        content = turn.get("content", turn.get("value"))
        if name == "function_call":
            yield {"role": "assistant", "content": "", "tool_calls": _calls(content, place)}
            continue
        message = _message(ROLES[name], content, place, called=bool(turn.get("tool_calls")))
        if turn.get("tool_calls"):
            message["tool_calls"] = _calls(turn["tool_calls"], place)
        if isinstance(turn.get("reasoning_content"), str):
            message["reasoning_content"] = well_formed(turn["reasoning_content"])
        for kept in ("name", "tool_call_id"):
            if isinstance(turn.get(kept), str):
                message[kept] = turn[kept]
        yield message


def _message(role: str, content: Any, where: str, *, called: bool = False) -> Message:
    if content is None and called:  # OpenAI writes null beside tool calls
        content = ""
    if isinstance(content, str):
        return {"role": role, "content": well_formed(content)}
    if not isinstance(content, list):
        raise DougongError(f"{where}: the content of the {role} is {_short(content)}; expected text")
    texts: dict[str, list[str]] = {"text": [], "reasoning": []}
    calls: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        value = (part.get("text") or part.get("value") or "") if isinstance(part, Mapping) else part
        if kind == "tool_call":
            calls.extend(_calls(value, where))
        elif kind in texts and isinstance(value, str):
            texts[kind].append(well_formed(value))
        else:
            raise DougongError(f"{where}: a part of the {role}'s content is {kind or _short(part)}; expected text")
    message: Message = {"role": role, "content": "".join(texts["text"])}
    if texts["reasoning"]:
        message["reasoning_content"] = "\n".join(texts["reasoning"])
    if calls:
        message["tool_calls"] = calls
    return message


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls in the form that chat templates take: the function's name, its arguments as an object."""
    value = _parsed(value, where, "a tool call")
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DougongError(f"{where}: the tool call {_short(call)} has no name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments or "{}", where, "a tool call's arguments")
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not value:
        return ()
    tools = _parsed(value, where, "the list of tools")
    tools = tools if isinstance(tools, list) else [tools]
    for tool in tools:
        if not isinstance(tool, dict):
            raise DougongError(f"{where}: the tool {_short(tool)} is not an object")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _parsed(value: Any, where: str, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise DougongError(f"{where}: {what} is not JSON ({error.msg}): {_short(value)}") from None


def _keys(row: Mapping[str, Any]) -> str:
    names = [str(key) for key in row]
    return ", ".join(names[:8] + ["..."] * (len(names) > 8)) or "none"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def encode_conversations(
    tokenizer: Tokenizer, conversations: Iterable[Conversation], *, last_turn: bool = False
) -> list[Example]:
    """Each conversation through the tokenizer's chat template, as ids and a loss mask (true on the assistant's tokens).

    last_turn: only the assistant's last turn is learnt, as for data whose earlier turns are context.

    Raises DougongError when the template marks none of a conversation's tokens as the assistant's.
    """
    examples = []
    for conversation in conversations:
        rendered = tokenizer.render_ids(list(conversation.messages), list(conversation.tools) or None)
        if not any(rendered.assistant):
            raise DougongError(
                f"{conversation.source}: the chat template marks no token as the assistant's, so nothing would be "
                "learnt; use a template with {% generation %} blocks"
            )
        mask = _last_run(rendered.assistant) if last_turn else rendered.assistant
        examples.append(Example(rendered.ids, mask))
    return examples


def _last_run(mask: Sequence[bool]) -> list[bool]:
    """The mask with its last unbroken run of true alone."""
    end = max(place for place, marked in enumerate(mask) if marked) + 1
    start = next((place + 1 for place in range(end - 1, -1, -1) if not mask[place]), 0)
    return [start <= place < end for place in range(len(mask))]
