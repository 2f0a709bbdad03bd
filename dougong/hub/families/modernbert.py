"""ModernBERT (Warner et al. 2024): an encoder with RoPE, GeGLU and norms before the sublayers; most layers see only the
neighbourhood of each token, every third the whole text, each kind with a rotation of its own.

`attention_dropout` acts on the weights and on the output of attention. Semantics: transformers' modeling_modernbert.
"""

from __future__ import annotations

from dougong.hub.families.encoders import EncoderHeads
from dougong.hub.families.fields import activation, choice, flag, flags, integer, shares
from dougong.hub.families.layers import GATED, bias, local_layers, nth, outer, outputs, plain_heads
from dougong.hub.families.names import below, key_map, spelled
from dougong.hub.families.rope import turns_by_window
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec

FAMILY = "modernbert"
LAYER = {
    "attn_norm": "mixer_norm",
    "mlp_norm": "ffn_norm",
    **below("attn.", "mixer.", {"Wqkv": "q k v", "Wo": "o"}),
    **below("mlp.", "ffn.", {"Wi": "gate up", "Wo": "down"}),
}
OUTSIDE = {"embeddings.tok_embeddings": "embedding", "embeddings.norm": "embedding.norm", "final_norm": "norm"}
TABLE = Table(
    FAMILY,
    "ModernBertForMaskedLM",
    GATED,
    (
        *outer(50368, 768, 22, 8192, 1e-5, tied=True, eps_key="norm_eps"),
        *flags(False, norm_bias="norm.bias", mlp_bias="ffn.bias", classifier_bias="transform.bias"),
        *plain_heads("num_attention_heads", 12),
        bias(),
        *shares(attention_dropout="mixer.dropout", mlp_dropout="ffn.dropout", embedding_dropout="embedding.dropout"),
        outputs("attention_dropout"),
        integer("intermediate_size", "ffn.hidden", 1152),
        activation("hidden_activation", "ffn.activation", "gelu"),
        flag("decoder_bias", "head.bias", True),
        local_layers(128, nth("global_attn_every_n_layers", 3, 0), around="local_attention"),
        turns_by_window(160000.0, 10000.0, ("global_rope_theta", "local_rope_theta")),
        activation("classifier_activation", "transform.activation", "gelu"),
        choice("classifier_pooling", "task.at", "cls", {"cls": "first", "mean": "mean"}),
    ),
    always={"norm.kind": "layer", "embedding.norm": the_norm, "model.causal": False},
    each={"layer.first_norm": lambda given, index: index > 0},
    # How files were trained or are run, not what they compute.
    silent="""deterministic_flash_attn sparse_prediction sparse_pred_ignore_index reference_compile
              repad_logits_with_grad layer_norm_eps position_embedding_type""",
    heads=EncoderHeads("ModernBert", pooler=None, dropout=0.0),
)
from_config, to_config = TABLE.from_config, TABLE.to_config


def keys(spec: ModelSpec) -> KeyMap:
    prefix = "" if spec.head is None and spec.task is None else "model."
    transform = "transform" if spec.task is None else "task.transform"
    heads = {"head.dense": f"{transform}.dense", "head.norm": f"{transform}.norm", "classifier": "task.output"}
    return key_map(prefix, "layers.{i}", spelled(LAYER), OUTSIDE, *spelled(heads), head="decoder")
