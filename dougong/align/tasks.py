"""Tasks to be answered: read from files, or made by the package's own skills."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dougong.align.rewards.sample import Task
from dougong.base import DougongError
from dougong.data import Problem
from dougong.data.chat import Message, asked, conversation_from
from dougong.data.readers import read_records, well_formed

_QUESTIONS = ("question", "problem", "prompt", "instruction", "query")
_TRUTHS = ("answer", "solution", "ground_truth", "target", "output", "response", "code")


def read_tasks(paths: str | Path | Iterable[str | Path]) -> Iterator[Task]:
    """The tasks of .json and .jsonl files (or .gz of them).

    The question is a text under question, problem, prompt, instruction (with input) or query, or messages, whose last
    turn is left out where it is the assistant's. What is right stands under answer, solution, ground_truth, target,
    output or response, if anywhere; a long one with its reasoning, such as GSM8K's, is also the solution to learn from.
    schema (JSON schema) and tests (Python; MBPP's test_list, HumanEval's test and entry_point) go to `facts`.

    Raises DougongError that names the file, the number of the example (from 1) and what is wrong.
    """
    return read_records(paths, task_from, "tasks")


def task_from(row: Any, source: str, where: str = "") -> Task:
    """One task from one row of data; `where` names the row in errors. See read_tasks."""
    where = where or source
    if not isinstance(row, Mapping):
        raise DougongError(f"{where} is {type(row).__name__}; expected an object with a question")
    messages = _asked(row, source, where)
    truth = next((row[key] for key in _TRUTHS if isinstance(row.get(key), (str, int, float))), "")
    truth = well_formed(str(truth))
    facts: dict[str, Any] = {}
    if "schema" in row:
        facts["schema"] = row["schema"]
    tests = _tests(row)
    if tests:
        facts["tests"] = tests
    short = truth.rsplit("####", 1)[-1].strip() if "####" in truth else truth
    return Task(messages, short, truth, facts=facts, source=source)


def _asked(row: Mapping[str, Any], source: str, where: str) -> tuple[Message, ...]:
    keys = ("messages", "text", *_QUESTIONS)
    turns = asked(row, keys if isinstance(row.get("messages"), list) else keys[1:])
    if turns is None:
        raise DougongError(
            f"{where} has the keys {', '.join(map(str, row)) or 'none'}; expected messages or one of "
            f"{', '.join(_QUESTIONS)}"
        )
    if turns and isinstance(turns[-1], Mapping) and turns[-1].get("role", turns[-1].get("from")) in (
        "assistant", "gpt",
    ):  # fmt: skip
        turns = turns[:-1]
    if not turns:
        raise DougongError(f"{where} asks nothing; expected a question")
    # The reader of conversations checks roles and texts; it wants an answer, which is taken off again.
    checked = conversation_from({"messages": [*turns, {"role": "assistant", "content": ""}]}, source, where)
    return checked.messages[:-1]


def _tests(row: Mapping[str, Any]) -> str:
    for key in ("tests", "test_list"):
        value = row.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            setup = row.get("test_setup_code") or ""
            return "\n".join([str(setup), *map(str, value)]).strip()
    if isinstance(row.get("test"), str) and isinstance(row.get("entry_point"), str):
        return f"{row['test']}\ncheck({row['entry_point']})"
    return ""


def tasks_of(problems: Sequence[Problem]) -> list[Task]:
    """The package's own problems as tasks, each with its grader."""
    return [
        Task(each.messages, each.answer, each.answer, each.grader, source=f"skill:{each.skill}/{each.task}")
        for each in problems
    ]
