"""Folders go to PEFT and come from it, with equal logits."""

from __future__ import annotations

import json
import math

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from dougong.base import DougongError  # noqa: E402
from dougong.hub import load, save  # noqa: E402
from dougong.tune import (  # noqa: E402
    IA3,
    AdaLoRA,
    DoRA,
    Houlsby,
    LoRA,
    LoRAFA,
    LoRAPlus,
    PrefixTuning,
    PromptTuning,
    PTuning,
    VeRA,
    attach,
    attached,
    detach,
    disabled,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)

from .models import apart, build, logits, near, shake, text  # noqa: E402

FAMILIES = ["llama", "gpt2"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """One model of each family in a folder that both sides open."""
    made = {}
    for family in (*FAMILIES, "phi3", "mamba"):
        path = tmp_path_factory.mktemp(family) / "model"
        save(build(family), path)
        made[family] = path
    return made


def theirs(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


def their_logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def their_prompted(model, tokens):
    """A prompt's own places in front are left out."""
    out = their_logits(model, tokens)
    return out[:, out.shape[1] - tokens.shape[1] :]


TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "phi3": ["qkv_proj", "o_proj"]}
OURS = {"llama": "q v down", "gpt2": "q v o up", "phi3": "q k o gate"}


def moved(model, size=0.2):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = ("lora_", "vera_lambda", "ia3_l", "prompt_encoder", "modules_to_save")
            if any(part in name for part in parts) and "ranknum" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model.eval()


def configs(family):
    wanted = TARGETS[family]
    fan = family == "gpt2"
    first, last = wanted[0], wanted[-1]
    return {
        "lora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=wanted, fan_in_fan_out=fan),
        "rslora": peft.LoraConfig(r=4, lora_alpha=5, target_modules=wanted, use_rslora=True, fan_in_fan_out=fan),
        "dora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=wanted, use_dora=True, fan_in_fan_out=fan),
        "patterns": peft.LoraConfig(
            r=3, lora_alpha=5, target_modules=wanted, rank_pattern={first: 5, rf"(h|layers)\.1\..*{last}": 2},
            alpha_pattern={last: 7}, fan_in_fan_out=fan,
        ),
        "regex": peft.LoraConfig(r=3, target_modules=rf".*\.1\..*({first}|{last})", fan_in_fan_out=fan),
        "whole": peft.LoraConfig(r=3, target_modules=wanted, modules_to_save=["lm_head"], fan_in_fan_out=fan),
        "embedding": peft.LoraConfig(
            r=3, target_modules=[*wanted, "wte" if fan else "embed_tokens"], fan_in_fan_out=fan
        ),
        "adalora": peft.AdaLoraConfig(
            init_r=4, target_r=2, lora_alpha=5, target_modules=wanted, total_step=10, fan_in_fan_out=fan
        ),
        "vera": peft.VeraConfig(r=6, target_modules=wanted, fan_in_fan_out=fan),
        "vera, no projection": peft.VeraConfig(r=6, target_modules=wanted, save_projection=False, fan_in_fan_out=fan),
        "ia3": peft.IA3Config(target_modules=wanted, feedforward_modules=[last], fan_in_fan_out=fan),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        "p_tuning": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"),
        "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", kind) for kind in configs("llama")]
    + [("gpt2", kind) for kind in ("lora", "dora", "patterns", "embedding", "adalora", "vera", "ia3", "prefix")],
)
def test_theirs_is_ours(bases, tmp_path, family, kind):
    model = moved(peft.get_peft_model(theirs(bases[family]), configs(family)[kind]))
    tokens = text()
    expected = their_prompted(model, tokens)
    model.save_pretrained(tmp_path)
    lm = load(bases[family])
    base = logits(lm, tokens)
    load_adapter(lm, tmp_path)
    near(logits(lm, tokens), expected, 2e-5)
    apart(expected, base)
    if kind in ("lora", "dora", "whole", "prefix", "adalora", "ia3"):  # and back again
        save_adapter(lm, tmp_path / "again", form="peft")
        back = peft.PeftModel.from_pretrained(theirs(bases[family]), tmp_path / "again").eval()
        near(their_prompted(back, tokens), expected, 2e-5)


