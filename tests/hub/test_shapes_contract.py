"""What holds for every encoder and encoder-decoder, and for a decoder that reads a prefix both ways."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch

from dougong.base import DougongError
from dougong.hub.families import FAMILIES
from dougong.model import Model, ModelSpec, initialise
from dougong.parts.attend import reference
from dougong.parts.wkv import ChannelMix
from tests.contract.models import SPECS
from tests.contract.models import build as build_decoder
from tests.hub.draws.encoders import DRAWN_SHAPES

transformers = pytest.importorskip("transformers", reason="the configurations are those of transformers")

ENCODERS, PAIRS = ("bert", "roberta", "modernbert"), ("t5", "bart", "switch_transformers")
encoders, pairs = pytest.mark.parametrize("family", ENCODERS), pytest.mark.parametrize("family", PAIRS)
both = pytest.mark.parametrize("family", ENCODERS + PAIRS)


def read(family: str, seed: int = 1, **changes) -> ModelSpec:
    config = {**DRAWN_SHAPES[family](random.Random(f"{family} {seed}"), seed), **changes}
    whole = json.loads(transformers.AutoConfig.for_model(family, **config).to_json_string(use_diff=False))
    return FAMILIES[family].from_config(whole)


def build(family: str, seed: int = 1, **changes) -> Model:
    """Every parameter moved off its initial value."""
    model = initialise(Model(read(family, seed, **changes)), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def text(model: Model, rows: int, tokens: int, seed: int = 7) -> torch.Tensor:
    return torch.randint(0, model.spec.vocab, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def close(actual, expected, tolerance=1e-4):
    actual, expected = actual.detach().float(), expected.detach().float()
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@pairs
@pytest.mark.parametrize("seed", [1, 2])
@torch.no_grad()
def test_whole_text_is_token_by_token_is_chunks(family, seed):
    model = build(family, seed)
    source, tokens = text(model, 2, 15), text(model, 2, 12, 8)
    padding = torch.zeros(2, 15, dtype=torch.bool)
    padding[1, :4] = True
    whole = model(tokens, source, source_padding=padding).logits
    for cuts in ([1] * 12, [5, 1, 4, 2]):
        cache = model.cache(2, 14)
        cache.source, cache.source_padding = model.encode(source, padding), padding
        out = []
        for piece in tokens.split(cuts, 1):
            out.append(model.run(piece, cache.context(piece), cache).logits)
            cache.advance(piece.shape[1])
        close(torch.cat(out, 1), whole)


@pairs
@torch.no_grad()
def test_padding_of_source_and_text_means_nothing(family):
    model = build(family)
    source, tokens = text(model, 3, 15), text(model, 3, 10, 8)
    source_padding, padding = torch.zeros(3, 15, dtype=torch.bool), torch.zeros(3, 10, dtype=torch.bool)
    source_padding[0, :6] = source_padding[1, 9:] = padding[1, :3] = padding[2, 7:] = True
    out = model(tokens, source, padding, source_padding=source_padding).logits
    for row in range(3):
        alone = model(tokens[row][~padding[row]][None], source[row][~source_padding[row]][None]).logits
        close(out[row][~padding[row]], alone[0])


@encoders
@torch.no_grad()
def test_encoders_keep_documents_and_padding_apart(family):
    model = build(family)
    tokens = text(model, 2, 20)
    documents = torch.tensor([[0] * 6 + [1] * 7 + [2] * 7] * 2)
    positions = torch.cat([torch.arange(6), torch.arange(7), torch.arange(7)])[None]
    packed = model(tokens, documents=documents, positions=positions).logits
    for start, end in ((0, 6), (6, 13), (13, 20)):
        close(packed[:, start:end], model(tokens[:, start:end]).logits)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[0, :5] = padding[1, 17:] = True
    padded = model(tokens, padding=padding).logits
    close(padded[0, 5:], model(tokens[:1, 5:]).logits[0])
    close(padded[1, :17], model(tokens[1:, :17]).logits[0])


@both
def test_gradients_are_finite_and_the_same_when_recomputed(family):
    # Without dropout, and with room for every token: what a router leaves out has no gradient.
    model = build(family)
    tokens, source = text(model, 2, 11), text(model, 2, 9, 8) if family in PAIRS else None
    results = []
    for recompute in (False, True):
        for part in (model, model.encoder):
            if part is not None:
                part.recompute = recompute
        model.zero_grad()
        logits = model(tokens, source).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
        results.append({name: weight.grad for name, weight in model.weights().items()})
    for name, grad in results[0].items():
        assert grad is not None, name
        assert torch.isfinite(grad).all(), name
        close(results[1][name], grad, 1e-5)


@both
@torch.no_grad()
def test_bfloat16_is_near_float32(family):
    model = build(family)
    tokens, source = text(model, 1, 12), text(model, 1, 9, 8) if family in PAIRS else None
    exact = model(tokens, source).logits
    low = model.to(torch.bfloat16)(tokens, source).logits.float()
    assert float((low - exact).norm() / exact.norm()) <= 0.1


@both
def test_the_spec_counts_what_is_there_and_is_told_in_json(family):
    for seed in range(4):
        spec = read(family, seed)
        assert spec.parameters() == sum(weight.numel() for weight in Model(spec).parameters())
        assert 0 < spec.active_parameters() <= spec.parameters()
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


DROPOUTS = {
    "bert": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
    "roberta": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
    "modernbert": {"embedding_dropout": 0.3, "attention_dropout": 0.2},
    "t5": {"dropout_rate": 0.3},
    "bart": {"dropout": 0.3, "attention_dropout": 0.2},
    "switch_transformers": {"dropout_rate": 0.3},
}


@both
@torch.no_grad()
def test_dropout_is_read_and_acts_in_training_alone(family):
    model = build(family, **DROPOUTS[family])
    spec = model.spec
    config = FAMILIES[family].to_config(spec)
    assert {key: config[key] for key in DROPOUTS[family]} == DROPOUTS[family]
    shares = (spec.embedding.dropout, spec.layers[0].dropout, spec.layers[0].mixer.dropout)
    assert sum(share > 0 for share in shares) >= 2
    tokens, source = text(model, 2, 11), text(model, 2, 9, 8) if family in PAIRS else None
    assert not model.training
    first = model(tokens, source).hidden
    assert torch.equal(model(tokens, source).hidden, first)
    model.train()
    torch.manual_seed(0)
    one, two = model(tokens, source).hidden, model(tokens, source).hidden
    assert not torch.allclose(one, two)
    torch.manual_seed(0)
    assert torch.equal(model(tokens, source).hidden, one)
    model.eval()
    assert torch.equal(model(tokens, source).hidden, first)


@torch.no_grad()
def test_attention_weights_drop_in_training_only():
    model = build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    tokens = text(model, 2, 11)
    model.train()
    assert not torch.allclose(model(tokens).hidden, model(tokens).hidden)


@torch.no_grad()
def test_encoders_refuse_what_they_cannot_do():
    encoder, pair = build("bert"), build("t5")
    with pytest.raises(DougongError, match="whole text"):
        encoder.cache(1, 8)
    with pytest.raises(DougongError, match="leave `source` out"):
        encoder(text(encoder, 1, 4), text(encoder, 1, 4))
    with pytest.raises(DougongError, match="give `source`"):
        pair(text(pair, 1, 4))


@pytest.mark.parametrize("name", ["llama", "yarn", "qwen3", "gpt2", "post", "sandwich", "parallel"])
@torch.no_grad()
def test_a_prefix_is_read_both_ways_and_what_follows_is_causal(name, monkeypatch):
    """Equal to a mask built by hand, and the two properties themselves."""
    model = build_decoder(name).eval()
    tokens = text(model, 2, 12)
    prefix = torch.zeros(2, 12, dtype=torch.bool)
    prefix[0, :5] = prefix[1, :8] = True
    out = model(tokens, both_ways=prefix).logits

    place = torch.arange(12)
    by_hand = (place[:, None] >= place) | (prefix[:, :, None] & prefix[:, None, :])

    def plain(q, k, v, ctx, how, bias=None, sinks=None, training=False):
        from dougong.parts.context import Context

        class Given(Context):
            def mask(self, window=None, chunk=None):
                return by_hand

        return reference(q, k, v, Given(ctx.positions), how, bias, sinks)

    monkeypatch.setattr("dougong.parts.attention.attend", plain)
    close(model(tokens).logits, out)
    monkeypatch.undo()

    changed = tokens.clone()
    changed[0, 4] = (changed[0, 4] + 1) % model.spec.vocab  # the last token of the prefix
    changed[1, 10] = (changed[1, 10] + 1) % model.spec.vocab  # one that follows it
    difference = (model(changed, both_ways=prefix).logits - out).abs().amax(-1) > 1e-6
    assert difference[0, 0]  # earlier tokens of the prefix see it
    assert not difference[1, :10].any()
    assert difference[1, 10]
    causal = model(tokens).logits
    close(model(tokens, both_ways=torch.zeros_like(prefix)).logits, causal)


@torch.no_grad()
def test_a_prefix_decoder_goes_on_from_a_cache():
    model = build_decoder("llama").eval()
    tokens = text(model, 1, 12)
    prefix = torch.arange(12)[None] < 5
    whole = model(tokens, both_ways=prefix).logits
    cache = model.cache(1, 12)
    ctx = cache.context(tokens[:, :5])
    ctx.both_ways = prefix[:, :5]
    out = [model.run(tokens[:, :5], ctx, cache).logits]
    cache.advance(5)
    for place in range(5, 12):
        token = tokens[:, place : place + 1]
        out.append(model.run(token, cache.context(token), cache).logits)
        cache.advance(1)
    close(torch.cat(out, 1), whole)


@pytest.mark.parametrize("name", ["delta", "mamba"])
@torch.no_grad()
def test_a_recurrence_cannot_read_a_prefix_both_ways(name):
    model = build_decoder(name).eval()
    tokens, prefix = text(model, 2, 6), torch.zeros(2, 6, dtype=torch.bool)
    with pytest.raises(DougongError, match="left to right"):
        model(tokens, both_ways=prefix)
    cache = model.cache(2, 6)
    ctx = cache.context(tokens)
    ctx.both_ways = prefix
    with pytest.raises(DougongError, match="left to right"):
        model.run(tokens, ctx, cache)


def test_a_recurrence_cannot_see_the_whole_text():
    for name in ("delta", "mamba"):
        with pytest.raises(DougongError, match=r"layers\[0\]\.mixer is a .*causal"):
            replace(SPECS[name], causal=False)
    spec = SPECS["llama"]
    layer = replace(spec.layers[0], ffn=ChannelMix(spec.width, 12))
    with pytest.raises(DougongError, match=r"layers\[1\]\.ffn is a ChannelMix, .*causal"):
        replace(spec, layers=(spec.layers[0], layer), causal=False)
    assert not replace(spec, causal=False).causal


def test_experts_of_both_sides_ask_to_be_kept_busy():
    model = build("switch_transformers")
    model.train()
    out = model(text(model, 2, 11), text(model, 2, 9, 8))
    experts = [name for name, module in model.named_modules() if name.endswith("router")]
    assert {name.startswith("encoder.") for name in experts} == {False, True}
    assert len(out.loads) == len(experts)
    out.auxiliary.backward()
    for name in experts:
        assert model.get_submodule(f"{name}.logits").weight.grad.abs().sum() > 0, name


PUBLISHED = {
    "bert-base": ("bert", {"architectures": ["BertModel"], "vocab_size": 30522}, 109_482_240),
    "roberta-base": (
        "roberta",
        {
            "architectures": ["RobertaModel"],
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
        },
        124_645_632,
    ),
    "modernbert-base": ("modernbert", {"vocab_size": 50368}, 149_655_232),
    "t5-small": ("t5", {"d_model": 512, "num_heads": 8}, 60_506_624),
    "t5-base": ("t5", {"d_model": 768, "num_heads": 12, "num_layers": 12, "d_ff": 3072}, 222_903_552),
    "flan-t5-base": (
        "t5",
        {
            "d_model": 768,
            "num_heads": 12,
            "num_layers": 12,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        247_577_856,
    ),
    "bart-large": ("bart", {"architectures": ["BartModel"]}, 406_291_456),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    family, config, count = PUBLISHED[name]
    assert FAMILIES[family].from_config(config).parameters() == count
