"""Experts that lie in one tensor go to PEFT and come from it, with equal logits."""

from __future__ import annotations

import json

import pytest
import torch

peft = pytest.importorskip("peft")

from dougong.base import DougongError  # noqa: E402
from dougong.hub import load, save  # noqa: E402
from dougong.tune import (  # noqa: E402
    IA3,
    AdaLoRA,
    DoRA,
    LoRA,
    attach,
    attached,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)

from .models import apart, build, logits, near, shake, text  # noqa: E402
from .test_peft import moved, their_logits, theirs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SPARSE = {
    "qwen3_moe": {},
    "qwen2_moe": {"base": "qwen3_moe", "shared_expert_intermediate_size": 24},
    # Its files call the same things otherwise than its modules do.
    "mixtral": {"base": "llama", "num_local_experts": 4, "intermediate_size": 16},
    # Its tensors lie turned, gate and up in turn.
    "gpt_oss": {
        "base": "llama", "num_local_experts": 4, "intermediate_size": 16, "layer_types": ["full_attention"] * 2,
        "head_dim": 8,
    },
    "deepseek_v3": {},
}  # fmt: skip
BOTH = [GATE_UP, DOWN] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CONFIGS = {
    "both": {"target_parameters": BOTH},
    "down alone": {"target_parameters": [DOWN]},
    "no modules": {"target_modules": [], "target_parameters": [GATE_UP]},
    "one layer": {"target_parameters": [f"1.{DOWN}", f"1.{GATE_UP}"]},
    "patterns": {
        "target_parameters": BOTH,
        "rank_pattern": {"experts.down_proj": 2, "o_proj": 5},
        "alpha_pattern": {r"layers\.1\.mlp\.experts\.gate_up_proj": 7},
    },
    "rslora": {"target_parameters": BOTH, "use_rslora": True},
    "whole modules": {"target_parameters": BOTH, "modules_to_save": ["lm_head", "norm"]},
    "all-linear": {"target_modules": "all-linear", "task_type": "CAUSAL_LM"},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}
    for family, changes in SPARSE.items():
        path = tmp_path_factory.mktemp(family) / "model"
        save(build(family, **changes), path)
        made[family] = path
    return made


@pytest.mark.parametrize(
    ("family", "kind"),
    [("qwen3_moe", kind) for kind in CONFIGS]
    + [(family, kind) for family in SPARSE if family != "qwen3_moe" for kind in ("both", "patterns", "all-linear")],
)
def test_there_and_back(bases, tmp_path, family, kind):
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["o_proj"], **CONFIGS[kind]})
    model, tokens = moved(peft.get_peft_model(theirs(bases[family]), config)), text()
    expected = their_logits(model, tokens)
    model.save_pretrained(tmp_path / "theirs")
    lm = load(bases[family])
    before = logits(lm, tokens)
    load_adapter(lm, tmp_path / "theirs")
    near(logits(lm, tokens), expected, 2e-5)
    apart(expected, before)
    merge(lm, keep=True)
    near(logits(lm, tokens), expected, 2e-5)
    unmerge(lm)
    save_adapter(lm, tmp_path / "ours", form="peft")
    again = peft.PeftModel.from_pretrained(theirs(bases[family]), tmp_path / "ours").eval()
    near(their_logits(again, tokens), expected, 2e-5)


@pytest.mark.parametrize("match", ["*.experts.*", "*.experts.up", "q *.experts.gate *.experts.down", "*.router.*"])
@pytest.mark.parametrize("family", list(SPARSE))
def test_ours_is_theirs(bases, tmp_path, family, match):
    """Gate and up have an A each here and share one there; of some of them only one is adapted, or routers are."""
    lm, tokens = load(bases[family]), text()
    before = logits(lm, tokens)
    attach(lm, LoRA(rank=3, alpha=5.0, ranks={"*.experts.up": 2}, alphas={"*gate": 7.0}), match)
    shake(lm)
    apart(logits(lm, tokens), before)
    save_adapter(lm, tmp_path / "a", form="peft")
    model = peft.PeftModel.from_pretrained(theirs(bases[family]), tmp_path / "a").eval()
    near(their_logits(model, tokens), logits(lm, tokens), 2e-5)
    again = load(bases[family])
    load_adapter(again, tmp_path / "a")
    near(logits(again, tokens), logits(lm, tokens), 2e-5)


@pytest.mark.parametrize("method", [DoRA(rank=3), AdaLoRA(rank=3, target=2), IA3()], ids=["dora", "adalora", "ia3"])
def test_what_peft_has_no_form_for_stays_in_ours(bases, tmp_path, method):
    lm, tokens = load(bases["qwen3_moe"]), text()
    attach(lm, method, "*.experts.*")
    shake(lm)
    with pytest.raises(DougongError, match=r"for a parameter such as .*experts\.gate_up_proj"):
        save_adapter(lm, tmp_path / "a", form="peft")
    save_adapter(lm, tmp_path / "a")
    again = load(bases["qwen3_moe"])
    load_adapter(again, tmp_path / "a")
    near(logits(again, tokens), logits(lm, tokens), 1e-6)


def test_parameters_that_are_not_there_are_refused_by_name(bases, tmp_path):
    lm = load(bases["qwen3_moe"])
    attach(lm, LoRA(rank=3), "q *.experts.*")
    save_adapter(lm, tmp_path / "a", form="peft")
    path = tmp_path / "a" / "adapter_config.json"
    good = json.loads(path.read_text())

    def refused(match, **changes):
        other = load(bases["qwen3_moe"])
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(DougongError, match=match):
            load_adapter(other, tmp_path / "a")
        assert not attached(other)
        assert torch.equal(logits(other, text()), logits(load(bases["qwen3_moe"]), text()))

    refused("target_parameters is 'mlp'; expected names", target_parameters="mlp")
    refused("asks for mlp.nothing, which is no tensor", target_parameters=[*good["target_parameters"], "mlp.nothing"])
    refused("holds .*experts.* of no|lacks|has no place|belongs to no module", target_parameters=[DOWN])
    refused(r"rank_pattern is \['q_proj'\]; expected", rank_pattern=["q_proj"])
    refused(r"gate_up_proj has a tensor of \(24, 24\); expected \(8, 24\)", r=2, rank_pattern={})
