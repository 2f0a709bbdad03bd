"""ModernBERT (Warner et al. 2024): an encoder with RoPE, GeGLU and norms before the sublayers; most layers see only the
neighbourhood of each token, every third the whole text, each kind with a rotation of its own.

`attention_dropout` acts on the weights and on the output of attention. Semantics: transformers' modeling_modernbert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dougong.base import DougongError
from dougong.hub.families.common import ACTIVATIONS, exact, expect, first_layer, read_activation, write_activation
from dougong.hub.families.names import both
from dougong.hub.families.reader import Reader
from dougong.hub.families.rope import read_rope, write_rope
from dougong.hub.families.tasks import (
    BARE,
    CLASSES,
    SPAN,
    TOKENS,
    read_architecture,
    read_dropout,
    read_labels,
    write_labels,
)
from dougong.hub.keymap import KeyMap, Rule
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head, Transform
from dougong.parts.feedforward import GatedMLP
from dougong.parts.heads import Classifier, Span, Task, TokenClassifier
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope

FAMILY = "modernbert"
NAME = "ModernBert"
MASKED = "ForMaskedLM"
FULL, LOCAL = "full_attention", "sliding_attention"
THETA = {FULL: 160000.0, LOCAL: 10000.0}
OLD_THETA = {FULL: "global_rope_theta", LOCAL: "local_rope_theta"}
# How files were trained or are run, not what they compute.
_RUN = (
    "initializer_cutoff_factor deterministic_flash_attn sparse_prediction sparse_pred_ignore_index reference_compile "
    "repad_logits_with_grad cls_token_id layer_norm_eps position_embedding_type"
)


def from_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = Reader(FAMILY, config)
    width, heads = reader.integer("hidden_size", 768), reader.integer("num_attention_heads", 12)
    if width % heads:
        raise reader.wrong("num_attention_heads", heads, f"a divisor of hidden_size, {width}")
    size, context = width // heads, reader.integer("max_position_embeddings", 8192)
    norm = Norm("layer", reader.number("norm_eps", 1e-5), bias=reader.flag("norm_bias", False))
    kinds, ropes = _kinds(reader), {kind: _rope(reader, kind, size, context) for kind in (FULL, LOCAL)}
    window = reader.integer("local_attention", 128) // 2 + 1  # local_attention counts both sides, the window one
    bias, seen = reader.flag("attention_bias", False), reader.share("attention_dropout")
    activation = read_activation(reader, "hidden_activation", "gelu")
    inner = reader.flag("mlp_bias", False), reader.share("mlp_dropout")
    ffn = GatedMLP(reader.integer("intermediate_size", 1152), activation, *inner)
    layers = tuple(
        LayerSpec(
            Attention(
                heads, heads, size, bias, bias, ropes[kind], window=window if kind == LOCAL else None, dropout=seen
            ),
            ffn,
            norm,
            first_norm=index > 0,
            dropout=seen,
            ffn_dropout=0.0 if seen else None,
        )
        for index, kind in enumerate(kinds)
    )
    embedding = Embedding(norm=norm, dropout=reader.share("embedding_dropout"))
    transform = Transform(
        read_activation(reader, "classifier_activation", "gelu"), norm, reader.flag("classifier_bias", False)
    )
    kind = read_architecture(reader, NAME, (MASKED, BARE, CLASSES, TOKENS, SPAN), MASKED)
    tied, out_bias = reader.flag("tie_word_embeddings", True), reader.flag("decoder_bias", True)
    head = Head(tied, out_bias, transform=transform) if kind == MASKED else None
    task = _task(reader, kind, transform)
    vocab = reader.integer("vocab_size", 50368)
    for key in _RUN.split():
        reader.raw(key)
    reader.refuse_rest()
    return ModelSpec(vocab, width, context, layers, embedding, norm, head, causal=False, task=task)


def _kinds(reader: Reader) -> list[str]:
    """Which layers see the whole text."""
    depth = reader.integer("num_hidden_layers", 22)
    given, every = reader.raw("layer_types"), reader.integer("global_attn_every_n_layers", 3)
    if given is None:
        return [LOCAL if index % every else FULL for index in range(depth)]
    if not isinstance(given, list) or len(given) != depth or any(kind not in THETA for kind in given):
        raise reader.wrong("layer_types", given, f"{depth} of {FULL} or {LOCAL}")
    return given


def _rope(reader: Reader, kind: str, size: int, context: int) -> Rope:
    """The rotation of one kind of layer: in `rope_parameters`, by kind, or in the keys of transformers 4."""
    given, everywhere = reader.raw("rope_parameters") or {}, reader.raw("rope_scaling") or {}
    inner = {**(given.get(kind) or {}), **everywhere}
    inner.setdefault("rope_theta", reader.positive(OLD_THETA[kind], THETA[kind]))
    return read_rope(Reader(FAMILY, {"rope_parameters": inner}), size, context)


def _task(reader: Reader, kind: str, transform: Transform) -> Task | None:
    at, dropout = reader.raw("classifier_pooling", "cls"), read_dropout(reader, 0.0)
    if at not in ("cls", "mean"):
        raise reader.wrong("classifier_pooling", at, "'cls' or 'mean'")
    if kind == CLASSES:
        return Classifier(read_labels(reader), "first" if at == "cls" else "mean", transform, dropout=dropout)
    if kind == TOKENS:
        return TokenClassifier(read_labels(reader), dropout=dropout, transform=transform)
    return Span(dropout, transform) if kind == SPAN else None


def to_config(spec: ModelSpec) -> dict[str, Any]:
    first = first_layer(FAMILY, spec)
    mixers = [expect(FAMILY, "mixer", layer.mixer, Attention) for layer in spec.layers]
    ffn = expect(FAMILY, "ffn", first.ffn, GatedMLP)
    windows = [mixer.window for mixer in mixers if mixer.window is not None]
    kinds = [FULL if mixer.window is None else LOCAL for mixer in mixers]
    ropes = {kind: mixers[kinds.index(kind)].position for kind in (FULL, LOCAL) if kind in kinds}
    spelled = {kind: write_rope(FAMILY, rope) for kind, rope in ropes.items()}
    kind, keys, transform = _written_task(spec)
    config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "intermediate_size": ffn.hidden,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": mixers[0].heads,
        "hidden_activation": write_activation(ffn.activation),
        "max_position_embeddings": spec.context,
        "norm_eps": first.norm.eps,
        "norm_bias": first.norm.bias,
        "attention_bias": mixers[0].bias,
        "mlp_bias": ffn.bias,
        "layer_types": kinds,
        "local_attention": 2 * (windows[0] - 1) if windows else 128,
        "attention_dropout": mixers[0].dropout,
        "mlp_dropout": ffn.dropout,
        "embedding_dropout": spec.embedding.dropout,
        **{OLD_THETA[each]: spelled[each]["rope_theta"] for each in spelled},
        "rope_parameters": {
            each: {"rope_theta": rope["rope_theta"], **(rope["rope_scaling"] or {"rope_type": "default"})}
            for each, rope in spelled.items()
        },
        **_written_transform(transform),
        **keys,
    }
    return exact(FAMILY, NAME + kind, spec, config, from_config)


def _written_task(spec: ModelSpec) -> tuple[str, dict[str, Any], Transform | None]:
    match spec.task:
        case None:
            if spec.head is None:
                return BARE, {}, None
            keys = {"tie_word_embeddings": spec.head.tied, "decoder_bias": spec.head.bias}
            return MASKED, keys, spec.head.transform
        case Classifier():
            at = "mean" if spec.task.at == "mean" else "cls"
            keys = {**write_labels(spec.task.labels), "classifier_pooling": at}
            return CLASSES, {**keys, "classifier_dropout": spec.task.dropout}, spec.task.transform
        case TokenClassifier():
            keys = {**write_labels(spec.task.labels), "classifier_dropout": spec.task.dropout}
            return TOKENS, keys, spec.task.transform
        case Span():
            return SPAN, {"classifier_dropout": spec.task.dropout}, spec.task.transform
        case _:
            raise DougongError(f"{FAMILY} cannot express a task head of {type(spec.task).__name__}")


def _written_transform(transform: Transform | None) -> dict[str, Any]:
    if transform is None:
        return {}
    name = "gelu" if transform.activation not in ACTIVATIONS.values() else write_activation(transform.activation)
    return {"classifier_activation": name, "classifier_bias": transform.bias}


def keys(spec: ModelSpec) -> KeyMap:
    prefix = "" if spec.head is None and spec.task is None else "model."
    layer, own = f"{prefix}layers.{{i}}", "layers.{i}"
    transform = "transform" if spec.task is None else "task.transform"

    return KeyMap(
        rules=(
            Rule(f"{prefix}embeddings.tok_embeddings.weight", ("embedding.weight",)),
            *both(f"{prefix}embeddings.norm", "embedding.norm"),
            *both(f"{layer}.attn_norm", f"{own}.mixer_norm"),
            *both(f"{layer}.attn.Wqkv", *(f"{own}.mixer.{name}" for name in "qkv")),
            *both(f"{layer}.attn.Wo", f"{own}.mixer.o"),
            *both(f"{layer}.mlp_norm", f"{own}.ffn_norm"),
            *both(f"{layer}.mlp.Wi", f"{own}.ffn.gate", f"{own}.ffn.up"),
            *both(f"{layer}.mlp.Wo", f"{own}.ffn.down"),
            *both(f"{prefix}final_norm", "norm"),
            *both("head.dense", f"{transform}.dense"),
            *both("head.norm", f"{transform}.norm"),
            *both("decoder", "head"),
            *both("classifier", "task.output"),
        ),
        prefix=prefix,
        constants=(),
        tied=("decoder.weight", f"{prefix}embeddings.tok_embeddings.weight"),
    )
