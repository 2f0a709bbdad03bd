"""ModernBERT (Warner et al. 2024): an encoder with RoPE, GeGLU and norms before the sublayers; most layers see only the
neighbourhood of each token, every third the whole text, each kind with a rotation of its own.

`attention_dropout` acts on the weights and on the output of attention. Semantics: transformers' modeling_modernbert.
"""

from __future__ import annotations

from dougong.hub.families.encoders import EncoderHeads
from dougong.hub.families.fields import Given, Keys, activation, change, choice, flag, integer, share
from dougong.hub.families.layers import GATED, bias, local_layers, outer, whole_heads
from dougong.hub.families.names import key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import turns_by_window
from dougong.hub.families.table import Table, the_norm
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.embedding import Transform

FAMILY = "modernbert"


def _full(config: Reader, index: int) -> bool:
    return index % config.integer("global_attn_every_n_layers", 3) == 0


def _ffn_dropout(given: Given) -> float | None:
    return 0.0 if given["layer"]["dropout"] else None  # the feed-forward has its own


def _transform(body: ModelSpec, given: Given) -> Transform:
    return Transform(norm=body.layers[0].norm, **given["transform"])


TABLE = Table(
    FAMILY,
    "ModernBertForMaskedLM",
    GATED,
    (
        *outer(50368, 768, 22, 8192, 1e-5, tied=True, eps_key="norm_eps"),
        flag("norm_bias", "norm.bias", False),
        integer("num_attention_heads", "mixer.heads mixer.kv_heads", 12),
        whole_heads("num_attention_heads"),
        bias(),
        share("attention_dropout", "mixer.dropout layer.dropout"),
        integer("intermediate_size", "ffn.hidden", 1152),
        activation("hidden_activation", "ffn.activation", "gelu"),
        flag("mlp_bias", "ffn.bias", False),
        share("mlp_dropout", "ffn.dropout"),
        share("embedding_dropout", "embedding.dropout"),
        flag("decoder_bias", "head.bias", True),
        local_layers(128, _full, around="local_attention"),
        turns_by_window(160000.0, 10000.0, ("global_rope_theta", "local_rope_theta")),
        Keys(lambda config, given: change(given, 0, "layer.first_norm", False)),
        activation("classifier_activation", "transform.activation", "gelu"),
        flag("classifier_bias", "transform.bias", False),
        choice("classifier_pooling", "task.at", "cls", {"cls": "first", "mean": "mean"}),
    ),
    always={"norm.kind": "layer", "embedding.norm": the_norm, "model.causal": False, "layer.ffn_dropout": _ffn_dropout},
    # How files were trained or are run, not what they compute.
    silent="""initializer_cutoff_factor deterministic_flash_attn sparse_prediction sparse_pred_ignore_index
              reference_compile repad_logits_with_grad cls_token_id layer_norm_eps position_embedding_type""",
    heads=EncoderHeads("ModernBert", _transform, pooler=None, dropout=0.0),
)
from_config, to_config = TABLE.from_config, TABLE.to_config


LAYER = {
    "attn_norm": "mixer_norm",
    "attn.Wqkv": "mixer.q mixer.k mixer.v",
    "attn.Wo": "mixer.o",
    "mlp_norm": "ffn_norm",
    "mlp.Wi": "ffn.gate ffn.up",
    "mlp.Wo": "ffn.down",
}
OUTSIDE = {"embeddings.tok_embeddings": "embedding", "embeddings.norm": "embedding.norm", "final_norm": "norm"}


def keys(spec: ModelSpec) -> KeyMap:
    prefix = "" if spec.head is None and spec.task is None else "model."
    transform = "transform" if spec.task is None else "task.transform"
    heads = {"head.dense": f"{transform}.dense", "head.norm": f"{transform}.norm", "classifier": "task.output"}
    return key_map(prefix, "layers.{i}", spelled(LAYER), OUTSIDE, *spelled(heads), head="decoder")
