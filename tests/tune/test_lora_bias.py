"""A bias on LoRA's B: nothing at the start, one layer with it when merged, and PEFT's `lora_bias` both ways."""

from __future__ import annotations

import json

import pytest
import torch

from dougong.base import DougongError
from dougong.hub import load, save
from dougong.tune import (
    LoRA,
    attach,
    attached,
    combine,
    disabled,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
    using,
)

from .models import apart, build, logits, near, shake, text

BIASED = LoRA(rank=3, alpha=5.0, bias=True)


@pytest.mark.parametrize(("family", "match"), [("gpt2", "q v o up"), ("llama", "q v down"), ("phi3", "q k o gate")])
def test_it_starts_as_nothing_and_is_kept(family, match, tmp_path):
    lm, tokens = build(family), text()
    base = logits(lm, tokens)
    tuning = attach(lm, BIASED, match)
    assert torch.equal(logits(lm, tokens), base)
    trained = {name for name, each in lm.model.named_parameters() if each.requires_grad}
    assert len(trained) == 3 * len(tuning.plugs) and sum(name.endswith(".bias") for name in trained) == len(trained) / 3
    for name, parameter in tuning.parameters().items():  # the bias alone says something
        parameter.data += 0.3 * name.endswith(".bias")
    apart(logits(lm, tokens), base)
    shake(lm)
    out = logits(lm, tokens)
    with disabled(lm):
        assert torch.equal(logits(lm, tokens), base)
    with using(lm, ["default", None, "default"]):
        mixed = logits(lm, tokens)
    near(mixed[0], out[0], 1e-5)
    near(mixed[1], base[1], 1e-5)
    save_adapter(lm, tmp_path / "own", form="own")
    again = build(family)
    load_adapter(again, tmp_path / "own")
    near(logits(again, tokens), out, 1e-6)


def test_every_part_has_its_gradient():
    """That of a pass with W + s B A and the bias + s b in place of the layer."""
    lm = build("gpt2")
    attach(lm, BIASED, "q")
    shake(lm)
    plug = next(iter(attached(lm)["default"].plugs.values()))
    layer = lm.model.layers[0].mixer.q
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    layer(x).square().sum().backward()
    a, b, bias = (each.detach().clone().requires_grad_() for each in (plug.a, plug.b, plug.bias))
    whole = layer.storage.dense().detach() + plug.scale * b @ a
    torch.nn.functional.linear(x, whole, layer.bias.detach() + plug.scale * bias).square().sum().backward()
    for mine, other in ((plug.a, a), (plug.b, b), (plug.bias, bias)):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-4, atol=1e-5) and float(other.grad.abs().max()) > 1e-3


def test_merged_is_unmerged_where_the_layer_has_a_bias():
    lm, tokens = build("gpt2"), text()
    attach(lm, BIASED, "q v o up")
    shake(lm)
    out = logits(lm, tokens)
    merge(lm, keep=True)
    near(logits(lm, tokens), out, 1e-5)
    unmerge(lm)
    assert torch.equal(logits(lm, tokens), out)
    bare = build("llama")
    attach(bare, BIASED, "q")
    shake(bare)
    out = logits(bare, tokens)
    with pytest.raises(DougongError, match="cannot be merged into a layer that has no bias"):
        merge(bare)
    assert torch.equal(logits(bare, tokens), out)


def test_where_it_cannot_be_it_is_refused():
    lm = build("qwen3_moe")
    with pytest.raises(DougongError, match="is no single projection"):
        attach(lm, BIASED, "embedding")
    with pytest.raises(DougongError, match="is no single projection"):
        attach(lm, BIASED, "*.experts.*")
    for name in ("a", "b"):
        attach(lm, BIASED, "q", name)
    with pytest.raises(DougongError, match="cannot be combined"):
        combine(lm, {"a": 1.0, "b": 1.0}, "c")


TARGETS = {
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "phi3": ["qkv_proj", "o_proj"],
}
MATCH = {"gpt2": "q v o", "llama": "q v down", "phi3": "q k o"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", TARGETS)
def test_pefts_folders_both_ways(family, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    save(build(family), tmp_path / "base")

    def theirs():
        kind = transformers.AutoModelForCausalLM
        return kind.from_pretrained(tmp_path / "base", attn_implementation="eager").eval()

    def told(model):
        with torch.no_grad():
            return model(input_ids=tokens).logits

    tokens = text()
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=TARGETS[family], lora_bias=True, use_rslora=True,
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    model = peft.get_peft_model(theirs(), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    expected = told(model)
    model.save_pretrained(tmp_path / "theirs")
    lm = load(tmp_path / "base")
    load_adapter(lm, tmp_path / "theirs")
    near(logits(lm, tokens), expected, 2e-5)
    save_adapter(lm, tmp_path / "again", form="peft")
    near(told(peft.PeftModel.from_pretrained(theirs(), tmp_path / "again").eval()), expected, 2e-5)
    if family == "gpt2":
        merge(lm)
        near(logits(lm, tokens), expected, 2e-5)
        near(told(model.merge_and_unload()), expected, 2e-5)
    # Some of the matrices that they keep in one, another scale for each.
    ours = load(tmp_path / "base")
    attach(ours, LoRA(rank=3, bias=True, alphas={"*.v": 3.0}), MATCH[family])
    shake(ours)
    save_adapter(ours, tmp_path / "ours", form="peft")
    near(told(peft.PeftModel.from_pretrained(theirs(), tmp_path / "ours").eval()), logits(ours, tokens), 2e-5)
    # What contradicts itself is refused by name.
    path = tmp_path / "theirs" / "adapter_config.json"
    good = json.loads(path.read_text())
    lm = load(tmp_path / "base")
    for changes, match in (
        ({"lora_bias": False}, r"holds lora_B\.bias, which lora_bias does not ask for"),
        ({"lora_bias": "yes"}, "lora_bias is 'yes'; expected true or false"),
        ({"use_dora": True}, "use_dora and lora_bias are both true"),
    ):
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(DougongError, match=match):
            load_adapter(lm, tmp_path / "theirs")
        assert not attached(lm)
