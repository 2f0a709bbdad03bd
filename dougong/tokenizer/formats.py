"""Opening tokenizers of every layout people publish. Each reader turns files into a `Tokenizer`; none guesses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dougong.base import DougongError, read_json
from dougong.tokenizer.build import bpe_core
from dougong.tokenizer.rank_files import load_llama2c, load_tiktoken
from dougong.tokenizer.sentencepiece import load_sentencepiece
from dougong.tokenizer.tokenizer import ROLES, Tokenizer
from dougong.tokenizer.words import words_named

if TYPE_CHECKING:
    import tokenizers

_VOCAB_AND_MERGES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_UNDERSTOOD = (
    "tokenizer.json, vocab.json with merges.txt, encoder.json with vocab.bpe, vocab.txt, "
    "*.model (SentencePiece), tok*.bin (llama2.c) or *.tiktoken"
)


def load(path: str | Path, *, pattern: str | None = None, vocab_size: int | None = None) -> Tokenizer:
    """Open a folder, or one file, of any layout in _UNDERSTOOD.

    pattern: a name of PATTERNS, where the files do not say how words are cut (.tiktoken; vocab.json with merges.txt).
    vocab_size: how many tokens to read from a llama2.c file that may be followed by other bytes.
    Settings (special tokens, chat template, ids that end generation) are read from the neighbouring
    tokenizer_config.json, special_tokens_map.json, chat_template.jinja and generation_config.json.
    Raises DougongError that names the file: missing, broken, or of a kind not understood.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, pattern, vocab_size)
    if not path.exists():
        raise DougongError(f"{path} does not exist; give a tokenizer's folder or file")
    if path.suffix == ".bin":
        return load_llama2c(path, vocab_size)
    if path.suffix == ".tiktoken":
        return load_tiktoken(path, pattern)
    if path.suffix == ".model":  # Meta's Llama 3 gave a tiktoken file this name; a protocol buffer begins with \n
        return load_sentencepiece(path) if path.read_bytes()[:1] == b"\n" else load_tiktoken(path, pattern)
    for vocab, merges in _VOCAB_AND_MERGES:
        if path.name in (vocab, merges):
            return _load_vocab_and_merges(path.parent / vocab, path.parent / merges, pattern)
    if path.name == "vocab.txt":
        return _load_wordpiece(path)
    if path.suffix == ".json":
        return _load_json(path)
    raise DougongError(f"{path} is no tokenizer that is understood; give {_UNDERSTOOD}")


def _load_folder(folder: Path, pattern: str | None, vocab_size: int | None) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return _load_json(folder / "tokenizer.json")
    for vocab, merges in _VOCAB_AND_MERGES:
        if (folder / vocab).exists() and (folder / merges).exists():
            return _load_vocab_and_merges(folder / vocab, folder / merges, pattern)
    if (folder / "vocab.txt").exists():
        return _load_wordpiece(folder / "vocab.txt")
    found = sorted([*folder.glob("tok*.bin"), *folder.glob("*.tiktoken"), *folder.glob("*.model")])
    if len(found) == 1:
        return load(found[0], pattern=pattern, vocab_size=vocab_size)
    if found:
        names = ", ".join(file.name for file in found)
        raise DougongError(f"{folder} holds several tokenizers ({names}); give the path of one of them")
    raise DougongError(f"{folder} holds no tokenizer; it needs {_UNDERSTOOD}")


