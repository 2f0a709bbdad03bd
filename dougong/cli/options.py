"""What commands share: options as frozen dataclasses, read by tyro; opening a model; reading a prompt."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from dougong.base import DougongError
from dougong.cli import UsageError

if TYPE_CHECKING:
    from dougong.engine import Grammar, Sampling
    from dougong.hub import LanguageModel

T = TypeVar("T")


def hint(default: str, metavar: str | None = None) -> Any:
    """Says in the help what the default None stands for."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


Device = Annotated[str | None, hint("cpu", "cpu|cuda")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"] | None, hint("as stored")]
Quantize = Annotated[Literal["int8", "int4", "packed"] | None, hint("as stored")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
ModelPath = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]


def parse(kind: type[T], args: list[str], command: str, default: T | None = None) -> T:
    """Read `args` as the fields of the dataclass `kind`, whose docstring is the help (end it with an example).

    `default` fills what the arguments leave out. Prints the help and raises SystemExit for --help; raises UsageError,
    one line, for anything wrong.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                kind,
                args=args,
                prog=f"dougong {command}",
                description=inspect.cleandoc(kind.__doc__ or ""),
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.DisallowNone, tyro.conf.HelptextFromCommentsOff),
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UsageError(f"{_one_line(told.getvalue())}; see dougong {command} --help") from None


def _one_line(box: str) -> str:
    """What tyro says in a box of several lines, without the frame, the option's help and the footer. Where the output
    is not UTF-8 the box is its title, a rule of hyphens and the rest."""
    text = re.sub(r"\A[^\n]*\n *-{3,} *\n", "", box)
    text = re.sub(r"[│╭╮╰╯]|─+[^─\n]*─+╮", " ", text)
    parts = [" ".join(part.split()) for part in re.split(r"─{3,}|(?m:^ *-{3,} *$)", text)]
    kept = [part for part in parts if part and not part.startswith(("Argument helptext", "For full helptext"))]
    line = "; ".join(kept).replace("Error parsing ", "").rstrip(".") or "the command line cannot be read"
    return _UNION.sub(r"invalid choice '\3' for argument '\1'. Expected one of \2", _CHOICES.sub(_listed, line))


# Of a choice that may be left out tyro counts None among the choices, which nobody can give, in an order that changes
# from run to run; where somebody does give it, it tells what types it tried.
_CHOICES = re.compile(r"(?<=Expected one of )\(([^)]*)\)")
_UNION = re.compile(r"(--\S+): no type matching \{([^}]*)\} could be instantiated from \['(.*?)'\]\. Got errors:.*")


def _listed(choices: re.Match[str]) -> str:
    names = (each.strip().strip("'") for each in choices[1].split(","))
    return ", ".join(sorted(name for name in names if name not in ("", "None")))


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen."""

    max_tokens: int = 256
    """at most this many new tokens"""
    temperature: Annotated[float | None, hint("the model's own, else 0.8")] = None
    """0 always takes the most probable token; higher is more varied"""
    top_k: Annotated[int | None, hint("the model's own, else all")] = None
    """only the k most probable tokens"""
    top_p: Annotated[float | None, hint("the model's own, else 0.95")] = None
    """only the fewest tokens whose probabilities sum to p"""
    min_p: Annotated[float | None, hint("all")] = None
    """only tokens at least this many times as probable as the best one"""
    typical_p: Annotated[float | None, hint("the model's own, else all")] = None
    """only the tokens of the most usual surprise whose probabilities sum to p"""
    repetition_penalty: Annotated[float | None, hint("the model's own, else none")] = None
    """above 1, tokens that were there before come less often"""
    presence_penalty: float = 0.0
    """taken off the logit of tokens that the answer has already"""
    frequency_penalty: float = 0.0
    """the same, once for each time that it has them"""
    beams: int = 1
    """width of a beam search, which takes the place of drawing"""
    length_penalty: float = 1.0
    """of beams: above 1 favours long answers, below 1 short ones"""
    speculation: Annotated[Literal["prompt_lookup", "mtp"] | None, hint("none")] = None
    """guess tokens ahead, and keep what the model confirms: same answers, sometimes sooner"""
    json_schema: Annotated[str | None, hint("none")] = None
    """the answer is JSON of this schema: a file, or the schema itself"""
    regex: Annotated[str | None, hint("none")] = None
    """the answer matches this regular expression"""
    seed: Annotated[int | None, hint("a new one each time")] = None
    """the same seed gives the same answer"""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """a text that ends the answer and is cut from it"""

    def sampling(self, lm: LanguageModel) -> Sampling:
        """What was asked for, filled up from the model's generation_config.json and then from our defaults."""
        from dougong.engine import Sampling

        def first(asked: Any, name: str, default: Any) -> Any:
            own = lm.generation.get(name)
            return next((value for value in (asked, own) if value is not None), default)

        def drawn(asked: Any, name: str, default: Any, off: Any) -> Any:
            """What only drawing heeds: beams are refused with it, so it is left out where nobody asked."""
            return first(asked, name, default) if self.beams == 1 else off if asked is None else asked

        return Sampling(
            max_tokens=self.max_tokens,
            temperature=first(self.temperature, "temperature", 0.8),
            top_k=drawn(self.top_k, "top_k", None, None) or None,  # 0 in the model's file means all
            top_p=drawn(self.top_p, "top_p", 0.95, 1.0),
            min_p=drawn(self.min_p, "min_p", 0.0, 0.0),
            seed=self.seed,
            stop=self.stop,
            typical_p=drawn(self.typical_p, "typical_p", 1.0, 1.0),
            repetition_penalty=first(self.repetition_penalty, "repetition_penalty", 1.0),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            beams=self.beams,
            length_penalty=self.length_penalty,
            speculation=self.speculation,
            grammar=self._grammar(),
        )

    def _grammar(self) -> Grammar | None:
        from dougong.engine import Grammar

        if self.json_schema is not None and self.regex is not None:
            raise DougongError("--json-schema and --regex are both given; an answer can follow one of them")
        if self.regex is not None:
            return Grammar.regex(self.regex)
        if self.json_schema is None:
            return None
        text = self.json_schema
        if not text.lstrip().startswith("{"):
            try:
                text = Path(text).expanduser().read_text(encoding="utf-8")
            except OSError as error:
                raise DougongError(
                    f"--json-schema {text}: {error.strerror}; give a file, or the schema itself"
                ) from error
        return Grammar.json_schema(text)


def open_model(path: str, dtype: str | None, device: str | None, quantize: str | None = None) -> LanguageModel:
    """`dougong.load`, with a wrong device told as an error of ours."""
    import torch

    from dougong.compress import load

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DougongError(f"the device {device!r} cannot be used: {reason}") from None
    return load(path, dtype=dtype, device=device, quantize=quantize)


def given_text(text: str | None) -> str:
    """The text given; standard input, without its last line end, for "-" or where none was given and input is piped."""
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise DougongError("standard input is not UTF-8 text; convert it first") from None


def existing(path: Path) -> Path:
    """The path itself. Raises DougongError where nothing is there."""
    if not path.exists():
        raise DougongError(f"{path} does not exist")
    return path
