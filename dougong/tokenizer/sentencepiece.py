"""SentencePiece .model files (BPE and Unigram), read without the sentencepiece package.

The file is a protocol buffer (sentencepiece_model.proto): pieces with score and type, how they were trained, and how
text is normalized. Only the fields that change ids are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dougong.base import DougongError
from dougong.tokenizer.recover import recover_merges
from dougong.tokenizer.tokenizer import Tokenizer
from dougong.tokenizer.words import SPACE

if TYPE_CHECKING:
    import tokenizers

# Field numbers of ModelProto, TrainerSpec and NormalizerSpec, and the types of a piece.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK = 3, 35
_ROLE_IDS = {"unk_token": (40, 0), "bos_token": (41, 1), "eos_token": (42, 2), "pad_token": (43, -1)}
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_EXTRA_SPACES = 2, 3, 4
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_UNIGRAM, _BPE = 1, 2


def load_sentencepiece(path: Path) -> Tokenizer:
    """Read a .model file. Raises DougongError for any other file and for models that are neither BPE nor Unigram."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == _PIECE]
        trainer = _message(fields, _TRAINER)
        normalizer = _message(fields, _NORMALIZER)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error):
        raise DougongError(f"{path} is no SentencePiece model, or it is cut short") from None
    if not pieces or not trainer:
        raise DougongError(f"{path} is no SentencePiece model: it has {len(pieces)} pieces and no training record")
    kind = trainer.get(_MODEL_TYPE, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE):
        raise DougongError(
            f"{path} is a SentencePiece model of type {kind}; only BPE (2) and Unigram (1) are understood"
        )
    ids = {role: _signed(trainer.get(field, default)) for role, (field, default) in _ROLE_IDS.items()}
    core = _core(pieces, kind, ids["unk_token"], bool(trainer.get(_BYTE_FALLBACK, 0)))
    _dress(core, normalizer)
    core.add_special_tokens([text for text, _, type_ in pieces if type_ in (_UNKNOWN, _CONTROL)])
    core.add_tokens([text for text, _, type_ in pieces if type_ == _USER_DEFINED])
    roles = {role: pieces[index][0] for role, index in ids.items() if 0 <= index < len(pieces)}
    return Tokenizer(core, roles=roles)


def _core(pieces: list[tuple[str, float, int]], kind: int, unk: int, byte_fallback: bool) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    if kind == _UNIGRAM:
        scores = [(text, score) for text, score, _ in pieces]
        return Core(models.Unigram(vocab=scores, unk_id=unk, byte_fallback=byte_fallback))
    vocab = {text: index for index, (text, _, _) in enumerate(pieces)}
    normal = [index for index, (_, _, type_) in enumerate(pieces) if type_ == _NORMAL]
    merges = recover_merges(pieces[index][0] for index in sorted(normal, key=lambda i: (-pieces[i][1], i)))
    options: dict[str, Any] = {"unk_token": pieces[unk][0], "fuse_unk": True, "byte_fallback": byte_fallback}
    return Core(models.BPE(vocab=vocab, merges=merges, **options))


def _dress(core: tokenizers.Tokenizer, normalizer: dict[int, Any]) -> None:
    from tokenizers import Regex, decoders, normalizers

    prefix = bool(normalizer.get(_DUMMY_PREFIX, 1))
    steps: list[Any] = []
    if normalizer.get(_CHARSMAP):
        steps.append(normalizers.Precompiled(normalizer[_CHARSMAP]))
    if normalizer.get(_REMOVE_EXTRA_SPACES, 1):
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix:
        steps.append(normalizers.Prepend(SPACE))
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)


# -- protocol buffers --------------------------------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: int, float, or bytes for text and inner messages."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif wire == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        elif wire == 1:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(data):
            raise ValueError("cut short")
        yield number, value


def _message(fields: list[tuple[int, Any]], number: int) -> dict[int, Any]:
    inner = next((value for found, value in fields if found == number), b"")
    return dict(_fields(inner))


def _piece(data: bytes) -> tuple[str, float, int]:
    piece = dict(_fields(data))
    # Nine digits tell any two float32 apart, and tokenizer.json gives them back as they are.
    return piece[1].decode("utf-8"), float(f"{piece.get(2, 0.0):.9g}"), int(piece.get(3, _NORMAL))


def _signed(value: int) -> int:
    """int32 fields write negative numbers as 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value
