"""Reading preferences: every published form, and errors that name the example."""

from __future__ import annotations

import itertools
import json

import pytest

from dougong.align.preferences import Pair, Steps, Verdict, preference_from, read_preferences, verdicts_of
from dougong.base import DougongError
from tests.align.models import says, user

QUESTION, GOOD, BAD = (user("how?"),), (says("so"),), (says("go away"),)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "how?", "chosen": "so", "rejected": "go away"},
        {"prompt": [user("how?")], "chosen": [says("so")], "rejected": [says("go away")]},
        {"chosen": [user("how?"), says("so")], "rejected": [user("how?"), says("go away")]},
        {"instruction": "how?", "input": "", "output": "so", "chosen": "so", "rejected": "go away"},
        {"conversations": [{"from": "human", "value": "how?"}], "chosen": {"from": "gpt", "value": "so"},
         "rejected": {"from": "gpt", "value": "go away"}},
        {"chosen_messages": [user("how?"), says("so")], "rejected_messages": [user("how?"), says("go away")]},
        {"chosen": "\n\nHuman: how?\n\nAssistant: so", "rejected": "\n\nHuman: how?\n\nAssistant: go away"},
    ],
)  # fmt: skip
def test_pairs_in_every_form(row):
    found = preference_from(row, "f:1")
    assert (found.prompt, found.chosen, found.rejected) == (QUESTION, GOOD, BAD)
    assert found.margin == 0 and found.source == "f:1" and not found.equal


def test_margins_verdicts_and_steps():
    sides = {"prompt": "how?", "chosen": "so", "rejected": "go away"}
    assert preference_from({**sides, "margin": 2}, "f").margin == 2
    assert preference_from({**sides, "score_chosen": 4.5, "score_rejected": 3}, "f").margin == 1.5
    assert preference_from({"prompt": "how?", "completion": "so", "label": True}, "f") == Verdict(
        QUESTION, GOOD, True, source="f"
    )
    assert preference_from({"messages": [user("how?"), says("go away")], "label": False}, "f").good is False
    found = preference_from({"prompt": "how?", "completions": ["a", "b"], "labels": [True, False]}, "f")
    assert found == Steps(QUESTION, ("a", "b"), (True, False), "f")


def test_a_pair_is_two_verdicts_and_an_equal_one_none():
    pair, same = Pair(QUESTION, GOOD, BAD), Pair(QUESTION, GOOD, GOOD)
    assert same.equal
    assert [(each.answer, each.good) for each in verdicts_of([pair, same])] == [(GOOD, True), (BAD, False)]


def test_sides_that_part_early_share_only_what_is_common():
    turns = "\n\nHuman: how?\n\nAssistant: {}\n\nHuman: and?\n\nAssistant: well"
    found = preference_from({"chosen": turns.format("so"), "rejected": turns.format("no")}, "f")
    assert found.prompt == QUESTION
    assert [message["content"] for message in found.chosen] == ["so", "and?", "well"]
    same = preference_from({"chosen": turns.format("so"), "rejected": turns.format("so")}, "f")
    assert same.equal and len(same.prompt) == 3


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ([], "f:3 is list"),
        ({"text": "x"}, "f:3 has the keys text"),
        ({"chosen": "so", "rejected": "no"}, "no turns of Human"),
        ({"prompt": "how?", "chosen": 3, "rejected": "no"}, "f:3, chosen is int"),
        ({"prompt": "how?", "chosen": [user("a")], "rejected": "no"}, "no assistant message"),
        ({"prompt": "how?", "chosen": "so", "rejected": "no", "margin": "much"}, "margin is 'much'"),
        ({"messages": [user("how?"), says("so"), user("x")], "label": True}, "does not end"),
        ({"prompt": "how?", "completions": ["a"], "labels": []}, "1 steps and 0 labels"),
    ],
)
def test_what_is_wrong_is_named(row, named):
    with pytest.raises(DougongError, match=named):
        preference_from(row, "f:3")


def test_files(tmp_path, data):
    with pytest.raises(DougongError, match="is not a file"):
        list(read_preferences(tmp_path / "none.jsonl"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    assert len(list(read_preferences([tmp_path / "a.jsonl"]))) == 1
    real = list(read_preferences(data / "preference/hh_rlhf/test.jsonl.gz"))
    assert len(real) > 2000 and all(each.prompt and each.chosen and each.rejected for each in real)
    place = data / "instruct"
    for name, kind in (
        ("llamafactory_demo/dpo_en_demo.json", Pair),
        ("llamafactory_demo/dpo_zh_demo.json", Pair),
        ("llamafactory_demo/kto_en_demo.json", Verdict),
        ("llamafactory_demo/v1_dpo_demo.jsonl", Pair),
        ("instruction_data_raschka/instruction-data-with-preference.json", Pair),
    ):
        found = list(itertools.islice(read_preferences(place / name), 40))
        assert found and all(isinstance(each, kind) for each in found), name
