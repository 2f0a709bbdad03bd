"""A Sampling refuses what it cannot do, naming field, value and remedy."""

from __future__ import annotations

from typing import Any

import pytest

from dougong.base import DougongError
from dougong.engine import Sampling

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
