"""ModernBERT (Warner et al. 2024): an encoder with RoPE, GeGLU and norms before the sublayers; most layers see only the
neighbourhood of each token, every third the whole text, each kind with a rotation of its own.

`attention_dropout` acts on the weights and on the output of attention. Semantics: transformers' modeling_modernbert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dougong.hub.families.common import exact
from dougong.hub.families.encoders import MASKED
from dougong.hub.families.fields import Given, Keys, Parts, activation, change, choice, flag, integer, share
from dougong.hub.families.layers import (
    FULL,
    GATED,
    LOCAL,
    bias,
    outer,
    put_windows,
    whole_heads,
    windows_of,
    write_layer_types,
)
from dougong.hub.families.names import key_map, spelled
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import read_rope, write_layer_ropes
from dougong.hub.families.table import Table, the_norm
from dougong.hub.families.tasks import (
    BARE,
    CLASSES,
    SPAN,
    TOKENS,
    read_architecture,
    read_dropout,
    read_task,
    write_task,
)
from dougong.hub.keymap import KeyMap
from dougong.model.spec import ModelSpec
from dougong.parts.embedding import Transform

FAMILY = "modernbert"
NAME = "ModernBert"
THETA = {FULL: ("global_rope_theta", 160000.0), LOCAL: ("local_rope_theta", 10000.0)}


def _ask_layers(config: Reader, given: Given) -> None:
    """Windows and rotations. local_attention counts both sides, a window one. Rotations are in `rope_parameters`, by
    kind, or in the keys of transformers 4."""
    every, size = config.integer("global_attn_every_n_layers", 3), config.integer("local_attention", 128) // 2 + 1
    put_windows(config, given, size, lambda index: index % every == 0)
    nested, everywhere = config.raw("rope_parameters") or {}, config.raw("rope_scaling") or {}
    ropes = {}
    for kind, (theta, usual) in THETA.items():
        inner = {"rope_theta": config.positive(theta, usual), **(nested.get(kind) or {}), **everywhere}
        reader = Reader(FAMILY, {"rope_parameters": inner})
        ropes[kind] = read_rope(reader, given["mixer"]["head_size"], given["model"]["context"])
    for index, each in given["changes"].items():
        change(given, index, "mixer.position", ropes[LOCAL if each["mixer"]["window"] else FULL])
    change(given, 0, "layer.first_norm", False)


def _tell_layers(parts: Parts) -> dict[str, Any]:
    ropes = write_layer_ropes(FAMILY, parts.spec)["rope_parameters"]
    return {
        "local_attention": 2 * (next(filter(None, windows_of(parts.spec)), 65) - 1),
        **write_layer_types(parts.spec),
        **{old: ropes[kind]["rope_theta"] for kind, (old, _) in THETA.items()},
        "rope_parameters": ropes,
    }


def _ffn_dropout(given: Given) -> float | None:
    return 0.0 if given["layer"]["dropout"] else None  # the feed-forward has its own


TABLE = Table(
    FAMILY,
    NAME,
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
        Keys(_ask_layers, _tell_layers),
        activation("classifier_activation", "transform.activation", "gelu"),
        flag("classifier_bias", "transform.bias", False),
        choice("classifier_pooling", "task.at", "cls", {"cls": "first", "mean": "mean"}),
    ),
    always={"norm.kind": "layer", "embedding.norm": the_norm, "model.causal": False, "layer.ffn_dropout": _ffn_dropout},
    # How files were trained or are run, not what they compute.
    silent="""initializer_cutoff_factor deterministic_flash_attn sparse_prediction sparse_pred_ignore_index
              reference_compile repad_logits_with_grad cls_token_id layer_norm_eps position_embedding_type""",
)


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    given = TABLE.read(reader)
    body = TABLE.model(reader, given)
    transform = Transform(norm=body.layers[0].norm, **given["transform"])
    kind = read_architecture(reader, NAME, (MASKED, BARE, CLASSES, TOKENS, SPAN), MASKED)
    classifier = {"transform": transform, **given["task"]}
    task = read_task(reader, kind, read_dropout(reader, 0.0), classifier, transform)
    reader.refuse_rest()
    assert body.head is not None
    return replace(body, head=replace(body.head, transform=transform) if kind == MASKED else None, task=task)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    kind, keys = write_task(FAMILY, spec, MASKED)
    return exact(FAMILY, NAME + kind, spec, {**TABLE.write(spec), **keys}, from_config)


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
