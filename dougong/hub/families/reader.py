"""Reading a foreign config.json, strictly: every key is asked for, known to be harmless, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from dougong.base import DougongError, nearest

HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attention_dropout
    attn_implementation attn_pdrop auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    classif_dropout cls_token_id decoder_layerdrop decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping embd_pdrop embedding_dropout encoder_layerdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task force_bos_token_to_be_generated forced_bos_token_id
    forced_eos_token_id gradient_checkpointing hidden_dropout id2label init_std initializer_cutoff_factor
    initializer_factor initializer_range is_llama_config label2id length_penalty max_length max_sequence_length
    min_length mlp_dropout model_type n_ctx name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_past output_router_logits output_scores
    pad_token_id predict_special_tokens prefix pretraining_tp problem_type remove_invalid_values
    reorder_and_upcast_attn repetition_penalty resid_pdrop return_dict return_dict_in_generate router_jitter_noise
    sep_token_id summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
    use_cache use_flash_attn
    """.split()  # noqa: SIM905 - as a list of literals it would fill a hundred lines
)
"""Keys that change no logits: ids, dropouts that the family's class does not read, initialisation, generation defaults,
bookkeeping."""


# JSON has no infinity; programs write it in these ways.
INFINITE = ("Infinity", "inf", {"__float__": "Infinity"})


class Reader:
    """A config that notes what was asked of it. A key without a default must be there; `refuse_rest` is called last."""

    def __init__(self, family: str, config: Mapping[str, Any], where: str = ""):
        self.family = family
        self._config = config
        self._where = where
        self._asked: set[str] = set()
        self._told: dict[str, str] = {}  # what a key is called in errors, where that is another name

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._config.get(key) is not None

    def raw(self, key: str, default: Any = None) -> Any:
        self._asked.add(key)
        return self._config.get(key, default)

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self._get(key, default)
        if value is default:
            return value
        if self._checked(key, value, int, "an integer") < least:
            raise self.wrong(key, value, f"at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        return float(value if value is default else self._checked(key, value, (int, float), "a number"))

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if not value > 0:
            raise self.wrong(key, value, "a number above 0")
        return value

    def share(self, key: str, default: float = 0.0) -> float:
        """Of numbers that dropout sets to 0."""
        value = self.number(key, default)
        if not 0 <= value < 1:
            raise self.wrong(key, value, "at least 0 and less than 1")
        return value

    def cap(self, key: str, default: float | None) -> float | None:
        """A number above 0, such as a bound on scores; null is none."""
        return None if self.raw(key, default) is None else self.positive(key, default)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        values = self._checked(key, self._get(key, None), list, "a list of numbers")
        if len(values) != count or not all(isinstance(value, (int, float)) for value in values):
            raise self.wrong(key, f"{len(values)} values", f"{count} numbers, half the size of a head")
        return tuple(float(value) for value in values)

    def limits(self, key: str, default: tuple[float, float | None]) -> tuple[float, float | None]:
        """The least and the largest number, from 0 on; None: there is no largest."""
        given: Any = default if (value := self.raw(key)) is None else value
        pair: Any = given if isinstance(given, (list, tuple)) and len(given) == 2 else ("", "")
        low, high = pair
        high = math.inf if high is None or high in INFINITE else high
        if not {type(low), type(high)} <= {int, float} or not 0 <= low <= high:
            raise self.wrong(key, given, "the least and the largest number")
        return float(low), None if math.isinf(high) else float(high)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def window(self, key: str = "sliding_window", default: int | None = None) -> int | None:
        """Tokens that a layer sees; null is all."""
        size = self.raw(key, default)
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise self.wrong(key, size, "a number of tokens or null")
        return size

    def kinds(self, key: str, known: tuple[str, ...], usual: list[str]) -> list[str]:
        """The kind of each layer, or what is usual where the config does not say."""
        kinds = self.raw(key)
        kinds = usual if kinds is None else kinds
        if not isinstance(kinds, list) or len(kinds) != len(usual) or any(kind not in known for kind in kinds):
            raise self.wrong(key, kinds, f"{len(usual)} of {' or '.join(known)}")
        return kinds

    def mapping(self, key: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
        """What the key has, or an empty one. known: the keys that it may have."""
        given = self.raw(key) or {}
        if not isinstance(given, dict) or (known is not None and not given.keys() <= {*known}):
            raise self.wrong(key, given, "a mapping" if known is None else f"a mapping with {' and '.join(known)}")
        return given

    def inside(self, key: str, beside: Mapping[str, str] | None = None) -> Reader:
        """Of the mapping that the key has, or of an empty one. beside: of keys that it may leave out, other names under
        which they may stand beside it."""
        given, where = self.mapping(key), f"{self._where}{key}."
        others = {
            own: other for own, other in (beside or {}).items() if self.raw(other) is not None and own not in given
        }
        inner = Reader(self.family, {**given, **{own: self.raw(other) for own, other in others.items()}}, where)
        inner._told = others
        return inner

    def head_size(self, width: int, key: str, heads: int) -> int:
        """The width over the heads that `key` gives, which must divide it."""
        if width % heads:
            raise self.wrong(key, heads, f"a divisor of the width, {width}")
        return width // heads

    def pass_over(self, names: str) -> None:
        """Take note of keys (apart by spaces) that change nothing in this family."""
        for name in names.split():
            self.raw(name)

    def only(self, **wanted: Any) -> None:
        """Keys that ask for what the family always does: any other value is refused."""
        for key, value in wanted.items():
            if self.raw(key, value) != value:
                raise self.wrong(key, self.raw(key), repr(value))

    def wrong(self, key: str, value: object, expected: str) -> DougongError:
        told = self._told.get(key, f"{self._where}{key}")
        return DougongError(f"config.json of {self.family}: {told} is {value!r}; expected {expected}")

    def respell(self, old: str, new: str) -> None:
        """Take the old name of a key for the new one, where that is not there."""
        if old != new:
            config = dict(self._config)
            value = config.pop(old, None)
            if value is None or new in self:
                self._config = config
            else:
                self._config, self._told[new] = {**config, new: value}, old

    def fill(self, key: str, value: Any) -> None:
        """What it means that the key is not there, or null."""
        if key not in self:
            self._config = {**self._config, key: value}

    def refuse_rest(self) -> None:
        """Raise DougongError at a key that nobody asked for, unless it is harmless or asks for nothing itself."""
        for key, value in self._config.items():
            if key in self._asked or key in HARMLESS:
                continue
            # An unknown key that is null, false, 0 or empty is an option of another program, switched off; or one of
            # ours with a slip of the pen.
            if not value and (value is None or isinstance(value, (str, list, dict)) or not self._slip(key)):
                continue
            if key == "quantization_config":
                raise DougongError(
                    f"config.json of {self.family} has a quantization_config; quantised checkpoints come with a later "
                    "version: load the original weights"
                )
            raise DougongError(
                f"config.json of {self.family} has {self._where}{key} = {value!r}, which may change the computation "
                f"and is not understood{nearest(key, self._asked)}"
            )

    def _slip(self, key: str) -> bool:
        """Whether the key is a known one but for a letter or two, and that one is not there."""
        return bool(get_close_matches(key, [each for each in self._asked if each not in self], 1, cutoff=0.85))

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw(key)
        if value is not None:
            return value
        if default is None:
            raise DougongError(f"config.json of {self.family} has no {self._where}{key}")
        return default

    def _checked(self, key: str, value: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(key, value, expected)
        return value
