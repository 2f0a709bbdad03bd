"""What Mamba, Mamba-2 and Jamba share: keys and names."""

from __future__ import annotations

import math
from typing import Any

from dougong.hub.families.fields import Entry, Given, Key, Keys, Parts, flag, integer, number
from dougong.hub.families.names import bare, key_map, spelled, within
from dougong.hub.families.reader import Reader
from dougong.hub.keymap import KeyMap, Rule
from dougong.parts.carry import ENDLESS

WITHOUT_EFFECT = """
    time_step_min time_step_max time_step_floor time_step_scale time_step_init_scheme rescale_prenorm_residual
    residual_in_fp32 use_mambapy use_associative_scan fused_add_norm pad_vocab_size_multiple chunk_size
"""
"""Keys for initial values, for kernels and for rounding."""
# Not a key of transformers, which lets it pass: the texts it was trained on were no longer.
LIMIT = integer("max_position_embeddings", "model.context", ENDLESS)
CONTEXT = Keys(LIMIT.read, lambda parts: {} if parts.spec.context == ENDLESS else LIMIT.write(parts))
# What is around the layers of Mamba and Mamba-2.
OUTSIDE = (
    integer("vocab_size", "model.vocab"),
    integer("hidden_size", "model.width"),
    integer("num_hidden_layers", "layers.depth"),
    CONTEXT,
    number("layer_norm_epsilon", "norm.eps", 1e-5),
    flag("tie_word_embeddings", "head.tied", True),
)


def selective(mixer: str, names: str) -> tuple[Entry, ...]:
    """A Mamba's keys, under the family's names, apart by spaces."""
    inner, state, rank, kernel, bias, conv_bias = names.split()

    def ask_rank(config: Reader, key: str, sixteenth: int) -> int:
        """Of the time step's projection; "auto" is a sixteenth of the width, rounded up."""
        return sixteenth if config.raw(key, "auto") == "auto" else config.integer(key)

    return (
        expand(inner, mixer),
        integer(state, f"{mixer}.state", 16),
        Key(rank, f"{mixer}.rank", ask_rank, lambda given: math.ceil(given["model"]["width"] / 16)),
        integer(kernel, f"{mixer}.kernel", 4),
        flag(bias, f"{mixer}.bias", False),
        flag(conv_bias, f"{mixer}.conv_bias", True),
    )


def expand(name: str, mixer: str) -> Keys:
    """The inner width, as a multiple of the model's."""

    def ask(config: Reader, given: Given) -> None:
        given.setdefault(mixer, {})["inner"] = config.integer(name, 2) * given["model"]["width"]

    def tell(parts: Parts) -> dict[str, Any]:
        return {name: max(1, parts.held[mixer].inner // parts.spec.width)}

    return Keys(ask, tell)


STEP = {"A_log": "a_log", "D": "skip"}
"""Names of what is no matrix."""
MATRICES = {
    "in_proj": "up gate",
    "conv1d": "conv",
    "x_proj": "dt_down b c",
    "dt_layernorm": "dt_norm",  # these three are Jamba's
    "b_layernorm": "b_norm",
    "c_layernorm": "c_norm",
    "out_proj": "o",
}
MIXER = (*spelled(MATRICES), *bare({**STEP, "dt_proj.weight": "dt_up.weight", "dt_proj.bias": "dt_bias"}))
"""A Mamba's."""


def backbone(mixer: tuple[Rule, ...]) -> KeyMap:
    layer = (*spelled({"norm": "mixer_norm"}), *within("mixer", "mixer", mixer))
    return key_map("backbone.", "layers.{i}", layer, {"embeddings": "embedding", "norm_f": "norm"})