OUR_METHODS = {
    "lora": LoRA(rank=3, alpha=5.0),
    "rslora": LoRA(rank=4, rslora=True),
    "patterns": LoRA(rank=3, ranks={"layers.0.*": 5}, alphas={"*.o": 3.0, "down": 7.0}),
    "dora": DoRA(rank=3),
    "lora_fa": LoRAFA(rank=3),
    "lora_plus": LoRAPlus(rank=3),
    "adalora": AdaLoRA(rank=3, target=2),
    "vera": VeRA(rank=5),
    "ia3": IA3(),
    "prompt": PromptTuning(3),
    "p_tuning": PTuning(3),
    "prefix": PrefixTuning(3),
    "projected": PrefixTuning(3, hidden=5),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", kind) for kind in OUR_METHODS]
    + [("gpt2", kind) for kind in ("lora", "patterns", "dora", "adalora", "ia3", "prefix")]
    + [("phi3", kind) for kind in ("lora", "rslora", "dora", "adalora", "ia3", "prompt")],
)
def test_ours_is_theirs(bases, tmp_path, family, kind):
    """q, k and v of GPT-2 and Phi-3 lie in one matrix there, and only some of them are adapted."""
    lm, tokens = load(bases[family]), text()
    method = OUR_METHODS[kind]
    free = kind in ("prompt", "p_tuning", "prefix", "projected")
    match = None if free else "k v down" if kind == "ia3" else OURS[family]
    if kind == "ia3" and family == "gpt2":
        match = "k v"
    attach(lm, method, match, also="norm" if kind == "rslora" else ())
    shake(lm)
    save_adapter(lm, tmp_path / "a", form="peft")
    model = peft.PeftModel.from_pretrained(theirs(bases[family]), tmp_path / "a").eval()
    near(their_prompted(model, tokens), logits(lm, tokens), 2e-5)
    again = load(bases[family])
    load_adapter(again, tmp_path / "a")
    near(logits(again, tokens), logits(lm, tokens), 2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", kind) for kind in ("embedding", "rs embedding", "dora embedding", "alpha 0", "all-linear", "lm_head")]
    + [("llama", "parts of names")]
    + [("gpt2", kind) for kind in ("embedding", "dora embedding", "tied head")]
    + [("gpt2", f"bias {which}") for which in ("all", "lora_only", "vera_only")],
)
def test_there_and_back(bases, tmp_path, family, kind):
    """Folders that PEFT wrote, read, merged, unmerged, disabled, written again, and read by PEFT."""
    wanted, fan = TARGETS[family], family == "gpt2"
    place, common = ("wte" if fan else "embed_tokens"), {"r": 3, "fan_in_fan_out": fan}
    config = {
        "embedding": peft.LoraConfig(target_modules=[*wanted, place], **common),
        "rs embedding": peft.LoraConfig(
            target_modules=[*wanted, place],
            use_rslora=True,
            rank_pattern={place: 2},
            alpha_pattern={place: 5},
            **common,
        ),
        "dora embedding": peft.LoraConfig(target_modules=[*wanted, place], use_dora=True, **common),
        "alpha 0": peft.LoraConfig(target_modules=wanted, lora_alpha=0, **common),
        "all-linear": peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **common),
        "lm_head": peft.LoraConfig(target_modules=[*wanted, "lm_head"], **common),
        "parts of names": peft.LoraConfig(target_modules=["attn.q_proj", "v_proj", "1.mlp.up_proj"], **common),
        "bias all": peft.LoraConfig(target_modules=wanted, bias="all", **common),
        "bias lora_only": peft.LoraConfig(target_modules=wanted, bias="lora_only", **common),
        "bias vera_only": peft.VeraConfig(target_modules=wanted, bias="vera_only", **common),
        "tied head": peft.LoraConfig(target_modules=["c_attn", "lm_head"], r=3),
    }[kind]
    model = moved(peft.get_peft_model(theirs(bases[family]), config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.endswith(".bias"):
                parameter.add_(0.1)
    tokens = text()
    expected = their_logits(model, tokens)
    model.save_pretrained(tmp_path / "theirs")
    lm = load(bases[family])
    before = logits(lm, tokens)
    load_adapter(lm, tmp_path / "theirs")
    near(logits(lm, tokens), expected, 2e-5)
    merge(lm, keep=True)
    near(logits(lm, tokens), expected, 2e-5)
    unmerge(lm)
    near(logits(lm, tokens), expected, 2e-5)
    with disabled(lm):
        assert torch.equal(logits(lm, tokens), before)
    save_adapter(lm, tmp_path / "ours", form="peft")
    again = peft.PeftModel.from_pretrained(theirs(bases[family]), tmp_path / "ours").eval()
    near(their_logits(again, tokens), expected, 2e-5)


@pytest.mark.filterwarnings("ignore")
def test_biases_that_peft_has_no_name_for(bases, tmp_path):
    """Of adapted modules it holds all biases or none; some, or a weight besides, go into our own form."""
    lm, tokens = load(bases["gpt2"]), text()
    attach(lm, LoRA(rank=3), "q v", also="layers.0.mixer.o")
    attach(lm, LoRA(rank=3), "o", name="both", also="layers.0.mixer.o")
    shake(lm)
    save_adapter(lm, tmp_path / "apart", form="peft")  # not adapted: a module of its own
    with pytest.raises(DougongError, match="was trained besides"):
        save_adapter(lm, tmp_path / "b", "both", form="peft")
    save_adapter(lm, tmp_path / "b", "both")
    again = load(bases["gpt2"])
    load_adapter(again, tmp_path / "b")
    detach(lm, "default")
    near(logits(again, tokens), logits(lm, tokens), 2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "changes"), [("qwen3", {"head_dim": 8}), ("olmo2", {})])
def test_a_prefix_before_normalised_keys(tmp_path, family, changes):
    """PEFT keeps keys as they are after norm and turn. What a norm gives it takes back; what it cannot give it does
    not take."""
    lm, tokens = build(family, base="llama", **changes), text()
    save(lm, tmp_path / "base")
    attach(lm, PrefixTuning(3))
    shake(lm)
    save_adapter(lm, tmp_path / "a", form="peft")
    model = peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "a").eval()
    near(their_prompted(model, tokens), logits(lm, tokens), 2e-5)
    again = load(tmp_path / "base")
    load_adapter(again, tmp_path / "a")
    near(logits(again, tokens), logits(lm, tokens), 2e-5)
    foreign = moved(peft.get_peft_model(theirs(tmp_path / "base"), configs("llama")["prefix"]))
    with torch.no_grad():
        for parameter in foreign.parameters():  # longer than a norm makes a key: shorter ones it might give
            parameter.mul_(10 if parameter.requires_grad else 1)
    foreign.save_pretrained(tmp_path / "free")
    with pytest.raises(DougongError, match="layer 0 normalises or clips its keys"):
        load_adapter(load(tmp_path / "base"), tmp_path / "free")


