"""A run of an agent: its conversation, what it has used, and the two things that it can do, ask the model and call
tools. Policies are written with these."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, final

from dougong.agent.events import (
    Event,
    Judged,
    ModelAnswered,
    ModelAsked,
    ModelFailed,
    Said,
)
from dougong.agent.limits import Ended, Limits, Meter, estimate, weight
from dougong.agent.outside import Approve, Outside, Question, TimeUp, Verify
from dougong.agent.taint import RULE, Taint
from dougong.base import DougongError, record_to
from dougong.chat import ChatError, Delta, Message, Tool, ToolCall, collect

if TYPE_CHECKING:
    from dougong.agent.agent import Agent
    from dougong.agent.tool import Action

R = TypeVar("R")
E = TypeVar("E", bound=Event)
Steps = Generator[Event, None, R]
"""A part of a run: yields events and returns its result."""


@final
class Run:
    """One run of `agent` at `task`.

    messages  the conversation so far: the system message, the task, then answers and results
    draft     the last text that the model answered with
    taint     which words come from outside
    Its methods that return `Steps` are used with `yield from`; they raise Ended at a limit.
    """

    def __init__(
        self,
        agent: Agent,
        task: str,
        outside: Outside,
        *,
        who: str = "",
        limits: Limits | None = None,
        taint: Taint | None = None,
        approve: Approve | None = None,
        history: Sequence[Message] = (),
        schema: dict[str, Any] | None = None,
    ):
        self.agent, self.task, self.outside = agent, task, outside
        self.who = who or agent.name
        self.limits = limits or agent.limits
        self.approve = agent.approve or approve
        self.history, self.schema = tuple(history), schema
        self.meter = Meter(self.limits)
        self.tools: dict[str, Action] = {action.tool.name: action for action in agent.tools}
        self.taint = taint or Taint()
        self.messages: list[Message] = []
        self.task_at = 0
        self.draft = ""
        self.calls = 0
        self.at = 0.0
        self.children: Counter[str] = Counter()
        self.notes: list[str] = []
        self._events = 0
        self._began = self._last = 0.0
        self._inner = taint is not None

    # -- events --------------------------------------------------------------------------------------------------------

    def event(self, kind: type[E], **fields: Any) -> E:
        """An event of this run, at the time of the last tick."""
        self._events += 1
        self._last = self.at
        return kind(who=self.who, at=self.at, **fields)

    def tick(self) -> float:
        """Look at the clock: seconds since this run began. The events that follow carry this time."""
        self.at = self.outside.now(self.who, self._events)
        if not self._events:
            self._began = self.at
        return self.at - self._began

    @property
    def elapsed(self) -> float:
        """Seconds since this run began, by its last event: unlike a look at the clock, the same in a replay."""
        return self._last - self._began

    @property
    def until(self) -> float:
        """When this run is over, in seconds since the outermost one began."""
        return self._began + self.limits.seconds

    # -- the conversation ----------------------------------------------------------------------------------------------

    def accept(self, task: str) -> None:
        """Take the task as guards let it pass. Its words are the user's, unless another run gave it."""
        self.task = task
        if self._inner:
            return
        for text in (task, *(each.content for each in self.history if each.role == "user")):
            self.taint.trust(text)
        for each in self.history:
            if each.role == "tool":
                self.taint.distrust(each.content, each.name or "an earlier tool")

    def begin(self, *instructions: str, task: str | None = None) -> None:
        """Begin the conversation anew, with the agent's instructions, these, and the task (or another one)."""
        self.meter.seen.clear()  # the model does not see what it called before: to call it again is no loop
        outside = any(not action.trusted for action in self.tools.values()) or self.taint.seen
        rule = [RULE] if outside and self.agent.mark else []
        form = [self.form] if task is None else []
        texts = [text for text in (self.agent.instructions, *instructions, *self.notes, *form, *rule) if text]
        system = [Message("system", "\n\n".join(texts))] if texts else []
        self.task_at = len(system) + len(self.history)
        self.messages = [*system, *self.history, Message("user", self.task if task is None else task)]

    @property
    def form(self) -> str:
        """How the last answer has to look; "" where any text will do."""
        if self.schema is None:
            return ""
        return f"Give the last answer as JSON of this schema, and nothing beside it:\n{json.dumps(self.schema)}"

    def drop_open_calls(self) -> None:
        """Take back the last answer where its calls have no results: no model goes on from there."""
        if self.messages and self.messages[-1].tool_calls:
            self.messages.pop()

    def tell(self, text: str) -> None:
        """Say something to the model, as the user."""
        self.messages.append(Message("user", text))

    def think(self, *, tools: bool = True, stop: str = "", purpose: str = "answer") -> Steps[Message]:
        """Ask the model to go on with the conversation, as far as memory shows it, and put its answer there."""
        shown = yield from self.agent.memory.view(self)
        offered = [action.tool for action in self.tools.values()] if tools else []
        answer = yield from self.ask(shown, tools=offered, stop=stop, purpose=purpose)
        if not tools and answer.tool_calls:  # of tools that nobody offered: no result will follow them
            answer = replace(answer, tool_calls=())
        self.messages.append(answer)
        if purpose == "answer" and answer.content.strip():
            self.draft = answer.content
        return answer

    def act(self, calls: Sequence[ToolCall]) -> Steps[list[Message]]:
        """Call tools, and put their results into the conversation, in the order of the calls."""
        results = yield from self.perform(calls)
        self.messages += results
        return results

    def perform(self, calls: Sequence[ToolCall]) -> Steps[list[Message]]:
        """Call tools: reading ones side by side, writing ones one by one. A failure is a result that says so."""
        from dougong.agent.calls import perform

        return (yield from perform(self, calls))

    # -- the model -----------------------------------------------------------------------------------------------------

    def ask(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        schema: dict[str, Any] | None = None,
        stop: str = "",
        purpose: str = "answer",
    ) -> Steps[Message]:
        """The model's answer to `messages`, beside the conversation. stop: a text that ends it and is cut from it.

        A model that fails is asked again as the limits say. Raises Ended at a limit, or where no answer comes.
        """
        prompt = sum(_size(message) for message in messages)
        prompt += estimate(json.dumps([tool.to_openai() for tool in tools], default=str)) if tools else 0
        question = Question(messages, tools, schema, self.agent.sampling, self.until)
        for attempt in range(self.limits.retries + 1):
            self.meter.afford(prompt, self.tick())
            digest = _digest(messages, tools, schema)
            yield self.event(ModelAsked, purpose=purpose, messages=len(messages), prompt=prompt, digest=digest)
            pieces: list[Delta] = []
            try:
                runaway = yield from self._listen(question, stop, pieces, purpose)
            except TimeUp:
                self.tick()
                yield self.event(ModelFailed, error="the run's seconds were over before the answer", late=True)
                raise Ended("seconds", f"the model gave no answer within the {self.limits.seconds:g} seconds") from None
            except Exception as error:  # a model may be anybody's code
                told = str(error) if isinstance(error, DougongError) else f"{type(error).__name__}: {error}"
                again = attempt < self.limits.retries and _repeatable(error)
                self.tick()
                yield self.event(ModelFailed, error=told, again=again)
                if not again:
                    raise Ended("model", told) from error
                self.outside.wait(min(_pause(error, attempt), max(0.0, self.until - self.at)))
                continue
            message = _whole(pieces, stop)
            self.tick()
            yield self._answered(message, prompt)
            if runaway:
                raise Ended("tokens", f"the answer went on and on; {self.limits.tokens} tokens are allowed in all")
            return message
        raise AssertionError("the last attempt returns or raises")

    def _listen(self, question: Question, stop: str, pieces: list[Delta], purpose: str) -> Steps[bool]:
        """Hear the answer out, piece by piece; returns whether it was broken off because it did not end."""
        content, cost = "", 0.0
        left = self.limits.tokens - self.meter.tokens
        # What guards have not seen yet is not shown while it comes.
        shown = purpose == "answer" and not any("output" in guard.places for guard in self.agent.guards)
        with closing(self.outside.stream(self.who, self.agent.model, question)) as stream:  # pyright: ignore[reportArgumentType]
            for piece in stream:
                pieces.append(piece)
                if shown and (piece.content or piece.reasoning):
                    yield self.event(Said, content=piece.content, reasoning=piece.reasoning)
                cost += _weight(piece)
                if cost > left:
                    return True
                if stop:
                    content += piece.content
                    if stop in content:
                        return False
        return False

    def _answered(self, message: Message, prompt: int) -> ModelAnswered:
        usage = message.usage
        known = usage is not None and usage.prompt + usage.completion > 0
        tokens = usage.prompt + usage.completion if usage and known else prompt + _size(message)
        self.meter.add(1, tokens)
        return self.event(ModelAnswered, message=message, tokens=tokens, estimated=not known)

    def ask_for(
        self, prompt: str, schema: dict[str, Any], purpose: str, *, whole: bool = True
    ) -> Steps[dict[str, Any]]:
        """A question beside the conversation that is answered with an object of this schema; {} where the answer
        cannot be read. whole: the conversation so far stands before it."""
        before = (yield from self.agent.memory.view(self)) if whole else []
        answer = yield from self.ask([*before, Message("user", prompt)], schema=schema, purpose=purpose)
        from dougong.agent.answers import parsed

        value, _ = parsed(answer.content, schema)
        return value if isinstance(value, dict) else {}

    def judge(self, verify: Verify, answer: str) -> Steps[str]:
        """What a verifier finds wrong with an answer; "" for nothing. One that fails has found nothing right."""

        fault = self.outside.verify(self.who, lambda: verify(answer) or "", self.until)
        self.tick()
        yield self.event(Judged, judge="verifier", fault=fault)
        return fault


