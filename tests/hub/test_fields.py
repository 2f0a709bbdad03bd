"""One table of keys is read and written: it reads back what it writes, and understands old names and absent parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.hub.families.fields import (
    Given,
    Key,
    Keys,
    activation,
    cap,
    change,
    choice,
    flag,
    inside,
    integer,
    likewise,
    number,
    optional,
    search,
    settings,
    share,
    usually,
)
from dougong.hub.families.reader import Reader
from dougong.hub.families.sparse import KINDS
from dougong.hub.families.table import Table, the_norm
from dougong.model import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP


def first_is_dense(config: Reader, given: Given) -> None:
    given["layers"]["ffns"] = ["dense"] + ["experts"] * (given["layers"]["depth"] - 1)


DENSE = Keys(first_is_dense)
TABLE = Table(
    "toy",
    "ToyForCausalLM",
    KINDS,
    (
        integer("vocab_size", "model.vocab"),
        integer("hidden_size", "model.width", also="n_embd"),
        integer("n_positions", "model.context", 64),
        integer("n_layer", "layers.depth"),
        number("eps", "norm.eps", 1e-5),
        integer("n_head", "mixer.heads mixer.kv_heads"),
        integer("head_dim", "mixer.head_size", lambda given: given["model"]["width"] // given["mixer"]["heads"]),
        optional("sliding_window", "mixer.window", 32),
        cap("softcap", "mixer.softcap"),
        share("drop", "mixer.dropout layer.dropout", 0.1),
        choice("order", "layer.wiring", "before", {"before": "pre", "after": "post", "behind": "post"}),
        integer("inner", "dense.hidden experts.hidden", 40),
        activation("act", "dense.activation experts.activation", "gelu"),
        inside(
            "moe",
            integer("experts", "experts.experts", 4),
            integer("chosen", "experts.top_k", 2),
            said={"router": "top"},
            silent="speed",
        ),
        flag("normalise", "experts.router.normalise", True),
        flag("tied", "head.tied", False),
        DENSE,
    ),
    always={
        "mixer.qk_norm": the_norm,
        "mixer.bias": True,
        "embedding.factor": lambda given: given["model"]["width"] / 2,
    },
    said={"kind": "toy"},
    silent="colour",
)
NEEDED = {"vocab_size": 50, "hidden_size": 24, "n_layer": 2, "n_head": 3}


def build(config: dict[str, Any]) -> ModelSpec:
    return TABLE.from_config(config)


configs = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(1, 99),
        "hidden_size": st.integers(6, 99),
        "n_layer": st.integers(2, 4),
        "n_head": st.integers(1, 6),
    },
    optional={
        "n_positions": st.integers(1, 99),
        "eps": st.sampled_from([1e-6, 0.5, 1]),
        "head_dim": st.integers(1, 9),
        "sliding_window": st.none() | st.integers(1, 9),
        "softcap": st.none() | st.floats(0.5, 50),
        "drop": st.sampled_from([0.0, 0.5]),
        "inner": st.integers(1, 9),
        "act": st.sampled_from(["silu", "gelu", "gelu_new", "relu"]),
        "moe": st.fixed_dictionaries({}, optional={"experts": st.integers(2, 6), "chosen": st.integers(1, 2)}),
        "order": st.sampled_from(["before", "after", "behind"]),
        "normalise": st.booleans(),
        "tied": st.booleans(),
    },
)


@given(configs)
def test_what_is_written_is_read_back(config: dict[str, Any]) -> None:
    spec = build(config)
    again = TABLE.to_config(spec)
    assert build({key: value for key, value in again.items() if key not in ("architectures", "model_type")}) == spec
    names = {key.name for key in TABLE.keys if isinstance(key, Key)}
    assert {*names, "moe", "kind", "architectures", "model_type"} == set(again)
    assert again["moe"].keys() == {"experts", "chosen", "router"}


def test_fields_without_a_key_and_those_made_of_others() -> None:
    spec = build({**NEEDED, "eps": 0.5})
    mixer = spec.layers[1].mixer
    assert isinstance(mixer, Attention)
    assert (mixer.bias, mixer.qk_norm, spec.embedding.factor) == (True, spec.norm, 12.0)
    assert [type(layer.ffn) for layer in spec.layers] == [GatedMLP, MoE]


def test_missing_keys_take_what_is_usual_and_null_may_say_none() -> None:
    spec = build(NEEDED)
    mixer = spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    assert (mixer.head_size, mixer.kv_heads, mixer.window, mixer.softcap, mixer.dropout) == (8, 3, 32, None, 0.1)
    none = build({**NEEDED, "sliding_window": None}).layers[0].mixer
    assert isinstance(none, Attention)
    assert none.window is None
    keys = usually(TABLE.keys, {"model.context": 7})
    assert replace(TABLE, keys=keys).from_config(NEEDED).context == 7


def test_a_key_sets_further_fields_too() -> None:
    table = replace(TABLE, keys=likewise(TABLE.keys, {"dense.hidden experts.hidden": "model.context"}))
    spec = table.from_config({**NEEDED, "inner": 9})
    assert isinstance(ffn := spec.layers[0].ffn, GatedMLP)
    assert (spec.context, ffn.hidden) == (9, 9)
    assert table.to_config(spec)["inner"] == 9
    with pytest.raises(AssertionError):
        likewise(TABLE.keys, {"mixer.heads": "model.context"})  # no key sets this alone


def test_an_old_name_counts_where_the_new_one_is_not_there() -> None:
    old = {"n_embd": 30, **{key: value for key, value in NEEDED.items() if key != "hidden_size"}}
    assert build(old).width == 30
    assert build({**old, "hidden_size": None}).width == 30
    assert build({**old, "hidden_size": 24}).width == 24


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("vocab_size", None, "has no vocab_size"),
        ("vocab_size", 0, "vocab_size is 0; expected at least 1"),
        ("n_embd", "wide", "n_embd is 'wide'"),
        ("tied", 1, "tied is 1; expected true or false"),
        ("drop", 1.0, "drop is 1.0"),
        ("softcap", -1.0, "softcap is -1.0; expected a number above 0"),
        ("act", "sine", "act is 'sine'; known"),
        ("n_heads", 3, "did you mean 'n_head'"),
        ("order", "beside", "order is 'beside'; expected 'before' or 'after' or 'behind'"),
        ("kind", "model", "kind is 'model'; expected 'toy'"),
        ("moe", {"experts": 0}, "moe.experts is 0"),
        ("moe", {"router": "hash"}, "moe.router is 'hash'; expected 'top'"),
        ("moe", {"expert": 2}, "moe.expert = 2.*did you mean 'experts'"),
        ("colours", 3, "did you mean 'colour'"),
        ("act", ["gelu"], r"act is \['gelu'\]; known"),
        ("order", {}, "order is {}; expected 'before'"),
        ("moe", 3, "moe is 3; expected a mapping"),
    ],
)
def test_what_is_wrong_is_told_by_name(key: str, value: Any, told: str) -> None:
    config = {name: each for name, each in NEEDED.items() if key != "n_embd" or name != "hidden_size"}
    with pytest.raises(DougongError, match=told):
        build({**config, key: value})


def test_parts_that_no_layer_has_are_left_out_or_made_of_others() -> None:
    spec = build(NEEDED)
    dense = replace(spec, layers=spec.layers[:1])
    assert TABLE.write(dense)["moe"] == {"router": "top"}
    filled = replace(TABLE, absent={"experts": lambda found: MoE(3, 1, found["dense"].hidden)})
    assert filled.write(dense)["moe"]["experts"] == 3
    assert TABLE.write(dense)["inner"] == 40
    sparse = replace(spec, layers=spec.layers[1:])
    assert TABLE.write(sparse)["inner"] == 40


def test_other_parts_and_none_at_all_are_refused() -> None:
    spec = build(NEEDED)
    with pytest.raises(DougongError, match="toy cannot express a model without layers"):
        TABLE.write(replace(spec, layers=()))
    without = replace(spec.layers[0], ffn=None)
    with pytest.raises(DougongError, match="toy cannot express a ffn of NoneType; its layers have Attention"):
        TABLE.write(replace(spec, layers=(without,)))
    with pytest.raises(DougongError, match=r"toy cannot express embedding.factor = 3"):
        TABLE.to_config(replace(spec, embedding=replace(spec.embedding, factor=3)))


def scales(config: Reader, given: Given) -> None:
    """Two keys that together say what scores of each layer are multiplied by, and how many key heads there are."""
    step, halved = config.integer("step", 2), config.flag("halved", False)
    given["mixer"]["kv_heads"] = given["mixer"]["heads"] if halved else 1
    for index in range(given["layers"]["depth"]):
        change(given, index, "mixer.scale", 0.5 if halved and index % step == 0 else 1.0)


SEARCHED = search(scales, lambda parts: settings(halved=(False, True), step=range(1, len(parts.spec.layers) + 1)))


@given(st.booleans(), st.integers(1, 5), st.integers(1, 4))
def test_what_only_reading_tells_is_written_by_a_search(halved: bool, step: int, depth: int) -> None:
    table = replace(TABLE, keys=(*(key for key in TABLE.keys if key != DENSE), SEARCHED))
    config = {**NEEDED, "n_layer": depth, "halved": halved, "step": step}
    spec = table.from_config(config)
    again = table.to_config(spec)
    assert table.from_config({key: again[key] for key in again if key not in ("architectures", "model_type")}) == spec
    assert again["halved"] == halved
    assert again["step"] == (min(step, depth) if halved else 1)  # the first of the ways that mean the same


def test_what_no_way_of_a_search_means_is_told_by_the_check_of_exactness() -> None:
    table = replace(TABLE, keys=(*(key for key in TABLE.keys if key != DENSE), SEARCHED))
    spec = table.from_config(NEEDED)
    first, second = spec.layers
    assert isinstance(second.mixer, Attention)
    odd = replace(spec, layers=(first, replace(second, mixer=replace(second.mixer, scale=0.25))))
    assert "halved" not in table.write(odd)
    with pytest.raises(DougongError, match=r"toy cannot express layers\[1\].mixer.scale = 0.25"):
        table.to_config(odd)