def _load_json(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Core

    data = read_json(path)  # first: its errors name the line
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise DougongError(f"{path} is no tokenizer.json: it has no model; give {_UNDERSTOOD}")
    kind = data["model"].get("type")
    known = ("BPE", "WordPiece", "Unigram", "WordLevel")
    if kind is not None and kind not in known:  # files of old left the type out
        raise DougongError(f"{path} has a model of the unknown type {kind!r}; known: {', '.join(known)}")
    try:
        core = Core.from_str(json.dumps(data, ensure_ascii=False))
    except Exception as error:  # the library knows only Exception
        raise DougongError(f"{path} is not a tokenizer.json that can be used: {error}") from None
    return _with_settings(core, path.parent)


def _load_vocab_and_merges(vocab_path: Path, merges_path: Path, pattern: str | None) -> Tokenizer:
    """GPT-2's layout. Qwen2 shares it, with its own pattern and NFC, and says so in tokenizer_config.json."""
    vocab = read_json(vocab_path)
    if not isinstance(vocab, dict) or not all(isinstance(index, int) for index in vocab.values()):
        raise DougongError(f"{vocab_path} must map tokens to ids")
    merges = []
    for number, line in enumerate(_lines(merges_path), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise DougongError(f"{merges_path} line {number} is {line!r:.60}; expected two tokens with a space between")
        merges.append((parts[0], parts[1]))
    folder = vocab_path.parent
    config = _optional(folder / "tokenizer_config.json")
    qwen = str(config.get("tokenizer_class", "")).startswith("Qwen2")
    core = bpe_core(vocab, merges, words_named(pattern or ("qwen2" if qwen else "gpt2")))
    if qwen:
        from tokenizers import normalizers

        core.normalizer = normalizers.NFC()
    added = _optional(folder / "added_tokens.json")
    _add_tokens(core, {index: {"content": token, "special": True} for token, index in added.items()}, folder)
    # OpenAI's own files name no special tokens; this one is theirs.
    end = "<|endoftext|>"
    bare = {"bos_token": end, "eos_token": end} if not config and not added and end in vocab else {}
    return _with_settings(core, folder, bare)


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): tokens may hold characters that it takes for line ends.
        return [line.removesuffix("\r") for line in path.read_text(encoding="utf-8").split("\n")]
    except FileNotFoundError:
        raise DougongError(f"{path} does not exist; its neighbour alone is no tokenizer") from None
    except UnicodeDecodeError:
        raise DougongError(f"{path} is not UTF-8 text") from None


def _load_wordpiece(path: Path) -> Tokenizer:
    """BERT's layout: one token a line."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    lines = _lines(path)
    vocab = {token: index for index, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    if "[UNK]" not in vocab:
        raise DougongError(f"{path} is no BERT vocabulary: it has no line [UNK]")
    config = _optional(path.parent / "tokenizer_config.json")
    core = Core(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    names = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    roles = {role: token for role, token in names.items() if token in vocab}
    if "[CLS]" in vocab and "[SEP]" in vocab:
        core.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return _with_settings(core, path.parent, roles)


# -- settings beside the vocabulary ------------------------------------------------------------------------------------


def _optional(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where the file is missing."""
    if not path.exists():
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise DougongError(f"{path} must hold a JSON object")
    return data


def _content(token: Any) -> str | None:
    """A special token is written as a string or as an object with its content."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _add_tokens(core: tokenizers.Tokenizer, tokens: Mapping[int, Mapping[str, Any]], folder: Path) -> None:
    """Add the tokens that the core lacks, each with the id it must have."""
    from tokenizers import AddedToken

    flags = ("single_word", "lstrip", "rstrip", "normalized")
    present = core.get_added_tokens_decoder()
    for index in sorted(tokens):
        token = tokens[index]
        if index in present and present[index].content == token["content"]:
            continue
        settings = {flag: bool(token[flag]) for flag in flags if flag in token}
        one = AddedToken(token["content"], special=bool(token.get("special")), **settings)
        (core.add_special_tokens if one.special else core.add_tokens)([one])
        given = core.token_to_id(one.content)
        if given != index:
            raise DougongError(f"{folder}: the added token {one.content!r} must have id {index}, but gets {given}")


def _with_settings(core: tokenizers.Tokenizer, folder: Path, roles: Mapping[str, str] | None = None) -> Tokenizer:
    config = _optional(folder / "tokenizer_config.json")
    tokens = config.get("added_tokens_decoder") or {}
    try:
        _add_tokens(core, {int(index): token for index, token in tokens.items()}, folder)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DougongError(f"{folder}/tokenizer_config.json: added_tokens_decoder is not id -> token") from None
    merged = {**(roles or {}), **_roles(core, folder, {**_optional(folder / "special_tokens_map.json"), **config})}
    ends = config.get("eos_token_ids") or _optional(folder / "generation_config.json").get("eos_token_id")
    ends = [index for index in ([ends] if isinstance(ends, int) else ends or []) if core.id_to_token(index) is not None]
    if "eos_token" not in config and "eos_token" not in merged and ends:
        merged["eos_token"] = str(core.id_to_token(ends[0]))
    return Tokenizer(core, roles=merged, chat_template=_chat_template(config, folder), eos_ids=ends)


def _roles(core: tokenizers.Tokenizer, folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    roles = {}
    for role in ROLES:
        token = _content(settings.get(role))
        if token is None:
            continue
        if core.token_to_id(token) is None:
            raise DougongError(f"{folder}: {role} is {token!r}, which the vocabulary lacks; mend tokenizer_config.json")
        roles[role] = token
    return roles


def _chat_template(config: Mapping[str, Any], folder: Path) -> str | None:
    """chat_template.jinja goes before the config, as in transformers; of several named templates, the default one."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, Mapping)}
        template = named.get("default", next(iter(named.values()), None))
    if template is not None and not isinstance(template, str):
        raise DougongError(
            f"{folder}/tokenizer_config.json: chat_template is neither text nor a list of named templates"
        )
    return template
