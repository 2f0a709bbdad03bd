"""MPT (MosaicML 2023): ALiBi, LayerNorms without biases, q, k and v in one matrix, which may be clamped.

Semantics: transformers' modeling_mpt, but for `alibi_bias_max`, which it passes over, and MosaicML's own files heed
(MPT-7B-StoryWriter has 16). `attn_pdrop` is the dropout of everything; nothing reads `emb_pdrop` and `resid_pdrop`.
What transformers does not compute is refused: learned positions instead of ALiBi, multi-query attention, normalised
queries and keys, prefixes, biases, scaled logits.
"""

from __future__ import annotations

from dataclasses import replace

from dougong.hub.families.fields import cap, choice, inside, number, positive, share
from dougong.hub.families.layers import PLAIN, sizes
from dougong.hub.families.names import key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.position import Alibi

FAMILY = "mpt"
# transformers holds dropout for an integer; so is alibi_bias_max, and `exact` refuses another.
ATTENTION = (
    replace(share("attn_pdrop", "mixer.dropout layer.dropout"), tell=lambda value: value or 0),
    replace(positive("alibi_bias_max", "mixer.position.strongest", 8), tell=round),
    replace(number("clip_qkv", "mixer.clip", 0.0), ask=lambda *given: Reader.number(*given) or None),
    cap("softmax_scale", "mixer.scale"),
)
NORMS = dict.fromkeys(("low_precision_layernorm", "layernorm"), "layer")
TABLE = Table(
    FAMILY,
    "MptForCausalLM",
    {**PLAIN, "mixer.position": Alibi},
    (
        *sizes("d_model hidden_size", "n_layers num_hidden_layers", "n_heads num_attention_heads", "max_seq_len"),
        choice("norm_type", "norm.kind", "low_precision_layernorm", NORMS),
        inside("attn_config", *ATTENTION, said={"alibi": True, "attn_type": "multihead_attention"}, silent="attn_impl"),
    ),
    always={"ffn.hidden": lambda given: 4 * given["model"]["width"]},
    said={"no_bias": True, "expansion_ratio": 4, "embedding_fraction": 1.0},
    # With ALiBi no positions are learned, whatever learned_pos_emb says.
    silent="learned_pos_emb init_config init_device tokenizer_name verbose emb_pdrop resid_pdrop",
)
from_config, to_config = TABLE.from_config, TABLE.to_config


NAMES = {
    "norm_1": "mixer_norm",
    "attn.Wqkv": "mixer.q mixer.k mixer.v",
    "attn.out_proj": "mixer.o",
    "norm_2": "ffn_norm",
    "ffn.up_proj": "ffn.up",
    "ffn.down_proj": "ffn.down",
}


def keys(spec: ModelSpec) -> KeyMap:
    return key_map("transformer.", "blocks.{i}", spelled(NAMES), {"wte": "embedding", "norm_f": "norm"})
