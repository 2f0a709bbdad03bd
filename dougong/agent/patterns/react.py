"""ReAct: thought, action, observation, until the answer is known (Yao et al. 2023, arXiv:2210.03629)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from dougong.agent.patterns.native import once_more, unusable
from dougong.agent.patterns.text import Step, read_step
from dougong.chat import Message, Tool, ToolCall

if TYPE_CHECKING:
    from dougong.agent.run import Run, Steps

STOP = "\nObservation:"
THINK = (
    "Work step by step: before each tool call say in a sentence what is known, what is missing and why this call is "
    "next; after its result decide again. When the answer is known, give it."
)
FORM = """\
Answer the task. You may use these tools:
{tools}

Write in exactly this form:
Thought: what is known, what is missing, what to do next
Action: the name of one tool
Action Input: its arguments, a JSON object
Then stop. You will be told:
Observation: the result
Repeat this as often as needed. When the answer is known, write:
Thought: I know the answer
Final Answer: the answer"""


def react(run: Run, *, task: str | None = None, fresh: bool = True, prompt: str = "") -> Steps[str]:
    """With tools as the model calls them itself, and thoughts as it was taught to have them; calls that it writes as
    text (Action:, Action Input:) are made as well, and answered in the same form.

    prompt: for the system message, such as THINK for a model that calls without a word.
    """
    if fresh:
        run.begin(*([prompt] if prompt and run.tools else []), task=task)
    again = 0
    while True:
        answer = yield from run.think()
        if answer.tool_calls:
            yield from run.act(answer.tool_calls)
            continue
        step = read_step(answer.content, run.tools)
        # A line "Action: ..." in an answer is no call, unless it names a tool or is followed by an input.
        if step.action is not None or (step.problem and step.formal):
            yield from _observe(run, step)
            continue
        said = answer.content.strip() if step.problem else step.answer
        problem = unusable(answer if said else replace(answer, content=""))
        if not problem:
            return said
        again = once_more(run, again, problem)


def react_text(run: Run, *, task: str | None = None, fresh: bool = True) -> Steps[str]:
    """For models that know no tools: everything is text."""
    if fresh:
        described = "\n".join(_described(action.tool) for action in run.tools.values())
        run.begin(*([FORM.format(tools=described)] if run.tools else []), task=task)
    again = 0
    while True:
        answer = yield from run.think(tools=False, stop=STOP)
        step = read_step(answer.content, run.tools)
        if step.action is not None or step.problem:
            yield from _observe(run, step)
            continue
        if step.answer:
            return step.answer
        again = once_more(run, again, 'The answer was empty. Write "Action:" or "Final Answer:".')


def _observe(run: Run, step: Step) -> Steps[None]:
    """Make the call that a text asks for, and tell its result, or what is wrong with the text. What the model wrote
    after the call, such as results that it made up, leaves the conversation."""
    said = run.messages[-1]
    run.messages[-1] = replace(said, content=said.content[: step.length].rstrip())
    if step.action is None:
        run.tell(f"Observation: {step.problem}")
        return
    # Drawn ids would differ in a replay.
    call = ToolCall(step.action, step.arguments, f"call{run.calls + 1:05d}")
    (result,) = yield from run.perform([call])
    run.messages.append(Message("user", f"Observation: {result.content}"))


def _described(tool: Tool) -> str:
    return f"- {tool.name}: {tool.description} Arguments: {json.dumps(tool.parameters, ensure_ascii=False)}"
