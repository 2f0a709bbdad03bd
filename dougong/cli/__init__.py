"""The command line: `dougong COMMAND ...`. A command is a module with `run(args) -> exit status`, loaded when called.

`dougong --help` imports neither torch nor tyro. Exit status: 0 done, 1 failed, 2 a wrong command line, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dougong import __version__
from dougong.base import DougongError, nearest


class Command(NamedTuple):
    """What `--help` says of a command, and the function that runs it: takes arguments, returns the exit status."""

    summary: str
    module: str
    function: str = "run"


COMMANDS: dict[str, Command] = {
    "demo": Command("from raw text to a model you can talk to, offline, in minutes", "dougong.cli.demo"),
    "tokenizer": Command("train a tokenizer; encode, decode, show", "dougong.cli.tokenizer"),
    "pretrain": Command("train a model on text", "dougong.cli.pretrain"),
    "sft": Command("teach a model from conversations, with loss on the answers alone", "dougong.cli.sft"),
    "prefer": Command("teach a model which answers are preferred, or to score them", "dougong.cli.prefer"),
    "rl": Command("reinforcement learning from rewards, on the model's own answers", "dougong.cli.rl"),
    "merge": Command("adapters into the weights of their model", "dougong.cli.merge"),
    "upcycle": Command("a dense model becomes a mixture of experts that computes the same", "dougong.cli.upcycle"),
    "generate": Command("continue a text", "dougong.cli.generate"),
    "chat": Command("talk to a model in the terminal", "dougong.cli.chat"),
    "serve": Command("a model behind OpenAI's API, and a chat page", "dougong.cli.serve"),
    "embed": Command("texts as vectors; training an embedder", "dougong.cli.embed"),
    "rag": Command("answers with citations from a folder of documents", "dougong.cli.rag"),
    "agent": Command("a model that works at tasks with tools", "dougong.cli.agent"),
    "eval": Command("measure a model", "dougong.cli.evaluate"),
    "plan": Command("parameters, memory, time and energy of a model before it is built", "dougong.cli.plan"),
    "lab": Command("experiments that measure what textbooks claim", "dougong.cli.lab"),
    "diff": Command("the first block where two models part", "dougong.cli.diff"),
    "show": Command("what is in a model folder or a run folder", "dougong.cli.show"),
}

EXAMPLES = """\
examples:
  dougong demo
  dougong generate runs/demo "Once upon a time"
  dougong chat runs/demo
  dougong plan --width 512 --depth 8 --heads 8

`dougong COMMAND --help` explains a command. DOUGONG_DEBUG=1 shows where an error came from."""


class UsageError(DougongError):
    """A wrong command line: told in one line like any error, with exit status 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return the exit status. Never raises."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(args)
        sys.stdout.flush()  # here, not at exit: a reader that has gone is then still ours to handle
        return status
    except SystemExit as leaving:  # tyro, after printing help
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has what it wanted. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _explain(error)


def _run(args: list[str]) -> int:
    if args[:1] == ["--version"]:
        print(f"dougong {__version__}")
        return 0
    return dispatch("dougong", "The large-language-model stack as parts that interlock.", COMMANDS, args, EXAMPLES)


def dispatch(name: str, about: str, commands: Mapping[str, Command], args: list[str], examples: str) -> int:
    """Run the command that the first argument names, or print the list. Raises UsageError for an unknown command."""
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, commands))
        print(f"usage: {name} COMMAND [...]\n\n{about}\n\ncommands:")
        for key, command in commands.items():
            print(f"  {key:<{width}}  {command.summary}")
        print(f"\n{examples}")
        return 0 if args else 2
    if args[0] not in commands:
        what = "option" if args[0].startswith("-") else "command"
        raise UsageError(f"unknown {what} {args[0]!r}{nearest(args[0], commands)}; see {name} --help")
    chosen = commands[args[0]]
    return getattr(importlib.import_module(chosen.module), chosen.function)(args[1:])


def _explain(error: Exception) -> int:
    if os.environ.get("DOUGONG_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    elif isinstance(error, (DougongError, OSError)):
        print(f"error: {_line(error)}", file=sys.stderr)
    elif isinstance(error, MemoryError):
        print("error: there is not enough memory for this; choose a smaller model or batch", file=sys.stderr)
    else:
        kind = type(error).__name__
        print(f"error: {kind}: {_line(error)} (a fault of dougong; DOUGONG_DEBUG=1 shows where)", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
