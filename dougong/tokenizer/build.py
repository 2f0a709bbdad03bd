"""Making tokenizers: trained ones, bytes, characters, and the step from a vocabulary to a `Tokenizer`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dougong.base import DougongError
from dougong.tokenizer.chatml import CHATML_TEMPLATE
from dougong.tokenizer.tokenizer import Tokenizer
from dougong.tokenizer.train_bpe import Progress, count_words, train_bpe
from dougong.tokenizer.words import BYTE_TO_CHAR, Words, words_named

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""What CHATML_TEMPLATE needs: a border between documents, and the two ends of a turn."""

DEFAULT_ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def bpe_core(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    words: Words,
    *,
    special_tokens: Iterable[str] = (),
    **options: Any,
) -> tokenizers.Tokenizer:
    """A `tokenizers.Tokenizer` for a BPE vocabulary. `options` go to its BPE model (unk_token, byte_fallback, ...)."""
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    try:
        core = Core(models.BPE(vocab=dict(vocab), merges=list(merges), **options))
    except Exception as error:  # the library knows only Exception
        raise DougongError(f"the vocabulary and its merges do not fit together: {error}") from None
    words.dress(core)
    core.add_special_tokens(list(special_tokens))
    return core


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = "qwen2",
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    *,
    roles: Mapping[str, str] | None = None,
    chat_template: str | None = CHATML_TEMPLATE,
    min_frequency: int = 2,
    limit_alphabet: int | None = None,
    unk: str = "<unk>",
    progress: Progress | None = None,
) -> Tokenizer:
    """Learn a BPE tokenizer from an iterable of texts (read once, never held).

    pattern: a name of PATTERNS for byte-level BPE ("qwen2": every digit alone; "llama3": digits in groups of three), or
    "whitespace" or "metaspace" for BPE over characters, where those that `limit_alphabet` leaves out become `unk`.
    special_tokens take the first ids; roles (default: DEFAULT_ROLES as far as the tokens are there) say which is which.
    Beside a model of type qwen2, transformers 5 puts Qwen2's pattern in place of any other, so this is the default.
    The vocabulary is smaller than `vocab_size` only when the text offers no pair that occurs `min_frequency` times.
    Raises DougongError when the text is empty or `vocab_size` is too small.
    """
    words = words_named(pattern)
    byte_level = words.kind == "bytes"
    specials = list(dict.fromkeys(special_tokens if byte_level else [unk, *special_tokens]))
    trained = train_bpe(
        count_words(texts, words, progress),
        vocab_size,
        special_tokens=specials,
        alphabet=words.alphabet(),
        limit_alphabet=None if byte_level else limit_alphabet,
        min_frequency=min_frequency,
        progress=progress,
    )
    options = {} if byte_level else {"unk_token": unk}
    core = bpe_core(trained.vocab, trained.merges, words, special_tokens=specials, **options)
    if roles is None:
        roles = {role: token for role, token in DEFAULT_ROLES.items() if token in specials}
        roles |= {} if byte_level else {"unk_token": unk}
    return _finished(core, roles, chat_template)


def byte_tokenizer(
    special_tokens: Sequence[str] = SPECIAL_TOKENS, *, chat_template: str | None = CHATML_TEMPLATE
) -> Tokenizer:
    """The baseline without a vocabulary: id b is byte b (0 to 255), then come the special tokens."""
    from tokenizers import decoders, pre_tokenizers

    core = bpe_core({char: byte for byte, char in enumerate(BYTE_TO_CHAR)}, [], Words("bytes", "gpt2"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # no words: nothing merges
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(special_tokens))
    return _finished(core, {r: t for r, t in DEFAULT_ROLES.items() if t in special_tokens}, chat_template)


def char_tokenizer(
    texts: str | Iterable[str],
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    *,
    unk: str = "<unk>",
    chat_template: str | None = CHATML_TEMPLATE,
) -> Tokenizer:
    """One id per character of `texts`: first `unk` (any other character) and the special tokens, then by code point.

    Raises DougongError when `texts` is empty.
    """
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models

    characters = sorted({character for text in ([texts] if isinstance(texts, str) else texts) for character in text})
    if not characters:
        raise DougongError("the text is empty; a character tokenizer needs at least one character")
    specials = list(dict.fromkeys([unk, *special_tokens]))
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*specials, *characters]))}
    core = Core(models.BPE(vocab=vocab, merges=[], unk_token=unk))
    core.decoder = decoders.Fuse()
    core.add_special_tokens(specials)
    roles = {role: token for role, token in DEFAULT_ROLES.items() if token in specials}
    return _finished(core, roles | {"unk_token": unk}, chat_template)


def _finished(core: tokenizers.Tokenizer, roles: Mapping[str, str], chat_template: str | None) -> Tokenizer:
    """A template is kept only where its turn markers are tokens, and a model that chats ends turns and documents."""
    from tokenizers.processors import TemplateProcessing

    begin = roles.get("bos_token")
    if begin is not None:
        # Training puts this token before every text, so a prompt begins with it too (as transformers would do).
        core.post_processor = TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, core.token_to_id(begin))]
        )
    turns = [core.token_to_id(token) for token in SPECIAL_TOKENS]
    if chat_template == CHATML_TEMPLATE and None in turns:
        chat_template = None
    ends = [index for index in (turns[0], turns[2]) if index is not None]
    return Tokenizer(core, roles=roles, chat_template=chat_template, eos_ids=ends)
