"""Chat templates: messages to text as Hugging Face renders them, and to ids with a mask of the assistant's tokens.

The template is untrusted code from a model's folder, so it runs in Jinja's immutable sandbox and sees plain data only.
Which tokens are the assistant's comes from the template's own `{% generation %}` blocks, or else from comparing the
conversation cut before and after each assistant turn. Message text that spells a special token stays text.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dougong.base import DougongError
from dougong.tokenizer.shield import Shield

if TYPE_CHECKING:
    import jinja2

    from dougong.tokenizer.tokenizer import Tokenizer

Span = tuple[int, int]
"""Characters [start, end) of a rendered conversation."""


@dataclass(frozen=True)
class ChatTokens:
    """A rendered conversation: `assistant[i]` says whether the assistant wrote `ids[i]` (its end of turn included)."""

    ids: list[int]
    assistant: list[bool]


# -- the environment ---------------------------------------------------------------------------------------------------


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML; templates expect plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """`{% generation %}...{% endgeneration %}`: marks its output when the variable `generation_marks` is given."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            marks = nodes.ContextReference()
            return nodes.CallBlock(self.call_method("mark", [marks]), [], [], body).set_lineno(line)

        def mark(self, context: Any, caller: Any) -> str:
            opening, closing = context.get("generation_marks") or ("", "")
            return f"{opening}{caller()}{closing}"

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment


@lru_cache(maxsize=64)
def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template. Raises DougongError with the line of a syntax error."""
    import jinja2

    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DougongError(f"the chat template has an error in line {error.lineno}: {error.message}") from None


def _plain(value: Any) -> Any:
    """Rebuild data from plain JSON types: other objects have methods that a sandbox does not know to be dangerous."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    raise DougongError(f"a chat template takes plain JSON data, not {type(value).__name__}: {value!r:.80}")


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: the thinking is there under both names in use."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DougongError(f'a message is a mapping with a "role", not {message!r:.80}')
    plain = _plain(message)
    names = ("reasoning_content", "thinking", "reasoning")
    thinking = next((plain[name] for name in names if plain.get(name) is not None), None)
    return plain if thinking is None else {"thinking": thinking, **plain, "reasoning_content": thinking}


# -- text --------------------------------------------------------------------------------------------------------------


def _run(tokenizer: Tokenizer, variables: dict[str, Any]) -> str:
    import jinja2

    if tokenizer.chat_template is None:
        raise DougongError("this tokenizer has no chat template; set one with tokenizer.with_chat_template(...)")
    template = compile_template(tokenizer.chat_template)
    try:
        return template.render({**tokenizer.roles, **variables})
    except jinja2.TemplateError as error:
        raise DougongError(f"the chat template refused the conversation: {error.message}") from None
    except DougongError:
        raise
    except Exception as error:  # a template is a program: it can fail in any way
        name = type(error).__name__
        raise DougongError(f"the chat template failed on this conversation: {name}: {error}") from None


def _variables(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "messages": [_message(message) for message in messages],
        "tools": None if tools is None else _plain(tools),
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **_plain(extra),
    }


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    extra: Mapping[str, Any],
) -> str:
    """See `Tokenizer.render`."""
    return _run(tokenizer, _variables(messages, tools, add_generation_prompt, extra))


# -- whose characters --------------------------------------------------------------------------------------------------


def generation_spans(tokenizer: Tokenizer, variables: dict[str, Any]) -> tuple[str, list[Span]]:
    """Text and the spans of its `{% generation %}` blocks.

    The blocks are rendered between marks that no message can contain (they are drawn at random), which works wherever
    a block stands; then the marks are taken out. Raises DougongError when they change the text.
    """
    nonce = secrets.token_hex(16)
    marks = (f"[{nonce}<]", f"[{nonce}>]")
    marked = _run(tokenizer, {**variables, "generation_marks": marks})
    # Not by a regular expression: with another nonce for each conversation, compiling it takes longer than the rest.
    text, *parts = marked.split(f"[{nonce}")
    spans: list[Span] = []
    starts: list[int] = []
    for part in parts:
        if part.startswith("<]"):
            starts.append(len(text))
        else:
            spans.append((starts.pop(), len(text)))
        text += part[2:]
    if text != _run(tokenizer, variables):
        raise DougongError("the chat template edits the text of its {% generation %} blocks; move the tags outwards")
    return text, spans


