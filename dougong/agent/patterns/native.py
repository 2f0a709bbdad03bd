"""The model's own tool calls, as its chat template or its endpoint has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dougong.agent.limits import Ended
from dougong.chat import Message

if TYPE_CHECKING:
    from dougong.agent.run import Run, Steps


@runtime_checkable
class Pattern(Protocol):
    """A pattern that others are made of. task: instead of the run's own; fresh: begin the conversation with it,
    otherwise go on with the one that is there."""

    def __call__(self, run: Run, *, task: str | None = None, fresh: bool = True) -> Steps[str]: ...


def native(run: Run, *, task: str | None = None, fresh: bool = True) -> Steps[str]:
    """Ask; make the calls that the answer has; ask again; an answer without calls is the last one."""
    if fresh:
        run.begin(task=task)
    again = 0
    while True:
        answer = yield from run.think()
        if answer.tool_calls:
            yield from run.act(answer.tool_calls)
            continue
        problem = unusable(answer)
        if not problem:
            return answer.content.strip()
        again = once_more(run, again, problem)


def conclude(run: Run) -> Steps[str]:
    """The answer to what was said last, without tools; an empty one is asked for again. Raises Ended."""
    again = 0
    while True:
        answer = yield from run.think(tools=False)
        if answer.content.strip():
            return answer.content.strip()
        again = once_more(run, again, "The answer was empty. Give the answer to the task.")


def unusable(answer: Message) -> str:
    """What keeps a message without calls from being an answer; "" for nothing."""
    if answer.notes:
        return f"A tool call could not be read: {answer.notes[0]} Write it again as valid JSON, or answer without it."
    if not answer.content.strip():
        return "The answer was empty. Answer the task, or call a tool."
    return ""


def once_more(run: Run, again: int, problem: str) -> int:
    """Tell the model what is wrong, as often as the limits allow; returns how often that was. Raises Ended."""
    if again >= run.limits.corrections:
        raise Ended("model", f"the answers stay unusable: {problem}")
    run.tell(problem)
    return again + 1
