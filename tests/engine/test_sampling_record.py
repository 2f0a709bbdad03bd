"""A Sampling refuses what it cannot do, naming field, value and remedy."""

from __future__ import annotations

from typing import Any

import pytest

from dougong.base import DougongError
from dougong.engine import Sampling
from dougong.engine.grammar import Grammar
from dougong.engine.sampling import Contrastive

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("max_tokens", 0, "from 1"),
        ("max_tokens", 2.5, "whole number"),
        ("max_tokens", True, "whole number"),
        ("temperature", -0.1, "greedy"),
        ("temperature", float("nan"), "greedy"),
        ("temperature", float("inf"), "greedy"),
        ("temperature", "hot", "greedy"),
        ("top_k", 0, "None for all"),
        ("top_p", 0.0, "above 0"),
        ("top_p", 1.5, "above 0"),
        ("min_p", -0.5, "from 0"),
        ("min_p", 2, "from 0"),
        ("seed", -1, "fresh"),
        ("seed", 1 << 63, "fresh"),
        ("stop", ("a", ""), "at least one character"),
        ("stop", 3, "strings"),
        ("stop_ids", (-1,), "token ids"),
        ("stop_ids", ("a",), "token ids"),
        ("typical_p", 0.0, "above 0"),
        ("repetition_penalty", 0.0, "above 0"),
        ("presence_penalty", float("nan"), "finite"),
        ("frequency_penalty", "much", "finite"),
        ("length_penalty", float("inf"), "finite"),
        ("logit_bias", {1: float("inf")}, "finite number"),
        ("logit_bias", {"a": 1.0}, "finite number"),
        ("logit_bias", 3, "mapping"),
        ("banned", ((),), "at least one id"),
        ("banned", (-1,), "token ids"),
        ("banned", (1, (2, -3)), "token ids"),
        ("banned", 5, "token ids"),
        ("forced", (2.5,), "token ids"),
        ("min_tokens", -1, "from 0"),
        ("min_tokens", 300, "at most max_tokens"),
        ("top_logprobs", -1, "from 0"),
        ("n", 0, "from 1"),
        ("best_of", 0, "from n = 1"),
        ("beams", 0, "from 1"),
        ("early_stopping", "always", "'never'"),
        ("contrastive", 0.6, "Contrastive"),
        ("speculation", "magic", "prompt_lookup"),
        ("draft_tokens", 0, "from 1"),
        ("processor", 3, "LogitsProcessor"),
        ("grammar", "json", "Grammar.json_schema"),
    ],
)
def test_wrong_value_is_named(field: str, value: Any, remedy: str) -> None:
    with pytest.raises(DougongError, match=remedy) as caught:
        Sampling(**{field: value})
    assert str(caught.value).startswith(f"{field} is {value!r}; expected")


def test_one_stop_and_lists_become_tuples() -> None:
    assert Sampling(stop="END").stop == ("END",)  # pyright: ignore[reportArgumentType]
    assert Sampling(stop=["a", "b"], stop_ids=[1, 2]) == Sampling(stop=("a", "b"), stop_ids=(1, 2))  # pyright: ignore
    assert hash(Sampling()) == hash(Sampling())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 3, "beams": 2}, "n is 3; expected at most beams = 2"),
        ({"n": 3, "best_of": 2}, "best_of is 2; expected a whole number from n = 3"),
        ({"best_of": 2, "logprobs": False}, "logprobs is False; expected True with best_of"),
        ({"beams": 2, "speculation": "mtp"}, "beams and speculation are different ways"),
        ({"beams": 2, "contrastive": Contrastive()}, "beams and contrastive are different ways"),
        ({"beams": 2, "top_k": 5}, "beams does not draw"),
        ({"contrastive": Contrastive(), "top_p": 0.5}, "contrastive does not draw"),
        ({"contrastive": Contrastive(), "n": 2}, "all answers would be equal"),
        ({"beams": 4, "best_of": 3}, "best_of is 3; expected None with beams"),
        ({"grammar": Grammar.json(), "ignore_eos": True}, "a grammar says where the text ends"),
        ({"grammar": Grammar.json(), "min_tokens": 3}, "a grammar says where the text ends"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DougongError, match=message):
        Sampling(**fields)


@pytest.mark.parametrize(("alpha", "k"), [(-0.1, 4), (1.5, 4), (0.5, 0), ("a", 4)])
def test_contrastive_search_has_bounds(alpha: Any, k: Any) -> None:
    with pytest.raises(DougongError, match="contrastive"):
        Contrastive(alpha, k)


def test_mappings_and_lists_become_tuples() -> None:
    made = Sampling(logit_bias={3: 1}, banned=[1, [2, 3]], forced=[4])  # pyright: ignore
    assert made.logit_bias == ((3, 1.0),) and made.banned == (1, (2, 3)) and made.forced == (4,)
    assert hash(made) == hash(Sampling(logit_bias=((3, 1.0),), banned=(1, (2, 3)), forced=(4,)))
    assert hash(Sampling(grammar=Grammar.json_schema({"type": "object"})))
