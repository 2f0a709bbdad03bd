"""Small models written as GGUF files by llama.cpp's own Python package, as its converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dougong.hub import LanguageModel
from dougong.hub.families import FAMILIES
from dougong.model import Model
from dougong.parts.experts import MoE
from tests.hub.conftest import filled

gguf = pytest.importorskip("gguf")
Kind = gguf.GGMLQuantizationType

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 48,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
NAMES = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "mixer_norm": "attn_norm",
    "mixer.q": "attn_q",
    "mixer.k": "attn_k",
    "mixer.v": "attn_v",
    "mixer.o": "attn_output",
    "mixer.q_norm": "attn_q_norm",
    "mixer.k_norm": "attn_k_norm",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
    "ffn.router.logits": "ffn_gate_inp",
    "ffn.experts.gate": "ffn_gate_exps",
    "ffn.experts.up": "ffn_up_exps",
    "ffn.experts.down": "ffn_down_exps",
    "ffn.shared_gate": "ffn_gate_inp_shexp",
    "ffn.shared.gate": "ffn_gate_shexp",
    "ffn.shared.up": "ffn_up_shexp",
    "ffn.shared.down": "ffn_down_shexp",
}
ARCHITECTURES = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}


def made(family: str, seed: int = 0, **changes: Any) -> LanguageModel:
    return LanguageModel(filled(FAMILIES[family].from_config({**SMALL, **changes}), seed), family=family)


def their_name(own: str) -> str:
    stem, _, kind = own.rpartition(".")
    if not stem.startswith("layers."):
        return f"{NAMES[stem]}.{kind}"
    _, index, part = stem.split(".", 2)
    return f"blk.{index}.{NAMES[part]}.{kind}"


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's LlamaModel.permute (convert_hf_to_gguf.py)."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write(
    path: Path, lm: LanguageModel, kind: Any = Kind.F32, more: dict[str, Any] | None = None, **tensors: np.ndarray
) -> dict[str, torch.Tensor]:
    """Write the model as llama.cpp's converter does; the weights as the file holds them, under our names.

    more: metadata, under the architecture's name where they begin with a dot; None leaves one out.
    """
    spec, arch = lm.spec, ARCHITECTURES.get(str(lm.family), str(lm.family))
    mixer, ffn = spec.layers[0].mixer, spec.layers[0].ffn
    metadata: dict[str, Any] = {
        ".context_length": spec.context,
        ".embedding_length": spec.width,
        ".block_count": len(spec.layers),
        ".feed_forward_length": ffn.hidden,
        ".attention.head_count": mixer.heads,
        ".attention.head_count_kv": mixer.kv_heads,
        ".attention.key_length": mixer.head_size,
        ".attention.value_length": mixer.head_size,
        ".rope.dimension_count": mixer.head_size,
        ".attention.layer_norm_rms_epsilon": spec.layers[0].norm.eps,
        ".rope.freq_base": mixer.position.theta,
        ".vocab_size": spec.vocab,
        "general.file_type": int(kind),
        "general.name": "a small model",
    }
    if isinstance(ffn, MoE):
        metadata |= {".expert_count": ffn.experts, ".expert_used_count": ffn.top_k}
        if arch != "llama":
            metadata[".expert_feed_forward_length"] = ffn.hidden
        if ffn.shared is not None:
            metadata[".expert_shared_feed_forward_length"] = ffn.shared.hidden
    metadata |= more or {}
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add(writer, f"{arch}{key}" if key.startswith(".") else key, value)
    held = {}
    for own, weight in lm.model.weights().items():
        values = weight.detach().numpy()
        if arch == "llama" and (".q." in own or ".k." in own):
            values = paired(values, mixer.heads if ".q." in own else mixer.kv_heads)
        if "shared_gate" in own:
            values = values.squeeze()
        this = kind if values.ndim > 1 and "router" not in own else Kind.F32
        raw = gguf.quants.quantize(values, this)
        writer.add_tensor(their_name(own), raw, raw_dtype=this)
        back = gguf.quants.dequantize(raw, this).reshape(weight.shape)
        if arch == "llama" and (".q." in own or ".k." in own):
            back = back.reshape(-1, mixer.head_size // 2, 2, *back.shape[1:]).swapaxes(1, 2).reshape(back.shape)
        held[own] = torch.from_numpy(back.copy())
    for name, values in tensors.items():
        writer.add_tensor(name.replace("__", "."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


class Holding:
    """A model of which only some weights are written."""

    def __init__(self, model: Model, weights: dict[str, torch.nn.Parameter]):
        self.spec, self._weights = model.spec, weights

    def weights(self) -> dict[str, torch.nn.Parameter]:
        return self._weights
