"""Keys that say something only together, and fields that layers have by their kind or one by one: read and written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.hub.families.fields import either, flag, integer, limits, number, pair, shares, together
from dougong.hub.families.layers import everywhere, nth, numbered, outputs
from dougong.hub.families.reader import Reader
from dougong.hub.families.table import Table, root_of_width
from dougong.model import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.feedforward import GatedMLP
from dougong.parts.linear_attention import LinearAttention
from dougong.parts.ssd import Mamba2

SIZES = (
    integer("vocab_size", "model.vocab", 50),
    integer("hidden_size", "model.width", 24),
    integer("n_positions", "model.context", 64),
    integer("n_layer", "layers.depth", 3),
    integer("heads", "mixer.heads mixer.kv_heads linear.heads", 3),
    integer("size", "mixer.head_size linear.key_size linear.value_size", 8),
    integer("inner", "ffn.hidden", 9),
)
TABLE = Table(
    "toy",
    "ToyForCausalLM",
    {"mixer": Attention, "linear": LinearAttention, "ffn": GatedMLP},
    (
        *SIZES,
        numbered("mixers", {"full": "mixer", "linear": "linear"}, lambda index: "mixer" if index else "linear"),
        together(
            {"new": False, "parallel": None},
            {
                (False, (None, False)): {"layer.wiring": "pre"},
                (False, True): {"layer.wiring": "parallel"},
                (True, (True, None)): {"layer.wiring": "parallel_norms", "mixer.scale": lambda given: 0.5},
            },
        ),
        either("scaled", "embedding.factor", False, root_of_width, 1.0),
        pair("a", "b", "layer:mixer.mixer_scale", (1.0, 1.0)),
        pair("c", "d", "layer:linear.mixer_scale", (1.0, 2.0)),
        outputs("mixer_drop", "ffn_drop"),
        *shares(0.1, embedding_drop="embedding.dropout"),
    ),
    each={"linear.scale": lambda given, index: float(index + 1), "layer.first_norm": lambda given, index: index > 0},
)


def build(config: dict[str, Any]) -> ModelSpec:
    return TABLE.from_config(config)


def again(config: dict[str, Any]) -> dict[str, Any]:
    written = TABLE.to_config(build(config))
    return {key: value for key, value in written.items() if key not in ("architectures", "model_type")}


drops = st.sampled_from([0.0, 0.2, 0.4])
configs = st.builds(
    dict,
    st.sampled_from([{}, {"new": True}, {"parallel": True}, {"parallel": False}, {"new": True, "parallel": True}]),
    n_layer=st.integers(2, 5),
    scaled=st.booleans(),
    a=st.floats(0.5, 2),
    d=st.floats(0.5, 2),
    mixer_drop=drops,
    ffn_drop=drops,
)


@given(configs, st.data())
def test_what_is_written_is_read_back(config: dict[str, Any], data: st.DataObject) -> None:
    numbers = [*range(1, config["n_layer"] + 1)]
    full = data.draw(st.lists(st.sampled_from(numbers), unique=True, min_size=1, max_size=len(numbers) - 1))
    config = {**config, "full": full, "linear": [each for each in numbers if each not in full]}
    spec = build(config)
    written = again(config)
    assert build(written) == spec
    assert (sorted(written["full"]), written["linear"]) == (sorted(full), config["linear"])
    for index, layer in enumerate(spec.layers):
        assert isinstance(layer.mixer, Attention) == (index + 1 in full)
        assert layer.mixer_scale == ((config["a"], 1.0) if index + 1 in full else (1.0, config["d"]))
        assert layer.first_norm == (index > 0)
        if isinstance(layer.mixer, LinearAttention):
            assert layer.mixer.scale == index + 1
    assert spec.embedding.factor == (24**0.5 if config["scaled"] else 1.0)
    first = spec.layers[0]
    if first.wiring == "pre":
        second = first.dropout if first.ffn_dropout is None else first.ffn_dropout
        assert (first.dropout, second) == (config["mixer_drop"], config["ffn_drop"])
    else:  # side by side, one share of the sum
        assert (first.dropout, first.ffn_dropout) == (config["ffn_drop"], None)


def test_values_that_mean_the_same_are_written_in_one_way() -> None:
    assert again({"parallel": False})["parallel"] is None
    assert again({"new": True})["parallel"] is True
    assert build({"new": True}).layers[1].mixer == replace(build({}).layers[1].mixer, scale=0.5)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"new": True, "parallel": False}, r"new, parallel is \[True, False\]; expected true, true$"),
        ({"new": 1}, "new is 1; expected false or true"),
        ({"parallel": "on"}, "parallel is 'on'; expected null or false or true"),
        ({"scaled": "yes"}, "scaled is 'yes'; expected true or false"),
        ({"full": [1], "linear": [2]}, "full and linear is .* every number from 1 to 3 once"),
        ({"full": [1, 1], "linear": [2, 3]}, "every number from 1 to 3 once"),
        ({"full": ["x"], "linear": [2, 3]}, "every number from 1 to 3 once"),
        ({"a": "one"}, "a is 'one'; expected a number"),
    ],
)
def test_what_is_wrong_is_told_by_name(config: dict[str, Any], told: str) -> None:
    with pytest.raises(DougongError, match=told):
        build(config)


def test_another_spec_is_refused_by_its_first_difference() -> None:
    spec = build({})
    for change, told in (
        ({"mixer_scale": (3.0, 3.0)}, "mixer_scale"),
        ({"wiring": "post"}, "wiring"),
        ({"first_norm": False}, "first_norm"),
    ):
        odd = replace(spec, layers=(*spec.layers[:2], replace(spec.layers[2], **change)))
        with pytest.raises(DougongError, match=rf"toy cannot express layers\[2\]\.{told}"):
            TABLE.to_config(odd)


STEPS = Table(
    "steps",
    "StepsForCausalLM",
    {"mixer": Mamba2},
    (
        *SIZES[:4],
        integer("heads", "mixer.heads", 3),
        integer("size", "mixer.head_size", 8),
        integer("state", "mixer.state", 4),
        limits("limit", "mixer.steps"),
        number("eps", "mixer.eps", 1e-5),
        flag("tied", "head.tied", False),
    ),
)


@pytest.mark.parametrize("spelled", [None, "inf", "Infinity", float("inf"), {"__float__": "Infinity"}])
def test_a_limit_may_be_infinite_in_every_spelling(spelled: Any) -> None:
    spec = STEPS.from_config({"limit": [0.5, spelled]})
    assert spec.layers[0].mixer.steps == (0.5, None)  # pyright: ignore[reportAttributeAccessIssue]
    assert STEPS.to_config(spec)["limit"] == [0.5, {"__float__": "Infinity"}]


@pytest.mark.parametrize("limit", [[1.0, 0.5], [-0.1, 1.0], [0.1], 3, ["low", 1.0], [True, 2.0], [0.0, "high"]])
def test_limits_are_checked(limit: Any) -> None:
    with pytest.raises(DougongError, match=r"limit is .* expected the least and the largest number"):
        STEPS.from_config({"limit": limit})


def test_every_so_many_layers_by_the_first_of_several_names() -> None:
    full, last = nth("every _every", 3, 0), nth("every _every", 3, -1)
    assert [full(Reader("toy", {}), index) for index in range(6)] == [True, False, False] * 2
    assert [last(Reader("toy", {}), index) for index in range(6)] == [False, False, True] * 2
    assert [last(Reader("toy", {"_every": 2}), index) for index in range(4)] == [False, True] * 2
    assert full(Reader("toy", {"every": 1, "_every": 2}), 3)
    with pytest.raises(DougongError, match="_every is 0; expected at least 1"):
        full(Reader("toy", {"_every": 0}), 0)
    assert everywhere("ffn")({"layers": {"depth": 2}}) == ["ffn", "ffn"]
