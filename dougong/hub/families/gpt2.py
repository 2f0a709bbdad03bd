"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere, q, k and v in one transposed matrix.

Semantics: transformers' modeling_gpt2. Its `reorder_and_upcast_attn` changes rounding only.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from dougong.hub.families.fields import Given, Keys, Parts, activation, change, flag, integer, number, share
from dougong.hub.families.layers import PLAIN, whole_heads
from dougong.hub.families.names import key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import BIASES, LAYER_NORM, Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.position import Learned

FAMILY = "gpt2"


def _scales(size: int, depth: int, by_size: bool, by_layer: bool) -> list[float | None]:
    """What scores of each layer are multiplied by; None is the usual size^-1/2."""
    if by_size and not by_layer:
        return [None] * depth
    return [(size**-0.5 if by_size else 1.0) / (index + 1 if by_layer else 1) for index in range(depth)]


def _ask(config: Reader, given: Given) -> None:
    by = config.flag("scale_attn_weights", True), config.flag("scale_attn_by_inverse_layer_idx", False)
    for index, scale in enumerate(_scales(given["mixer"]["head_size"], given["layers"]["depth"], *by)):
        change(given, index, "mixer.scale", scale)


def _tell(parts: Parts) -> dict[str, Any]:
    size, found = parts.find("mixer.head_size"), [getattr(layer.mixer, "scale", None) for layer in parts.spec.layers]
    by = next((by for by in product((True, False), (False, True)) if found == _scales(size, len(found), *by)), ())
    return dict(zip(("scale_attn_weights", "scale_attn_by_inverse_layer_idx"), by, strict=False))


TABLE = Table(
    FAMILY,
    "GPT2LMHeadModel",
    {**PLAIN, "embedding.position": Learned},
    (
        integer("vocab_size", "model.vocab"),
        integer("n_positions", "model.context embedding.position.size", 1024),
        integer("n_embd", "model.width"),
        integer("n_layer", "layers.depth"),
        integer("n_head", "mixer.heads mixer.kv_heads"),
        whole_heads("n_head"),
        integer("n_inner", "ffn.hidden", lambda given: 4 * given["model"]["width"]),
        activation("activation_function", "ffn.activation", "gelu_new", tanh="gelu_new"),
        number("layer_norm_epsilon", "norm.eps", 1e-5),
        share("attn_pdrop", "mixer.dropout", 0.1),
        share("resid_pdrop", "layer.dropout", 0.1),
        share("embd_pdrop", "embedding.dropout", 0.1),
        flag("tie_word_embeddings", "head.tied", True),
        Keys(_ask, _tell),
    ),
    always={**LAYER_NORM, **BIASES},
)
from_config, to_config = TABLE.from_config, TABLE.to_config


NORMS = {"ln_1": "mixer_norm", "ln_2": "ffn_norm"}
# Conv1D keeps its weight as (in, out).
TRANSPOSED = {
    "attn.c_attn": "mixer.q mixer.k mixer.v",
    "attn.c_proj": "mixer.o",
    "mlp.c_fc": "ffn.up",
    "mlp.c_proj": "ffn.down",
}


def keys(spec: ModelSpec) -> KeyMap:
    return key_map(
        "transformer.",
        "h.{i}",
        (*spelled(NORMS), *spelled(TRANSPOSED, transpose=True)),
        {"wte": "embedding", "wpe": "embedding.position", "ln_f": "norm"},
        tables=("attn.bias", "attn.masked_bias"),
    )
