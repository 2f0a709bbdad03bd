"""Tiny models of transformers, drawn at random, for comparison: the reference that dougong itself never imports."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from tests.hub.draws import DRAWN
from tests.hub.draws.encoders import DRAWN_SHAPES
from tests.hub.draws.rope import KINDS, LONG, SHORT

__all__ = ["DRAWS", "KINDS", "LONG", "SHORT"]

DRAWS = 18  # of the families that have every scaling of positions
FEW = 6  # of the others


def draw_config(family: str, seed: int) -> dict[str, Any]:
    """Keyword arguments of the family's config class, drawn by its entry in tests/hub/draws/."""
    return (DRAWN | DRAWN_SHAPES)[family](random.Random(f"{family} {seed}"), seed)


def build(family: str, config: dict[str, Any], seed: int = 0) -> Any:
    """A model of transformers with every parameter, norms and biases too, moved off its initial value."""
    import transformers

    described = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(config)))
    model = transformers.AutoModelForCausalLM.from_config(
        described, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    for module in model.modules():  # what no gradient trains but every file holds is a parameter like the others
        for name in [name for name in module._buffers if name == "e_score_correction_bias"]:
            held = module._buffers.pop(name)
            module.register_parameter(name, torch.nn.Parameter(held, requires_grad=False))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else noise * (0.3 if parameter.ndim == 1 else 0.25))
    return model


def reopen(folder: Path, dtype: str = "auto") -> Any:
    """What transformers makes of a folder; nothing in it may be missing or unexpected."""
    import transformers

    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager", output_loading_info=True, dtype=dtype
    )
    assert not any(told.values()), told
    for parameter in model.parameters():  # products round differently at the odd addresses of a window onto a file
        parameter.data = parameter.data.clone()
    for module in model.modules():
        if hasattr(module, "decay_factors"):  # tables, no weights, which a file in bfloat16 holds rounded
            module.slope_rate = module.get_slope_rate()
            names = ("query_decay", "key_decay", "diagonal_decay")
            for name, table in zip(names, module.decay_factors(module.slope_rate), strict=True):
                setattr(module, name, table)
    return model.eval()


def respell(folder: Path, name: str) -> None:
    """Write a saved config.json in the spelling of transformers 4; `name` is its "type" or "rope_type"."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if kind == "default" else {name: kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


def logits(model: Any, tokens: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of a model of transformers; behind left padding positions start at 0, as generate() counts them."""
    with torch.no_grad():
        if padding is None:
            return model(input_ids=tokens).logits
        mask = (~padding).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference as a share of the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
