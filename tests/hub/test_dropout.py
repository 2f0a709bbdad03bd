"""Dropout of every family: in training at the places where transformers drops, with the same shares; else nowhere."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from dougong.base import DougongError
from dougong.hub.families import FAMILIES
from dougong.model import Model, initialise
from tests.hub import foreign
from tests.hub.draws import DRAWN
from tests.hub.draws.encoders import DRAWN_SHAPES
from tests.hub.test_parity_shapes import NAMES, PAIRS, ROWS, SPAN

transformers = pytest.importorskip("transformers", reason="transformers is the reference that is compared with")

DECODERS = [family for family in FAMILIES if family in DRAWN]
SHARES = (0.11, 0.23, 0.31, 0.42, 0.17, 0.37)
# Keys that a draw leaves as they are: whole layers, which are not dropped here.
AGAIN = ["gpt2", "gpt_neox", "falcon", "phi3", "gpt_oss", "gemma2", "deepseek_v3", "jamba", "t5", "switch_transformers"]
LAYERS = ("encoder_layerdrop", "decoder_layerdrop")


def with_dropout(family: str, drawn: dict[str, Any]) -> Any:
    """The config of a draw with a share of its own for every dropout that its class knows."""
    config = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(drawn)))
    shares = iter(SHARES)
    for key in sorted(config.to_dict()):
        if ("drop" in key or key.endswith("pdrop")) and key not in LAYERS and "summary" not in key:
            setattr(config, key, next(shares))
    if family == "mpt":  # its class of the keys of attention holds it for an integer, but drops what it says
        config.attn_config.__dict__["attn_pdrop"] = next(shares)
    return config


def ours(config: Any, architecture: str | None = None) -> Model:
    data = json.loads(config.to_json_string(use_diff=False))
    spec = FAMILIES[config.model_type].from_config(data | ({"architectures": [architecture]} if architecture else {}))
    return initialise(Model(spec)).train()


def sites(monkeypatch: pytest.MonkeyPatch, run: Any) -> Counter:
    """Every tensor that `run` drops something of: its shape up to the order of its sides, and the share.

    The rows of experts, two-dimensional, add up: they may lie together or apart."""
    found: Counter = Counter()
    drop, attention = F.dropout, F.scaled_dot_product_attention

    def note(shape: tuple[int, ...], share: float) -> None:
        if len(shape) == 2:
            found["experts", shape[1], share] += shape[0]
        else:
            found[tuple(sorted(size for size in shape if size > 1)), share] += 1

    def counted(x, p=0.5, training=True, inplace=False):
        if p and training:
            note(tuple(x.shape), p)
        return drop(x, p, training, inplace)

    def counted_attention(q, k, v, *rest, dropout_p=0.0, **options):
        if dropout_p:
            note((*q.shape[:3], k.shape[2]), dropout_p)
        return attention(q, k, v, *rest, dropout_p=dropout_p, **options)

    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", counted)
        patch.setattr(F, "scaled_dot_product_attention", counted_attention)
        run()
    return found


def text(config: Any, rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(5, config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("seed", range(3))
def test_decoders_drop_where_transformers_does(family: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_dropout(family, foreign.draw_config(family, seed))
    theirs = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).train()
    model, tokens = ours(config), text(config, 2, 13)
    expected = sites(monkeypatch, lambda: theirs(tokens, use_cache=False))
    assert sites(monkeypatch, lambda: model(tokens).logits) == expected
    assert not sites(monkeypatch, lambda: model.eval()(tokens).logits)
    again = FAMILIES[family].to_config(model.spec)
    assert FAMILIES[family].from_config(again) == model.spec


@pytest.mark.parametrize("options", [{}, {"multi_query": False, "parallel_attn": False}, {"parallel_attn": False}])
def test_falcon_with_alibi_drops_attention_weights(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = foreign.draw_config("falcon", 0) | {"alibi": True, "new_decoder_architecture": False, **options}
    drawn.pop("rope_parameters")
    config = with_dropout("falcon", drawn | {"num_kv_heads": None, "num_ln_in_parallel_attn": None})
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    model, tokens = ours(config), text(config, 2, 13)
    expected = sites(monkeypatch, lambda: theirs(tokens, use_cache=False))
    assert any(13 in shape and shape.count(13) == 2 for shape, _ in expected)
    assert sites(monkeypatch, lambda: model(tokens).logits) == expected
    assert FAMILIES["falcon"].from_config(FAMILIES["falcon"].to_config(model.spec)) == model.spec


def test_the_reference_does_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the comparison is not one of nothing with nothing."""
    silent = set()
    for family in DECODERS:
        model, tokens = ours(with_dropout(family, foreign.draw_config(family, 1))), torch.arange(5, 18)[None]
        if not sites(monkeypatch, lambda model=model, tokens=tokens: model(tokens).logits):
            silent.add(family)
    assert silent == {"mamba", "mamba2", "rwkv"}


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in ROWS for kind in ROWS[family]])
def test_encoders_and_heads_drop_where_transformers_does(
    family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = DRAWN_SHAPES.get(family) or DRAWN[family]
    drawn = {"pad_token_id": 1} | draw(random.Random(f"{family} 1"), 1)
    drawn |= {"id2label": {"0": "from", "1": "to"}} if kind == SPAN else {}
    config = with_dropout(family, drawn)
    name = NAMES[family] + kind
    theirs = (
        getattr(transformers, name)
        ._from_config(config, attn_implementation="eager", experts_implementation="eager")
        .train()
    )
    model, tokens = ours(config, name), text(config, 2, 13)

    def run() -> None:
        output = model(tokens)
        for part, name in ((model.task, "task"), (model.head, "logits")):
            assert part is None or torch.isfinite(getattr(output, name)).all()

    expected = sites(monkeypatch, lambda: theirs(tokens))
    assert sites(monkeypatch, run) == expected


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_pairs_drop_where_transformers_does(family: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = DRAWN_SHAPES[family](random.Random(f"{family} {seed}"), seed)
    if family == "switch_transformers":
        drawn |= {"expert_capacity": 64, "router_jitter_noise": 0.0}
    config = with_dropout(family, drawn)
    theirs = getattr(transformers, NAMES[family] + "ForConditionalGeneration")._from_config(
        config, attn_implementation="eager"
    )
    model, source, tokens = ours(config), text(config, 2, 13), text(config, 2, 7)
    expected = sites(monkeypatch, lambda: theirs.train()(source, decoder_input_ids=tokens, use_cache=False))
    assert expected
    assert sites(monkeypatch, lambda: model(tokens, source).logits) == expected
    with torch.no_grad():
        assert sites(monkeypatch, lambda: model(tokens, source).logits) == expected
    assert not sites(monkeypatch, lambda: model.eval()(tokens, source).logits)
    assert FAMILIES[family].from_config(FAMILIES[family].to_config(model.spec)) == model.spec


@pytest.mark.parametrize("family", AGAIN)
def test_layers_that_are_run_again_drop_the_same(family: str) -> None:
    draw = DRAWN_SHAPES.get(family) or DRAWN[family]
    model = ours(with_dropout(family, draw(random.Random(f"{family} 1"), 1)))
    tokens = torch.randint(5, model.spec.vocab, (2, 9), generator=torch.Generator().manual_seed(1))
    source = tokens.roll(1) if family in PAIRS else None
    trained = [(name, weight) for name, weight in model.weights().items() if weight.requires_grad]
    grads = []
    for recompute in (False, True):
        for part in (model, model.encoder):
            if part is not None:
                part.recompute = recompute
        model.zero_grad()
        torch.manual_seed(3)
        F.cross_entropy(model(tokens, source).logits.flatten(0, 1), tokens.flatten()).backward()
        grads.append({name: torch.zeros(()) if weight.grad is None else weight.grad for name, weight in trained})
    for name, grad in grads[0].items():
        assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6, msg=name)
    torch.manual_seed(4)
    model.zero_grad()
    F.cross_entropy(model(tokens, source).logits.flatten(0, 1), tokens.flatten()).backward()
    assert any(weight.grad is not None and not torch.allclose(weight.grad, grads[0][name]) for name, weight in trained)


def test_a_share_is_checked() -> None:
    config = json.loads(with_dropout("gpt2", foreign.draw_config("gpt2", 0)).to_json_string(use_diff=False))
    for value in (1.0, -0.1):
        with pytest.raises(DougongError, match=r"attn_pdrop is .* at least 0 and less than 1"):
            FAMILIES["gpt2"].from_config(config | {"attn_pdrop": value})


@pytest.mark.parametrize("family", ["gpt_neox", "falcon", "modernbert"])
def test_a_spec_without_dropout_needs_no_share_of_its_own(family: str) -> None:
    """Where a family has a dropout of the feed-forward by itself, none at all is still written as none at all."""
    draw = DRAWN_SHAPES.get(family) or DRAWN[family]
    for seed in range(4):
        drawn = {
            key: value for key, value in draw(random.Random(f"{family} {seed}"), seed).items() if "drop" not in key
        }
        config = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(drawn)))
        spec = FAMILIES[family].from_config(json.loads(config.to_json_string(use_diff=False)))
        assert {(layer.dropout, layer.ffn_dropout) for layer in spec.layers} == {(0.0, None)}
