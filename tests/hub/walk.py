"""One key of a family's config at a time: what transformers computes with it, or a refusal that names it.

`python -m tests.hub.walk SEED [FAMILY ...]` changes every key of every family in several ways: those of the config
class, those that only the modeling file reads, and the keys of mappings such as rope_parameters. It prints what
differs, and counts. test_config_keys.py does the same with a sample. Both sides compute in float64, where a key that
is passed over shows however little it changes.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import dougong
from dougong.base import DougongError
from dougong.hub.families import FAMILIES
from tests.hub import foreign, test_parity_shapes
from tests.hub.double import doubled
from tests.hub.draws import DRAWN
from tests.hub.draws.encoders import DRAWN_SHAPES

WALKED = [family for family in FAMILIES if family in DRAWN | DRAWN_SHAPES]
MASKED, PAIR = "ForMaskedLM", "ForConditionalGeneration"
KINDS = {family: PAIR if family in test_parity_shapes.PAIRS else MASKED for family in DRAWN_SHAPES}
SAME = 1e-9
# Of bookkeeping, and of what the comparison itself sets.
LEFT = {"transformers_version", "architectures", "model_type", "dtype", "vocab_size", "id2label", "label2id"}
# Read by modeling files, but a method, or of another part of the config class.
NO_KEYS = {"get_text_config", "to_dict", "attribute_map", "standardize_rope_params", "num_labels"}
# What ours has from the published code, where transformers passes over it (MPT) or adds it twice (Falcon, eager).
PUBLISHED = {"falcon": ("alibi",), "mpt": ("alibi_bias_max",)}
ACTIVATIONS = ["gelu", "gelu_new", "relu", "silu", "x"]
ORIGINAL = {"original_max_position_embeddings": 16}
SCALINGS = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 4.0, **ORIGINAL},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    {"rope_type": "proportional", "factor": 2.0},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
]


def other_values(value: Any) -> list[Any]:
    """Values that a key might have instead."""
    match value:
        case bool():
            return [not value, None]
        case int():
            return [value + 1, max(value - 1, 0), value * 2, 0, None]
        case float():
            return [value * 2, value / 2 + 0.01, 0.0, 1.0, None]
        case str():
            return [name for name in ACTIVATIONS if name != value]
        case None:
            return [True, 1, 3, 0.5, "relu"]
        case list():
            return [value[::-1], value[1:], [*value, *value[:1]], []]
        case dict():
            changed = [{**value, key: each} for key, old in value.items() for each in other_values(old)[:3]]
            theta = {key: old for key, old in value.items() if key == "rope_theta"}
            return changed + ([{**theta, **each} for each in SCALINGS] if theta else [])
        case _:
            return []


def changes(family: str, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and other values for them."""
    import transformers

    described = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(config)))
    whole = json.loads(described.to_json_string(use_diff=False))
    source = inspect.getsource(import_module(type(described).__module__.replace("configuration", "modeling")))
    read = {*re.findall(r"config\.([a-z]\w+)", source), *re.findall(r'config, "([a-z]\w+)"', source)}
    kept = PUBLISHED.get(family, ())
    for key in sorted({*whole, *read} - LEFT - NO_KEYS - {*kept}):
        for value in other_values(whole.get(key)):
            if not isinstance(value, dict) or all(value.get(each) == whole[key].get(each) for each in kept):
                yield key, value


def build(family: str, config: dict[str, Any]) -> Any:
    return (
        test_parity_shapes.made(family, KINDS[family], config, 5)
        if family in KINDS
        else foreign.build(family, config, 5)
    )


def outcome(family: str, config: dict[str, Any], length: int = foreign.LONG) -> tuple[str, Any]:
    """ "no model" (transformers makes none of it, or no finite numbers), "refused", "same" or "different"."""
    with doubled():
        told = _outcome(family, config, length, SAME)
    # A few places of transformers insist on float32.
    float32 = told[0] == "no model" and "float32" in str(told[1])
    return _outcome(family, config, length, test_parity_shapes.TOLERANCE) if float32 else told


def _outcome(family: str, config: dict[str, Any], length: int, tolerance: float) -> tuple[str, Any]:
    pair, kind = family in test_parity_shapes.PAIRS, KINDS.get(family)
    lengths = (min(7, length), length)
    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs = build(family, config)
            low, high = 5, min(theirs.config.vocab_size, 40)  # no padding tokens
            tokens = torch.randint(low, high, (2, length), generator=torch.Generator().manual_seed(3))
            theirs.save_pretrained(folder)  # before it runs, for RWKV then holds halved weights
            expected = [_theirs(theirs, tokens[:, :each], kind) for each in lengths]
            if not all(torch.isfinite(each).all() for each in expected):
                return "no model", "not finite"
        except Exception as error:  # whatever a config class or a modeling file trips over
            return "no model", repr(error)
        try:
            lm = dougong.load(Path(folder))
            with torch.no_grad():
                pieces = [tokens[:, :each] for each in lengths]
                ours = [(lm.model(each[:, :7], each) if pair else lm.model(each)).logits for each in pieces]
        except DougongError as error:
            return "refused", str(error)
    worst = max(foreign.error(each, wanted) for each, wanted in zip(ours, expected, strict=True))
    return ("same" if worst <= tolerance else "different"), worst


def _theirs(model: Any, tokens: torch.Tensor, kind: str | None) -> torch.Tensor:
    with torch.no_grad():
        if kind == PAIR:
            return model(tokens, decoder_input_ids=tokens[:, :7], use_cache=False).logits
        given = {} if kind is None else {"attention_mask": torch.ones_like(tokens)}
        return model(tokens, **given).logits


def draw(family: str, seed: int) -> dict[str, Any]:
    return (
        DRAWN_SHAPES[family](random.Random(f"{family} {seed}"), seed)
        if family in KINDS
        else foreign.draw_config(family, seed)
    )


def main(seed: int, families: list[str]) -> None:
    total: Counter[str] = Counter()
    for family in families or WALKED:
        config = draw(family, seed)
        if (base := outcome(family, config))[0] != "same":
            print(family, "as drawn:", *base, flush=True)
            continue
        counted: Counter[str] = Counter()
        for key, value in changes(family, config):
            told, why = outcome(family, {**config, key: value})
            counted[told] += 1
            if told == "different":
                print(family, key, repr(value)[:200], why, flush=True)
        print(family, dict(counted), flush=True)
        total += counted
    print("all", dict(total))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