@pytest.mark.filterwarnings("ignore")
def test_a_state_space_model(bases, tmp_path):
    lm, tokens = load(bases["mamba"]), text()
    attach(lm, LoRA(rank=3), "up b")
    shake(lm)
    save_adapter(lm, tmp_path / "a", form="peft")
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(bases["mamba"]).eval(), tmp_path / "a"
    ).eval()
    near(their_logits(model, tokens), logits(lm, tokens), 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_pruned_adalora_keeps_its_scale(bases, tmp_path):
    """Files of a run whose budget fell hold fewer rows than init_r."""
    config = peft.AdaLoraConfig(init_r=4, target_r=1, lora_alpha=5, target_modules=["q_proj", "o_proj"], total_step=6)
    model = peft.get_peft_model(theirs(bases["llama"]), config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(6):
        tokens = text(seed=step)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    lm = load(bases["llama"])
    load_adapter(lm, tmp_path)
    ranks = [len(plug.a) for plug in attached(lm)["default"].plugs.values()]
    assert min(ranks) < 4
    near(logits(lm, text()), their_logits(model, text()), 2e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_understood_is_refused_by_name(bases, tmp_path):
    lm = load(bases["llama"])
    attach(lm, LoRA(rank=3), "q v")
    save_adapter(lm, tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    good = json.loads(path.read_text())

    def refused(match, **changes):
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(DougongError, match=match):
            load_adapter(lm, tmp_path / "a", "b")
        assert list(attached(lm)) == ["default"]

    refused("layer_replication is", layer_replication=[[0, 2]])
    refused("use_qalora is True", use_qalora=True)
    refused("brand_new is 3", brand_new=3)
    refused("init_lora_weights is 'pissa'", init_lora_weights="pissa")
    refused("peft_type 'OFT' is not supported", peft_type="OFT")
    refused(
        "target_modules asks for .*o_proj, of which it holds nothing", target_modules=["q_proj", "v_proj", "o_proj"]
    )
    refused("holds .*v_proj, which target_modules does not ask for", target_modules=["q_proj"])
    refused("the model calls for", r=4)
    for key, value in (
        ("r", 0), ("r", "8"), ("r", None), ("r", True), ("lora_alpha", "x"), ("lora_alpha", math.nan),
        ("lora_dropout", "x"), ("rank_pattern", ["q_proj"]), ("rank_pattern", {"q_proj(": 3}),
        ("rank_pattern", {"q_proj": "3"}), ("alpha_pattern", 7), ("alpha_pattern", {"q_proj": None}),
        ("target_modules", 7), ("target_modules", "("), ("exclude_modules", 7), ("modules_to_save", "lm_head"),
        ("layers_to_transform", "x"),
    ):  # fmt: skip
        refused(f"{key} is .*; expected", **{key: value})
    path.write_text(json.dumps({**good, "brand_new": None, "qalora_group_size": 32}))
    load_adapter(lm, tmp_path / "a", "b")
    other = load(bases["gpt2"])
    with pytest.raises(DougongError, match="belongs to no module of this gpt2"):
        load_adapter(other, tmp_path / "a")
    attach(lm, Houlsby(), name="h")
    with pytest.raises(DougongError, match="has no form in PEFT's files"):
        save_adapter(lm, tmp_path / "h", "h", form="peft")
