"""Every key of a family's config counts as in transformers, or is refused by name."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("transformers", reason="transformers is the reference that is compared with")

from tests.hub.walk import WALKED, changes, draw, outcome

SAMPLE = 10


@pytest.mark.parametrize("family", WALKED)
def test_one_key_at_a_time(family: str) -> None:
    config = draw(family, 43)
    assert outcome(family, config)[0] == "same"
    told = [
        (key, value, outcome(family, {**config, key: value}))
        for key, value in random.Random(family).sample([*changes(family, config)], SAMPLE)
    ]
    assert [each for each in told if each[2][0] == "different"] == []
    assert any(each[2][0] == "same" for each in told)  # most keys may change
