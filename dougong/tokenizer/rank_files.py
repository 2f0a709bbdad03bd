"""Vocabularies that rank tokens and leave the merges to be worked out: llama2.c's tok*.bin and OpenAI's *.tiktoken."""

from __future__ import annotations

import base64
import binascii
import struct
from pathlib import Path

from dougong.base import DougongError, nearest
from dougong.tokenizer.build import bpe_core
from dougong.tokenizer.patterns import PATTERNS
from dougong.tokenizer.recover import recover_merges
from dougong.tokenizer.tokenizer import Tokenizer
from dougong.tokenizer.words import BYTE_TO_CHAR, SPACE, Words, fallback_byte, words_named

_SPECIALS = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2 of every llama2.c vocabulary
_LONGEST = 4096  # bytes of a token; more means that the file is something else


def load_llama2c(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """Read llama2.c's file (tokenizer.py, `export`): int32 longest token, then (float32 score, int32 n, n bytes) each.

    The file does not say how many tokens it has: `vocab_size` tokens are read, or all to its end. Raises DougongError
    for a file cut short and for one of another kind.
    """
    pieces, scores = _read_records(path, vocab_size)
    if len(pieces) < 3:
        raise DougongError(f"{path} has {len(pieces)} tokens; a llama2.c tokenizer begins with unk, bos and eos")
    tokens = [*_SPECIALS, *(piece.replace(" ", SPACE) for piece in pieces[3:])]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise DougongError(f"{path} has the token {twice!r} twice, so it is damaged or no llama2.c tokenizer")
    fallback = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    text = [index for index in range(3, len(tokens)) if fallback_byte(tokens[index]) is None]
    merges = recover_merges(tokens[index] for index in sorted(text, key=lambda i: (-scores[i], i)))
    core = bpe_core(
        vocab,
        merges,
        Words("sentencepiece"),
        special_tokens=_SPECIALS,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=fallback,
    )
    return Tokenizer(core, roles={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"})


def _read_records(path: Path, vocab_size: int | None) -> tuple[list[str], list[float]]:
    data = path.read_bytes()
    if len(data) < 4:
        raise DougongError(f"{path} has {len(data)} bytes; it is no llama2.c tokenizer")
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data) and (vocab_size is None or len(pieces) < vocab_size):
        if at + 8 > len(data):
            raise DougongError(f"{path} ends within token {len(pieces)}; the file is cut short, fetch it again")
        score, size = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= size <= _LONGEST or score != score:
            raise DougongError(f"{path} is no llama2.c tokenizer: token {len(pieces)} would have {size} bytes")
        if at + size > len(data):
            raise DougongError(f"{path} ends within token {len(pieces)}; the file is cut short, fetch it again")
        try:
            pieces.append(data[at : at + size].decode("utf-8"))
        except UnicodeDecodeError:
            raise DougongError(f"{path} is no llama2.c tokenizer: token {len(pieces)} is not UTF-8") from None
        scores.append(score)
        at += size
    if vocab_size is not None and len(pieces) < vocab_size:
        raise DougongError(f"{path} has {len(pieces)} tokens, fewer than the {vocab_size} asked for")
    return pieces, scores


# Special tokens of OpenAI's encodings, from tiktoken_ext/openai_public.py.
_END = "<|endoftext|>"
_TIKTOKEN: dict[str, tuple[str, dict[str, int]]] = {
    "r50k": ("gpt2", {_END: 50256}),
    "p50k": ("gpt2", {_END: 50256}),
    "cl100k": (
        "cl100k",
        {
            _END: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k": ("o200k", {_END: 199999, "<|endofprompt|>": 200018}),
}


def load_tiktoken(path: Path, pattern: str | None = None) -> Tokenizer:
    """Read a .tiktoken file: a token in base64 and its rank on each line.

    The pattern is not in the file. OpenAI's files are known by their names (r50k, p50k, cl100k, o200k), which also
    gives their special tokens; any other file needs `pattern` and has no special tokens. Raises DougongError for a file
    that is damaged or needs a pattern.
    """
    known = next((known for prefix, known in _TIKTOKEN.items() if path.name.startswith(prefix)), None)
    if pattern is None and known is None:
        raise DougongError(f"{path} does not say how words are cut; give pattern= one of {', '.join(PATTERNS)}")
    if pattern is not None and pattern not in PATTERNS:
        raise DougongError(f"unknown pattern {pattern!r}{nearest(pattern, PATTERNS)}")
    spelled: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            code, rank = line.split()
            token = base64.b64decode(code, validate=True)
            spelled["".join(BYTE_TO_CHAR[byte] for byte in token)] = int(rank)
        except (ValueError, binascii.Error):
            raise DougongError(f"{path} line {number} is not a token in base64 and its rank") from None
    missing = [char for char in BYTE_TO_CHAR if char not in spelled]
    if missing:
        raise DougongError(f"{path} lacks {len(missing)} of the 256 single bytes; it is damaged or cut short")
    own_pattern, specials = known or ("", {})
    merges = recover_merges(sorted(spelled, key=spelled.__getitem__))
    words = words_named(pattern or own_pattern)
    core = bpe_core({**spelled, **specials}, merges, words, special_tokens=specials, ignore_merges=True)
    return Tokenizer(core, roles={"eos_token": _END} if specials else {})