def prefix_spans(tokenizer: Tokenizer, variables: dict[str, Any]) -> tuple[str, list[Span]]:
    """Text and the span of each assistant turn, by rendering the conversation cut before and after it.

    A span begins after the generation prompt, and ends with its last special token where only white space follows it.
    Raises DougongError where a cut conversation is not the beginning of the whole one.
    """
    text = _run(tokenizer, variables)
    messages = variables["messages"]
    spans: list[Span] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _run(tokenizer, {**variables, "messages": messages[:turn], "add_generation_prompt": True})
        after = _run(tokenizer, {**variables, "messages": messages[: turn + 1], "add_generation_prompt": False})
        if not after.startswith(before) or not text.startswith(after):
            raise DougongError(
                f"the chat template renders the conversation up to message {turn} (assistant) differently than the "
                "whole one, so its tokens cannot be told apart; put {% generation %} tags around the assistant's text"
            )
        spans.append((len(before), _end_of_turn(after, len(before), tokenizer)))
    return text, spans


def _end_of_turn(text: str, start: int, tokenizer: Tokenizer) -> int:
    bare = text[start:].rstrip()
    ends = any(bare.endswith(tokenizer.token(index)) for index in tokenizer.special_ids)
    return start + len(bare) if ends else len(text)


# -- ids ---------------------------------------------------------------------------------------------------------------


def render_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    extra: Mapping[str, Any],
) -> ChatTokens:
    """See `Tokenizer.render_ids`. A token is the assistant's when it starts inside one of the assistant's spans."""
    variables = _variables(messages, tools, add_generation_prompt, extra)
    shield, guarded = _guarded(tokenizer, variables, extra)
    # Jinja allows a + or - sign inside the braces.
    tagged = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", tokenizer.chat_template or "")
    text, spans = (generation_spans if tagged else prefix_spans)(tokenizer, guarded)
    if guarded != variables:
        shield.check(text, _run(tokenizer, variables))
    ids: list[int] = []
    assistant: list[bool] = []
    for piece, places, trusted in shield.pieces(text):
        found, offsets = tokenizer.encode_offsets(piece, specials=trusted)
        ids += found
        starts = [start if places is None else places[start] for start, _ in offsets]
        assistant += _inside(starts, spans)
    return ChatTokens(ids, assistant)


def render_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    extra: Mapping[str, Any],
) -> tuple[str, list[int]]:
    """Text and ids of a conversation up to where the assistant speaks. Any template will do, for nobody asks which
    tokens were the assistant's; special tokens that messages spell stay text here too."""
    variables = _variables(messages, tools, True, extra)
    shield, guarded = _guarded(tokenizer, variables, extra)
    text = _run(tokenizer, variables)
    marked = text if guarded == variables else _run(tokenizer, guarded)
    if guarded != variables:
        shield.check(marked, text)
    ids: list[int] = []
    for piece, _, trusted in shield.pieces(marked):
        ids += tokenizer.encode(piece, specials=trusted)
    return text, ids


def _guarded(
    tokenizer: Tokenizer, variables: dict[str, Any], extra: Mapping[str, Any]
) -> tuple[Shield, dict[str, Any]]:
    """A shield for the conversation, and the variables under it."""
    given = {name: variables[name] for name in ("messages", "tools", *extra)}
    shield = Shield((tokenizer.token(index) for index in tokenizer.special_ids), given)
    return shield, {**variables, **shield.guard(given)}


def _inside(starts: list[int], spans: list[Span]) -> list[bool]:
    """Which of the rising `starts` lie in one of the rising, disjoint `spans`."""
    return [(at := bisect_right(spans, (start, sys.maxsize)) - 1) >= 0 and start < spans[at][1] for start in starts]
