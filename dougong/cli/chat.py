"""`dougong chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dougong.base import DougongError, atomic_file
from dougong.cli.options import Device, Dtype, ModelPath, Quantize, SamplingOptions, hint, open_model, parse

if TYPE_CHECKING:
    from dougong.engine import Engine, Sampling

HELP = """\
/reset          forget the conversation (the system message stays)
/system TEXT    set the system message and begin anew; without TEXT, none
/save FILE      write the conversation as a line of JSON, as `dougong sft` reads it
/exit           leave (so does Ctrl-D)
Ctrl-C          interrupt the answer
A line that ends with \\ goes on in the next; \"\"\" begins and ends a text of several lines."""


@dataclass(frozen=True)
class Chat:
    """Talk to a model. /help lists what can be typed besides messages.

    Piped input is read line by line, and only the answers are printed.

    examples:
      dougong chat runs/demo
      echo "What is 2 + 3?" | dougong chat runs/demo --temperature 0
    """

    path: ModelPath
    """a model folder, a run folder, or a hub id; the model must have a chat template"""
    system: Annotated[str | None, hint("none")] = None
    """the system message"""
    sampling: Annotated[SamplingOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=SamplingOptions)
    dtype: Dtype = None
    """of the weights while running"""
    device: Device = None
    """where to run"""
    quantize: Quantize = None
    """run in 8 or 4 bits, or with floats packed for the CPU"""


def run(args: list[str]) -> int:
    options = parse(Chat, args, "chat")
    lm = open_model(options.path, options.dtype, options.device, options.quantize)
    if lm.tokenizer is None or lm.tokenizer.chat_template is None:
        what = "tokenizer" if lm.tokenizer is None else "chat template"
        raise DougongError(
            f'{options.path} has no {what}, so it cannot chat; try: dougong generate {options.path} "..."'
        )
    from dougong.engine import Engine

    talk = Talk(Engine(lm), options.sampling.sampling(lm), options.system)
    terminal = sys.stdin.isatty()
    if terminal:
        _line_editing()
        print("/help for help", file=sys.stderr)
    return talk.run(_lines(terminal), terminal)


class Talk:
    """The conversation so far, and what happens to each message."""

    def __init__(self, engine: Engine, sampling: Sampling, system: str | None = None):
        self.engine = engine
        self.sampling = sampling
        self.messages: list[dict[str, Any]] = []
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: _note(HELP),
            "/reset": lambda _: self.begin(self.system),
            "/system": lambda text: self.begin(text or None),
            "/save": self.save,
        }
        self.begin(system)

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    def begin(self, system: str | None) -> None:
        """A new conversation."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def run(self, texts: Iterator[str], terminal: bool) -> int:
        """Answer every text until the input ends. The exit status is 1 if something failed unseen by anyone."""
        status = 0
        for text in texts:
            name, _, rest = text.strip().partition(" ")
            try:
                if name in ("/exit", "/quit"):
                    break
                if name in self.commands:
                    self.commands[name](rest.strip())
                elif name.startswith("/") and name[1:].isalpha():
                    raise DougongError(f"unknown command {name}; /help lists them")
                elif text.strip():
                    self.answer(text)
            except DougongError as error:
                _note(f"error: {error}")
                status = 0 if terminal else 1
        return status

    def answer(self, text: str) -> None:
        """Print the model's answer as it comes, and remember both. Ctrl-C keeps what was said so far."""
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            events = self.engine.stream([self.prompt()], self.sampling)
            try:
                for event in events:
                    said.append(event.text)
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
            except KeyboardInterrupt:
                _note("\n(interrupted)")
        except BaseException:
            self.messages.pop()  # a message that was not answered would confuse the next one
            raise
        print(flush=True)
        self.messages.append({"role": "assistant", "content": "".join(said)})

    def prompt(self) -> list[int]:
        """Ids of the conversation up to the place where the assistant speaks.

        The oldest turns go where they leave no room for an answer. Raises DougongError when the last message alone is
        too long.
        """
        from dougong.tokenizer.chat import render_prompt

        tokenizer, context = self.engine.lm.tokenizer, self.engine.lm.spec.context
        assert tokenizer is not None
        room = min(self.sampling.max_tokens, context // 4)
        forgotten = 0
        while True:
            _, ids = render_prompt(tokenizer, self.messages, None, {})
            if len(ids) + room <= context:
                break
            first = int(self.system is not None)
            if len(self.messages) - first < 3:
                if len(ids) < context:
                    break
                raise DougongError(
                    f"the message makes {len(ids)} tokens, but the model's context is {context}; shorten it"
                )
            del self.messages[first : first + 2]
            forgotten += 1
        if forgotten:
            _note(f"(forgot the oldest {forgotten} turns: the model's context is {context} tokens)")
        return ids

    def save(self, name: str) -> None:
        """Write the conversation where `name` says."""
        import json

        if not name:
            raise DougongError("/save needs the name of a file, such as /save talk.jsonl")
        path = Path(name).expanduser()
        if path.is_dir():
            raise DougongError(f"{path} is a folder; name a file in it, such as {path / 'talk.jsonl'}")
        with atomic_file(path) as stream:
            stream.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        _note(f"saved {len(self.messages)} messages in {path}")


def _note(text: str) -> None:
    """Anything that is not the model's answer goes beside it, so that answers can be piped on."""
    print(text, file=sys.stderr, flush=True)


def _line_editing() -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrows and history in input())


def _lines(terminal: bool) -> Iterator[str]:
    """Messages as typed: a line, lines joined by a backslash at their end, or lines between triple quotes."""
    held: list[str] = []
    quoted = False
    while True:
        try:
            line = input(("... " if held or quoted else "> ") if terminal else "")
        except EOFError:
            if held:
                yield "\n".join(held)
            if terminal:
                print(file=sys.stderr)
            return
        except UnicodeDecodeError:
            raise DougongError("standard input is not UTF-8 text; convert it first") from None
        except KeyboardInterrupt:
            if not terminal:
                raise
            held, quoted = [], False
            _note("\n(/exit leaves)")
            continue
        if quoted:
            quoted = not line.rstrip().endswith('"""')
            held.append(line if quoted else line.rstrip().removesuffix('"""'))
        elif line.startswith('"""'):
            rest = line.removeprefix('"""')
            quoted = not rest.rstrip().endswith('"""')
            held.append(rest if quoted else rest.rstrip().removesuffix('"""'))
        elif line.endswith("\\"):
            held.append(line.removesuffix("\\"))
            continue
        else:
            held.append(line)
        if not quoted:
            text, held = "\n".join(held).strip("\n"), []
            yield text
