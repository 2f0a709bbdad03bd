"""`Tokenizer`: text to ids and back, for every floor above. The library `tokenizers` works underneath.

Decisions
- `encode` adds nothing (no bos, no eos) and reads the strings of special tokens as plain text, because most text comes
  from people and documents that must not be able to end a turn. `specials=True` is for text that we wrote ourselves.
- Truncation and padding settings found in a file are switched off: silence about lost text is a bug.
- `decode` of byte-based vocabularies is UTF-8 over the tokens' bytes, so a stream can match it exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dougong.base import DougongError, atomic_file, nearest, write_json
from dougong.tokenizer.stream import Spelling, StreamDecoder, join_bytes, spelling, token_table

if TYPE_CHECKING:
    import tokenizers

    from dougong.tokenizer.chat import ChatTokens

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
"""The names under which configurations and chat templates know special tokens."""


class Tokenizer:
    """A vocabulary with its rules. Nothing about it changes after it is made; it can be shared between threads.

    `core` is a `tokenizers.Tokenizer` (not to be touched afterwards); `roles` maps names of ROLES to token strings;
    `eos_ids` are all ids that end generation (by default the eos alone); `chat_template` is Jinja source.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        roles: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        eos_ids: Sequence[int] = (),
    ) -> None:
        core.no_truncation()
        core.no_padding()
        # Special tokens are marked `special` in the core, or else untrusted text could spell them.
        roles = dict(roles or {})
        for role, token in roles.items():
            if role not in ROLES:
                raise DougongError(f"unknown special-token role {role!r}{nearest(role, ROLES)}")
            if core.token_to_id(token) is None:
                raise DougongError(
                    f"{role} is {token!r}, which the vocabulary lacks; name a token it has, or leave it out"
                )
        special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
        core.add_special_tokens([token for token in dict.fromkeys(roles.values()) if token not in special])
        core.encode_special_tokens = True
        self._core = core
        self._roles = roles
        self._chat_template = chat_template
        for index in eos_ids:
            self._known(index)
        own = () if self.eos_id is None else (self.eos_id,)
        self._eos_ids = tuple(dict.fromkeys([*own, *eos_ids]))

    @classmethod
    def load(cls, path: str | Path, *, pattern: str | None = None, vocab_size: int | None = None) -> Tokenizer:
        """Open a tokenizer from a file or folder; see `dougong.tokenizer.formats.load` for what is understood."""
        from dougong.tokenizer.formats import load

        return load(path, pattern=pattern, vocab_size=vocab_size)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`, each atomically.

        A model's files in the folder stay; settings of another tokenizer that would overrule ours are removed.
        `transformers.AutoTokenizer.from_pretrained(folder)` opens the result.
        """
        folder = Path(folder)
        with atomic_file(folder / "tokenizer.json") as stream:
            stream.write(self.to_json())
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(1e30),  # transformers' own word for "no limit"
            **self._roles,
        }
        if self._chat_template is not None:
            config["chat_template"] = self._chat_template
        if len(self._eos_ids) > 1 or self.eos_id is None:
            config["eos_token_ids"] = list(self._eos_ids)
        write_json(folder / "tokenizer_config.json", config)
        for overruling in ("chat_template.jinja", "special_tokens_map.json", "added_tokens.json"):
            (folder / overruling).unlink(missing_ok=True)

    def to_json(self) -> str:
        """The text of tokenizer.json: everything except roles, eos ids and chat template."""
        return self._core.to_str(pretty=True)

    # -- what it holds -------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the largest id plus one (holes included)."""
        return self._size

    @cached_property
    def _size(self) -> int:
        return max(self._core.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def roles(self) -> dict[str, str]:
        """Special tokens by the names that templates use, e.g. {"eos_token": "<|im_end|>"}."""
        return dict(self._roles)

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-text token."""
        return self._role_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """Id of the end-of-text token."""
        return self._role_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token."""
        return self._role_id("pad_token")

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends generation, `eos_id` first."""
        return self._eos_ids

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out and that plain text can never produce."""
        return frozenset(i for i, token in self._core.get_added_tokens_decoder().items() if token.special)

    @property
    def chat_template(self) -> str | None:
        """Jinja source, or None."""
        return self._chat_template

    def with_chat_template(self, template: str | None) -> Tokenizer:
        """The same tokenizer with another chat template."""
        return Tokenizer(self._copy(), roles=self._roles, chat_template=template, eos_ids=self._eos_ids)

    def token_id(self, token: str) -> int | None:
        """The id of a token given as the vocabulary spells it (special tokens included), or None."""
        return self._core.token_to_id(token)

    def tokens(self) -> dict[str, int]:
        """Every token, spelled as the vocabulary has it, and its id."""
        return self._core.get_vocab(with_added_tokens=True)

    def token(self, index: int) -> str:
        """A token as the vocabulary spells it. Raises DougongError outside the vocabulary."""
        self._known(index)
        return str(self._core.id_to_token(index))

    @cached_property
    def spelling(self) -> Spelling:
        """How tokens turn into text; see `dougong.tokenizer.stream`."""
        return spelling(self._core)

    def token_bytes(self, index: int) -> bytes:
        """The bytes a token stands for, e.g. b" world"; a special token stands for its own name.

        A byte-level token may hold part of a character only. Raises DougongError outside the vocabulary.
        """
        table = self._table
        found = table[index] if 0 <= index < len(table) else None
        if found is None:
            raise self._outside(index)
        return found

    # -- text to ids ---------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, bos: bool = False, specials: bool = False, wrap: bool = False) -> list[int]:
        """Ids of `text`.

        bos: put the bos id in front. specials: read the strings of special tokens as those tokens (trusted text only).
        wrap: add what the tokenizer's own post-processor adds, e.g. BERT's [CLS] and [SEP].
        Raises DougongError when bos is asked for and there is none, and for text that is not Unicode (lone surrogates).
        """
        core = self._marked if specials else self._core
        try:
            ids = core.encode(text, add_special_tokens=wrap).ids
        except TypeError:
            raise _not_text(text) from None
        return [self._bos(), *ids] if bos else ids

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False, specials: bool = False, wrap: bool = False
    ) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        core = self._marked if specials else self._core
        try:
            found = [one.ids for one in core.encode_batch_fast(list(texts), add_special_tokens=wrap)]
        except TypeError:
            raise _not_text(*texts) from None
        return [[self._bos(), *ids] for ids in found] if bos else found

    def encode_offsets(self, text: str, *, specials: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the (start, end) characters of `text` it covers.

        Offsets are not trimmed: the space in " world" belongs to its token. Tokens within one character share its span.
        """
        try:
            encoded = (self._marked if specials else self._untrimmed).encode(text, add_special_tokens=False)
        except TypeError:
            raise _not_text(text) from None
        return encoded.ids, encoded.offsets

    # -- ids to text ---------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; broken UTF-8 becomes U+FFFD. Raises DougongError for an id outside the vocabulary."""
        table = self._table
        skip = self.special_ids if skip_special else frozenset()
        kept = [index for index in ids if index not in skip]
        try:
            pieces = [table[index] for index in kept]
            if None in pieces or min(kept, default=0) < 0:
                raise IndexError
        except IndexError:
            raise self._outside(next(i for i in kept if not 0 <= i < len(table) or table[i] is None)) from None
        if self.spelling == "other":
            return self._core.decode([int(index) for index in kept], skip_special_tokens=False)
        return join_bytes(cast("list[bytes]", pieces), self.spelling)

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        return StreamDecoder(self, skip_special=skip_special)

    # -- chat ----------------------------------------------------------------------------------------------------------

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **extra: Any,
    ) -> str:
        """The conversation as text, by the chat template. `extra` are further template variables.

        Raises DougongError when there is no template, when it has an error, or when it refuses the messages.
        """
        from dougong.tokenizer.chat import render

        return render(self, messages, tools, add_generation_prompt, extra)

    def render_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **extra: Any,
    ) -> ChatTokens:
        """The conversation as ids, with a mask of the tokens that the assistant wrote; see `dougong.tokenizer.chat`."""
        from dougong.tokenizer.chat import render_ids

        return render_ids(self, messages, tools, add_generation_prompt, extra)

    # -- inside --------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        model = type(self._core.model).__name__
        return f"Tokenizer({model}, vocab_size={self.vocab_size}, roles={self._roles})"

    def __getstate__(self) -> dict[str, Any]:
        return {"core": self._core, "roles": self._roles, "template": self._chat_template, "eos_ids": self._eos_ids}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Tokenizer.__init__(
            self, state["core"], roles=state["roles"], chat_template=state["template"], eos_ids=state["eos_ids"]
        )

    def _role_id(self, role: str) -> int | None:
        token = self._roles.get(role)
        return None if token is None else self._core.token_to_id(token)

    def _bos(self) -> int:
        if self.bos_id is None:
            raise DougongError("bos=True, but this tokenizer has no bos token; encode without it")
        return self.bos_id

    def _known(self, index: int) -> None:
        if not 0 <= index < self._size or self._core.id_to_token(index) is None:
            raise self._outside(index)

    def _outside(self, index: int) -> DougongError:
        return DougongError(f"id {index} is outside the vocabulary of {self._size} ids; is this the model's tokenizer?")

    @cached_property
    def _table(self) -> list[bytes | None]:
        return token_table(self._core, self.spelling)

    def _copy(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer as Core

        return Core.from_str(self._core.to_str())

    # The core's switches are global to it, so each combination that is needed gets a core of its own, when needed.

    @cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        core = _untrim(self._copy())
        core.encode_special_tokens = False
        return core

    @cached_property
    def _untrimmed(self) -> tokenizers.Tokenizer:
        core = _untrim(self._copy())
        core.encode_special_tokens = True
        return core


def _untrim(core: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Make the offsets of byte-level tokens include their leading space."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: False if key == "trim_offsets" else walk(inner) for key, inner in value.items()}
        return [walk(inner) for inner in value] if isinstance(value, list) else value

    if core.post_processor is not None:
        processor = core.post_processor
        processor.__setstate__(json.dumps(walk(json.loads(processor.__getstate__()))).encode())
        core.post_processor = processor  # the property hands out copies
    return core


def _not_text(*texts: Any) -> DougongError:
    """Why the library refused these texts."""
    for text in texts:
        if not isinstance(text, str):
            return DougongError(f"encode takes strings, not {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return DougongError(
                f"the text has a lone surrogate at character {error.start}, so it is not Unicode; "
                "read its file with errors='replace'"
            )
    return DougongError("the text could not be encoded")
