"""`dougong tokenizer`: train, encode, decode, show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dougong.base import DougongError
from dougong.cli import Command, UsageError, dispatch
from dougong.cli.options import Flag, existing, given_text, hint, parse

if TYPE_CHECKING:
    from dougong.tokenizer import Tokenizer

COMMANDS = {
    "train": Command("learn a byte-level BPE vocabulary from text", __name__, "train"),
    "encode": Command("text to ids", __name__, "encode"),
    "decode": Command("ids to text", __name__, "decode"),
    "show": Command("size, special tokens, and how a text is cut", __name__, "show"),
}

EXAMPLES = """\
examples:
  dougong tokenizer train novel.txt --vocab 4096 --out runs/tokenizer
  dougong tokenizer encode runs/tokenizer "Once upon a time"

`dougong tokenizer COMMAND --help` explains a command."""

TokenizerPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENIZER")]


@dataclass(frozen=True)
class Train:
    """Learn a byte-level BPE vocabulary and write it as a folder that transformers opens too.

    examples:
      dougong tokenizer train novel.txt articles/ --vocab 4096 --out runs/tokenizer
      dougong tokenizer train --stdlib --out runs/tokenizer
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")] = ()
    """files or folders of text"""
    out: Path = Path("runs/tokenizer")
    """the folder to write"""
    vocab: int = 4096
    """tokens to learn, the 256 bytes and the special tokens among them"""
    pattern: str = "qwen2"
    """how text is cut into words first: gpt2, llama3 (digits by three), qwen2 (each digit alone), o200k"""
    key: str = "text"
    """the field of JSON lines that holds the text"""
    stdlib: Flag = False
    """learn from the standard library of the running Python"""


@dataclass(frozen=True)
class Encode:
    """Print the ids of a text, on one line.

    examples:
      dougong tokenizer encode runs/tokenizer "Once upon a time"
      cat novel.txt | dougong tokenizer encode runs/tokenizer - > ids.txt
    """

    path: TokenizerPath
    """a tokenizer's folder or file, or a model folder"""
    text: Annotated[str | None, tyro.conf.Positional, hint("standard input", "TEXT")] = None
    """what to encode; - reads standard input"""
    specials: Flag = False
    """read the names of special tokens as those tokens"""


@dataclass(frozen=True)
class Decode:
    """Print the text of ids.

    examples:
      dougong tokenizer decode runs/tokenizer 312 87 1034
      dougong tokenizer decode runs/tokenizer - < ids.txt
    """

    path: TokenizerPath
    """a tokenizer's folder or file, or a model folder"""
    ids: Annotated[tuple[str, ...], tyro.conf.Positional, hint("standard input", "ID...")] = ()
    """token ids; - reads standard input"""
    specials: Flag = False
    """print special tokens by their names"""


@dataclass(frozen=True)
class Show:
    """Print a tokenizer's size and special tokens, and how it cuts a text.

    examples:
      dougong tokenizer show runs/tokenizer
      dougong tokenizer show runs/tokenizer --text "Once upon a time 斗拱"
    """

    path: TokenizerPath
    """a tokenizer's folder or file, or a model folder"""
    text: Annotated[str | None, hint("none")] = None
    """a text to cut"""
    json: Flag = False
    """print one JSON object"""


def run(args: list[str]) -> int:
    return dispatch("dougong tokenizer", "Text to ids and back.", COMMANDS, args, EXAMPLES)


def open_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer's folder or file; of a run folder its tokenizer, of a model folder the model's."""
    from dougong.tokenizer import Tokenizer

    for inside in ("tokenizer", "model"):
        if not (path / "tokenizer.json").is_file() and (path / inside / "tokenizer.json").is_file():
            return Tokenizer.load(path / inside)
    return Tokenizer.load(path)


def train(args: list[str]) -> int:
    options = parse(Train, args, "tokenizer train")
    if bool(options.paths) == options.stdlib:
        raise UsageError("give files or folders of text, or --stdlib; see dougong tokenizer train --help")
    from dougong.data import read_documents, standard_library
    from dougong.tokenizer import train_tokenizer

    documents = standard_library() if options.stdlib else read_documents(list(options.paths), key=options.key)
    texts = [document.text for document in documents]
    tokenizer = train_tokenizer(texts, options.vocab, options.pattern)
    tokenizer.save(options.out)
    sample = texts[:: max(1, len(texts) // 200)]
    tokens = sum(map(len, tokenizer.encode_batch(sample)))
    size = sum(len(text.encode("utf-8")) for text in sample)
    print(f"{tokenizer.vocab_size:,} tokens from {len(texts):,} documents, {size / max(1, tokens):.2f} bytes a token")
    print(f"the tokenizer is {options.out}")
    return 0


def encode(args: list[str]) -> int:
    options = parse(Encode, args, "tokenizer encode")
    tokenizer = open_tokenizer(existing(options.path))
    print(*tokenizer.encode(given_text(options.text), specials=options.specials))
    return 0


def decode(args: list[str]) -> int:
    options = parse(Decode, args, "tokenizer decode")
    tokenizer = open_tokenizer(existing(options.path))
    given = given_text(" ".join(options.ids) or None).replace(",", " ").split()
    ids = []
    for each in given:
        if not each.isdecimal():
            raise DougongError(f"{each!r} is not a token id; give whole numbers from 0")
        ids.append(int(each))
    print(tokenizer.decode(ids, skip_special=not options.specials))
    return 0


def show(args: list[str]) -> int:
    options = parse(Show, args, "tokenizer show")
    tokenizer = open_tokenizer(existing(options.path))
    facts: dict[str, Any] = {
        "size": tokenizer.vocab_size,
        "special": {role: [token, tokenizer.token_id(token)] for role, token in tokenizer.roles.items()},
        "ends": list(tokenizer.eos_ids),
        "chat_template": tokenizer.chat_template is not None,
    }
    if options.text is not None:
        ids = tokenizer.encode(options.text)
        facts["pieces"] = [[index, tokenizer.token_bytes(index).decode("utf-8", "replace")] for index in ids]
    if options.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    print(f"{facts['size']:,} tokens, {'with' if facts['chat_template'] else 'without'} a chat template")
    for role, (token, index) in facts["special"].items():
        print(f"  {role:<12} {token}  ({index})")
    print(f"  {'ends text':<12} {', '.join(map(str, facts['ends'])) or 'none'}")
    for index, piece in facts.get("pieces", ()):
        print(f"  {index:>7}  {piece!r}")
    return 0
