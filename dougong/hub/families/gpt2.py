"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere, q, k and v in one transposed matrix.

Semantics: transformers' modeling_gpt2. Its `reorder_and_upcast_attn` changes rounding only.
"""

from __future__ import annotations

from dougong.hub.families.fields import Given, activation, change, integer, search, settings, share
from dougong.hub.families.layers import PLAIN, sizes
from dougong.hub.families.names import key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import BIASES, LAYER_NORM, Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.position import Learned

FAMILY = "gpt2"


def _ask(config: Reader, given: Given) -> None:
    """What scores of each layer are multiplied by; None is the usual size^-1/2."""
    size, by_size = given["mixer"]["head_size"], config.flag("scale_attn_weights", True)
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    for index in range(given["layers"]["depth"]):
        scale = (size**-0.5 if by_size else 1.0) / (index + 1 if by_layer else 1)
        change(given, index, "mixer.scale", None if by_size and not by_layer else scale)


WAYS = {"scale_attn_weights": (True, False), "scale_attn_by_inverse_layer_idx": (False, True)}
TABLE = Table(
    FAMILY,
    "GPT2LMHeadModel",
    {**PLAIN, "embedding.position": Learned},
    (
        *sizes("n_embd", "n_layer", "n_head", "n_positions", 1024, learned=True),
        integer("n_inner", "ffn.hidden", lambda given: 4 * given["model"]["width"]),
        activation("activation_function", "ffn.activation", "gelu_new", tanh="gelu_new"),
        share("attn_pdrop", "mixer.dropout", 0.1),
        share("resid_pdrop", "layer.dropout", 0.1),
        share("embd_pdrop", "embedding.dropout", 0.1),
        search(_ask, lambda parts: settings(**WAYS)),
    ),
    always={**LAYER_NORM, **BIASES},
)
from_config, to_config = TABLE.from_config, TABLE.to_config


# Conv1D keeps its weight as (in, out).
TRANSPOSED = {
    "attn.c_attn": "mixer.q mixer.k mixer.v",
    "attn.c_proj": "mixer.o",
    "mlp.c_fc": "ffn.up",
    "mlp.c_proj": "ffn.down",
}


def keys(spec: ModelSpec) -> KeyMap:
    layer = (*spelled({"ln_1": "mixer_norm", "ln_2": "ffn_norm"}), *spelled(TRANSPOSED, transpose=True))
    outside = {"wte": "embedding", "wpe": "embedding.position", "ln_f": "norm"}
    return key_map("transformer.", "h.{i}", layer, outside, tables=("attn.bias", "attn.masked_bias"))
