"""Models in GGUF files: what llama.cpp writes about a model, said as the config.json of one of our families.

The metadata are those of llama.cpp's converter (convert_hf_to_gguf.py, gguf-py/gguf/constants.py). Everything under
the architecture's name is asked for, harmless or refused, as keys of a config.json are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub.formats.gguf import GgufFile
from dougong.hub.keymap import CONCAT, KeyMap, Rule
from dougong.hub.layouts import Layout, Permuted, Viewed


@dataclass(frozen=True)
class Architecture:
    """What reads the config.json that says the same: `dense`, or `sparse` where there are experts.

    paired: rows of q and k stand as where (2i, 2i + 1) turn together. normalised: the weights of a token's experts are
    made to sum to 1, which llama.cpp knows from the architecture.
    """

    dense: str | None
    sparse: str | None = None
    paired: bool = False
    normalised: bool = True


ARCHITECTURES = {
    "llama": Architecture("llama", "mixtral", paired=True),
    "qwen2": Architecture("qwen2"),
    "qwen2moe": Architecture(None, "qwen2_moe", normalised=False),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture(None, "qwen3_moe"),
}

# llama.cpp's names of the parts of a layer and ours, the same for all of ARCHITECTURES.
_PARTS = {
    "attn_norm": "mixer_norm",
    "attn_q": "mixer.q",
    "attn_k": "mixer.k",
    "attn_v": "mixer.v",
    "attn_output": "mixer.o",
    "attn_q_norm": "mixer.q_norm",
    "attn_k_norm": "mixer.k_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "ffn.gate",
    "ffn_up": "ffn.up",
    "ffn_down": "ffn.down",
    "ffn_gate_inp": "ffn.router.logits",
    "ffn_gate_exps": "ffn.experts.gate",
    "ffn_up_exps": "ffn.experts.up",
    "ffn_down_exps": "ffn.experts.down",
    "ffn_gate_inp_shexp": "ffn.shared_gate",
    "ffn_gate_shexp": "ffn.shared.gate",
    "ffn_up_shexp": "ffn.shared.up",
    "ffn_down_shexp": "ffn.shared.down",
}

# Keys under the architecture's name that change nothing, or repeat what the tensors say.
_HARMLESS = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}


class _Metadata:
    """The keys under the architecture's name; it notes which were asked for."""

    def __init__(self, file: GgufFile, architecture: str):
        prefix = f"{architecture}."
        self._where = f"{file.path}: {prefix}"
        self._values = {
            key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)
        }
        self._asked = set(_HARMLESS)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:  # one for each layer
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, value, "an integer above 0, the same for all layers")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise self.wrong(key, value, "a number above 0")
        # Written as float32: the shortest decimal that it may have come from (1e-06, not 9.99999997e-07).
        return float(f"{value:.7g}")

    def text(self, key: str, default: str) -> str:
        return str(self._get(key, default))

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, default))

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def same(self, key: str, value: int) -> None:
        """Refuse a key that is there and says anything else than `value`."""
        if (found := self.integer(key, value)) != value:
            raise self.wrong(key, found, f"{value}")

    def refuse_rest(self) -> None:
        for key, value in self._values.items():
            if key not in self._asked and value:  # what is 0, false or empty is switched off
                raise DougongError(f"{self._where}{key} is {value!r}, which may change the computation, unknown here")

    def wrong(self, key: str, value: object, expected: str) -> DougongError:
        return DougongError(f"{self._where}{key} is {value!r}; expected {expected}")

    def _get(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        if key not in self._values and default is None:
            raise DougongError(f"{self._where}{key} is not there; the file does not describe its model")
        return self._values.get(key, default)


def read_config(file: GgufFile) -> dict[str, Any]:
    """The config.json that says the same as the metadata. Raises DougongError for an architecture or key not known."""
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise DougongError(f"{file.path}: the architecture {name!r} is not read; known: {', '.join(ARCHITECTURES)}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise DougongError(f"{file.path} lacks token_embd.weight; it holds no model (perhaps an adapter or a tower)")
    meta = _Metadata(file, name)
    width, heads = meta.integer("embedding_length"), meta.integer("attention.head_count")
    size, context = meta.integer("attention.key_length", max(width // heads, 1)), meta.integer("context_length")
    meta.same("attention.value_length", size)
    meta.same("rope.dimension_count", size)
    theta = meta.number("rope.freq_base", 10000.0)
    config = {
        **_experts(meta, ARCHITECTURES[name]),
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": meta.integer("feed_forward_length"),
        "num_hidden_layers": meta.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.integer("attention.head_count_kv", heads),
        "head_dim": size,
        "max_position_embeddings": context,
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, meta, size, context, theta),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    # Biases are not in the metadata: the tensors are there or not. Qwen 2 always has those of q, k and v.
    for key, tensor in (("attention_bias", "blk.0.attn_output.bias"), ("mlp_bias", "blk.0.ffn_gate.bias")):
        if tensor in file.tensors:
            config[key] = True
    if not meta.flag("attention.causal", True):
        raise meta.wrong("attention.causal", False, "true")
    meta.refuse_rest()
    return config


def _experts(meta: _Metadata, architecture: Architecture) -> dict[str, Any]:
    """The family, and what its config.json says of experts."""
    if "expert_count" not in meta or not meta.flag("expert_count", False):
        if architecture.dense is None:
            raise meta.wrong("expert_count", 0, "a number of experts")
        return {"model_type": architecture.dense}
    if architecture.sparse is None:
        raise meta.wrong("expert_count", meta.integer("expert_count"), "0, for this architecture has no experts")
    config: dict[str, Any] = {
        "model_type": architecture.sparse,
        "num_local_experts": meta.integer("expert_count"),
        "num_experts_per_tok": meta.integer("expert_used_count"),
    }
    if architecture.dense is None:  # Qwen's experts are smaller than a feed-forward
        config["moe_intermediate_size"] = meta.integer("expert_feed_forward_length")
        config["norm_topk_prob"] = architecture.normalised
    if "expert_shared_feed_forward_length" in meta:
        config["shared_expert_intermediate_size"] = meta.integer("expert_shared_feed_forward_length")
    return config


def _rope_scaling(file: GgufFile, meta: _Metadata, size: int, context: int, theta: float) -> dict[str, Any] | None:
    """config.json's rope_scaling. Llama 3's comes as a divisor for each frequency, in the tensor rope_freqs."""
    kind = meta.text("rope.scaling.type", "linear")  # llama.cpp's own default, with a factor of 1
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 1.0))  # the latter is the old name
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"):
        if meta.number(key, 1.0) != 1:
            raise meta.wrong(key, meta.number(key), "1.0")
    original = meta.integer("rope.scaling.original_context_length", context)
    betas = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
    betas = {ours: meta.number(theirs) for ours, theirs in betas.items() if theirs in meta}
    scaled = kind == "yarn" or (kind == "linear" and factor != 1)
    if kind not in ("none", "linear", "yarn") or (scaled and "rope_freqs.weight" in file.tensors):
        raise meta.wrong("rope.scaling.type", kind, "none, linear or yarn (none beside the tensor rope_freqs)")
    if "rope_freqs.weight" in file.tensors:
        return _divided(file.read("rope_freqs.weight").double(), size, theta, context, str(file.path))
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas}
    return {"rope_type": "linear", "factor": factor} if scaled else None


def _divided(divisors: Tensor, size: int, theta: float, context: int, where: str) -> dict[str, Any] | None:
    """Llama 3's scaling where the constants of its releases give these divisors, else the divisors as they are.

    The latter is LongRoPE with the same list for short and for long texts.
    """
    if divisors.shape != (size // 2,) or not bool((divisors > 0).all()):
        raise DougongError(
            f"{where}: rope_freqs.weight is {tuple(divisors.shape)}; expected {size // 2} divisors above 0"
        )
    factor, low, high, original = float(divisors.max()), 1.0, 4.0, 8192
    if factor == 1 and bool((divisors == 1).all()):
        return None
    # llama.cpp's converter, after the formula of Llama 3.1: parts.rope has it for frequencies.
    wavelength = 2 * math.pi * theta ** (torch.arange(0, size, 2).double() / size)
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    if torch.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-5):
        known = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": original}
        return {"rope_type": "llama3", "factor": factor, **known}
    both, listed = ("short_factor", "long_factor"), divisors.tolist()
    scaling: dict[str, Any] = {"rope_type": "longrope", **dict.fromkeys(both, listed), "attention_factor": 1.0}
    return {**scaling, "original_max_position_embeddings": context}


def keys(file: GgufFile, size: int) -> KeyMap:
    """The file's names of weights; heads are of `size`."""
    turned = ARCHITECTURES[file.metadata["general.architecture"]].paired
    pairs = Permuted(tuple(i + second for i in range(size // 2) for second in (0, size // 2)))
    layouts: dict[str, Layout] = {"attn_q": pairs, "attn_k": pairs} if turned else {}
    gate = file.tensors.get("blk.0.ffn_gate_inp_shexp.weight")
    if gate is not None and len(gate.shape) == 1:  # llama.cpp's converter wrote its only row as a vector for years
        layouts["ffn_gate_inp_shexp"] = Viewed((-1,))
    layers = (
        Rule(f"blk.{{i}}.{theirs}.{kind}", (f"layers.{{i}}.{own}.{kind}",), layout=layouts.get(theirs, CONCAT))
        for theirs, own in _PARTS.items()
        for kind in ("weight", "bias")
    )
    ends = (("token_embd", "embedding"), ("output_norm", "norm"), ("output", "head"))
    return KeyMap(
        rules=(*(Rule(f"{theirs}.weight", (f"{own}.weight",)) for theirs, own in ends), *layers),
        prefix="",
        constants=("rope_freqs.weight",),
        tied=("output.weight", "token_embd.weight"),
    )
