"""Plan, execute, replan (Plan-and-Solve, Wang et al. 2023, arXiv:2305.04091; with a new plan where a step shows the old
one wrong)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dougong.agent.events import Planned
from dougong.agent.patterns.native import Pattern, conclude
from dougong.agent.patterns.react import react

if TYPE_CHECKING:
    from dougong.agent.run import Run, Steps


def steps_schema(most: int) -> dict[str, Any]:
    """A plan of up to `most` steps; none: nothing is left to do."""
    steps = {"type": "array", "items": {"type": "string"}, "maxItems": most}
    return {
        "type": "object",
        "properties": {"steps": steps},
        "required": ["steps"],
        "additionalProperties": False,
    }


def plan(run: Run, *, base: Pattern = react, most: int = 6, replans: int = 3) -> Steps[str]:
    """Write a plan of up to `most` steps, do them one by one, look at the plan again after each, and answer.

    Each step is a conversation of its own that begins with the results so far. replans: how often what is left may be
    changed. Without a plan that can be read, the task is done in one go.
    """
    tools = "".join(f"\n- {name}: {action.tool.description}" for name, action in run.tools.items())
    prompt = (
        f"Task: {run.task}\n\nTools:{tools or ' none'}\n\nWrite a plan of at most {most} steps, each of which can be "
        "done on its own with the results of those before it. Do not carry it out."
    )
    steps = yield from _planned(run, prompt, most)
    if not steps:
        return (yield from base(run))
    done: list[tuple[str, str]] = []
    while steps:
        step, *steps = steps
        result = yield from base(run, task=_step(run.task, done, step))
        done.append((step, result))
        if steps and replans > 0:
            changed = yield from _again(run, done, steps, most)
            if changed is not None and changed != steps:
                replans -= 1
                steps = changed
    run.begin(
        run.form, task=f"Task: {run.task}\n\nWhat was done:\n{_told(done)}\n\nGive the answer to the task from this."
    )
    return (yield from conclude(run))


def _planned(run: Run, prompt: str, most: int) -> Steps[list[str]]:
    said = yield from run.ask_for(prompt, steps_schema(most), "plan", whole=False)
    steps = [each.strip() for each in said.get("steps", []) if each.strip()]
    if steps:
        run.tick()
        yield run.event(Planned, steps=tuple(steps))
    return steps


def _again(run: Run, done: list[tuple[str, str]], steps: list[str], most: int) -> Steps[list[str] | None]:
    """What is left to do after a step, as the model sees it now; None where it cannot be read."""
    left = "\n".join(f"- {each}" for each in steps)
    prompt = (
        f"Task: {run.task}\n\nDone so far:\n{_told(done)}\n\nLeft of the plan:\n{left}\n\nWrite what is left to do "
        "now: the same steps if they still serve, others if not, none if the task can be answered."
    )
    said = yield from run.ask_for(prompt, steps_schema(most), "replan", whole=False)
    if "steps" not in said:
        return None
    changed = [each.strip() for each in said["steps"] if each.strip()]
    if changed != steps:
        run.tick()
        yield run.event(Planned, steps=tuple(changed))
    return changed


def _step(task: str, done: list[tuple[str, str]], step: str) -> str:
    before = f"Done so far:\n{_told(done)}\n\n" if done else ""
    return f"This is a step of a larger task: {task}\n\n{before}Do this step alone, and tell its result: {step}"


def _told(done: list[tuple[str, str]]) -> str:
    return "\n".join(f"{number}. {step}\n   Result: {result}" for number, (step, result) in enumerate(done, start=1))
