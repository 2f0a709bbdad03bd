"""A spec's operations against those that PyTorch counts while the model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dougong.hub.families import FAMILIES
from dougong.model import Model, ModelSpec
from dougong.model.init import initialise
from dougong.parts import native

SMALL = {"vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = [
    {"model_type": "llama", **SMALL, **HEADS},
    {"model_type": "bert", **SMALL, "num_attention_heads": 4, "max_position_embeddings": 64},
    {"model_type": "t5", "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3,
     "num_decoder_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    {"model_type": "bart", "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3,
     "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40,
     "max_position_embeddings": 64},
]  # fmt: skip


def _attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    """PyTorch's own count, which it does not apply to the kernel of the CPU."""
    return sdpa_flop_count(q, k, v)


COUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def _masked(spec: ModelSpec, length: int) -> float:
    """Products with keys that causal attention then hides: a formula leaves them out, a CPU multiplies them."""
    hidden = length * (length - 1) / 2 if spec.causal else 0
    return sum(4 * layer.mixer.heads * layer.mixer.head_size * hidden for layer in spec.layers)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["model_type"])
@pytest.mark.parametrize(("length", "source"), [(16, 16), (9, 30), (40, 5)])
def test_formula_equals_the_count(config: dict, length: int, source: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "serving", lambda x: None)  # PyTorch's counter does not see our own kernels
    spec = FAMILIES[config["model_type"]].from_config(config)
    model = Model(spec)
    initialise(model)
    given = {"source": torch.randint(96, (1, source))} if spec.encoder is not None else {}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        output = model(torch.randint(96, (1, length)), **given)
        _ = output.logits if spec.head is not None else output.hidden
    formula = spec.flops(length, source=source) + _masked(spec, length)
    assert counter.get_total_flops() == pytest.approx(formula, rel=0.03)