def _weight(piece: Delta) -> float:
    """Estimated tokens of a piece."""
    called = 0 if piece.call is None else _size(Message("assistant", tool_calls=(piece.call,)))
    return weight(piece.content) + weight(piece.reasoning) + weight(piece.note) + called


def _whole(pieces: Sequence[Delta], stop: str) -> Message:
    message = collect(pieces)
    if stop and stop in message.content:
        message = replace(message, content=message.content.partition(stop)[0])
    return message if message.finish_reason else replace(message, finish_reason="stop")


def _size(message: Message) -> int:
    """Estimated tokens of a message."""
    calls = sum(estimate(call.name) + estimate(json.dumps(call.arguments, default=str)) for call in message.tool_calls)
    return estimate(message.content) + estimate(message.reasoning) + calls


def _digest(messages: Sequence[Message], tools: Sequence[Tool], schema: dict[str, Any] | None) -> str:
    """A fingerprint of a question. Ids of calls are left out: they are drawn at random."""
    said = [
        [each.role, each.content, each.name, [[call.name, call.arguments] for call in each.tool_calls]]
        for each in messages
    ]
    text = json.dumps([said, record_to(list(tools)), schema], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _repeatable(error: Exception) -> bool:
    """Whether asking again may help: after a lost connection, 408, 409, 429 or a 5xx."""
    return isinstance(error, ChatError) and (
        error.status is None or error.status in (408, 409, 429) or error.status >= 500
    )


def _pause(error: Exception, attempt: int) -> float:
    """Seconds until the model is asked again: as it says, or longer each time."""
    after = error.retry_after if isinstance(error, ChatError) else None
    return 0.25 * 2**attempt if after is None else after
