"""Tokenizers in GGUF metadata: byte-level BPE ("gpt2") and SentencePiece with scores ("llama")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dougong.base import DougongError

if TYPE_CHECKING:
    import tokenizers

    from dougong.tokenizer import Tokenizer

_PREFIX = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6  # types of a token; 1 is an ordinary one
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_ENDS = ("eos", "eot", "eom")
# How words are cut, by the name that llama.cpp's converter found for it: the rule's name here, words taken whole.
_CUTS = {
    "gpt-2": ("gpt2", False),
    "gpt2": ("gpt2", False),
    "qwen2": ("qwen2", False),
    "deepseek-r1-qwen": ("qwen2", False),
    "llama-bpe": ("llama3", True),
    "llama3": ("llama3", True),
    "llama-v3": ("llama3", True),
    "smollm": ("gpt2", False),
}


def read_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that begin and end a text, as in generation_config.json."""
    ends = [metadata[key] for name in _ENDS if (key := f"{_PREFIX}{name}_token_id") in metadata]
    begin = metadata.get(f"{_PREFIX}bos_token_id")
    found = {"bos_token_id": begin, "eos_token_id": list(dict.fromkeys(ends))}
    return {key: value for key, value in found.items() if value not in (None, [])}


def read_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer, or None where there is none, or one of a kind (or with a cutting of words) that is not known.

    Raises DougongError for lists that do not belong together.
    """
    kind, cut = metadata.get(f"{_PREFIX}model"), metadata.get(f"{_PREFIX}pre", "")
    tokens = metadata.get(f"{_PREFIX}tokens")
    if not isinstance(tokens, list) or not tokens:
        return None
    if len(set(tokens)) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if token in tokens[:index])
        raise DougongError(f"the tokenizer in the GGUF file has the token {twice!r} twice")
    types = metadata.get(f"{_PREFIX}token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise DougongError(f"the tokenizer in the GGUF file has {len(tokens)} tokens, but {len(types)} types of them")
    if kind == "gpt2" and cut in _CUTS and isinstance(metadata.get(f"{_PREFIX}merges"), list):
        core, begins = _bytes(tokens, metadata[f"{_PREFIX}merges"], cut), cut in ("llama-bpe", "llama3", "llama-v3")
    elif kind == "llama" and len(metadata.get(f"{_PREFIX}scores") or []) == len(tokens):
        core, begins = _pieces(tokens, types, metadata), True
    else:
        return None
    return _finished(core, tokens, types, metadata, begins)


def _bytes(tokens: list[str], merges: list[str], cut: str) -> tokenizers.Tokenizer:
    from tokenizers import normalizers, pre_tokenizers

    from dougong.tokenizer.build import bpe_core
    from dougong.tokenizer.words import words_named

    pattern, whole = _CUTS[cut]
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocab = {token: index for index, token in enumerate(tokens)}
    core = bpe_core(vocab, pairs, words_named(pattern), ignore_merges=whole)
    if pattern == "qwen2":
        core.normalizer = normalizers.NFC()
    if cut == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        core.pre_tokenizer = pre_tokenizers.Sequence([digits, core.pre_tokenizer])
    return core


def _pieces(tokens: list[str], types: list[int], metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import decoders, normalizers

    from dougong.tokenizer.build import bpe_core
    from dougong.tokenizer.recover import recover_merges
    from dougong.tokenizer.words import SPACE, words_named

    scores, apart = metadata[f"{_PREFIX}scores"], (_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE)
    ordinary = [index for index, kind in enumerate(types) if kind not in apart]
    merges = recover_merges(tokens[index] for index in sorted(ordinary, key=lambda index: (-scores[index], index)))
    vocab = {token: index for index, token in enumerate(tokens)}
    unk = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    fallback = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    options = {"unk_token": unk, "fuse_unk": True, "byte_fallback": fallback}
    core = bpe_core(vocab, merges, words_named("sentencepiece"), **options)
    if not metadata.get(f"{_PREFIX}add_space_prefix", True):
        core.normalizer = normalizers.Replace(" ", SPACE)
        core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return core


def _finished(
    core: tokenizers.Tokenizer, tokens: list[str], types: list[int], metadata: Mapping[str, Any], begins: bool
) -> Tokenizer:
    """`begins`: a text begins with bos where the file does not say whether it does."""
    from tokenizers.processors import TemplateProcessing

    from dougong.tokenizer import Tokenizer

    def of(kinds: tuple[int, ...]) -> list[str]:
        return [token for token, kind in zip(tokens, types, strict=True) if kind in kinds]

    core.add_special_tokens(of((_UNKNOWN, _CONTROL)))
    core.add_tokens(of((_USER_DEFINED,)))
    ids = {name: metadata.get(f"{_PREFIX}{name}_token_id") for name in {*_ROLES, *_ENDS}}
    known = {name: index for name, index in ids.items() if index is not None and 0 <= index < len(tokens)}
    roles = {role: tokens[known[name]] for name, role in _ROLES.items() if name in known}
    begin = roles.get("bos_token")
    if begin is not None and metadata.get(f"{_PREFIX}add_bos_token", begins):
        core.post_processor = TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, known["bos"])]
        )
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        core, roles=roles, chat_template=template, eos_ids=[known[name] for name in _ENDS if name in known]
    )
