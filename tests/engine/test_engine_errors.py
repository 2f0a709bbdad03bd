"""Mistakes are told before any work, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dougong.base import DougongError
from dougong.engine import Engine, Sampling
from dougong.tokenizer import byte_tokenizer

from .standin import small

LM = small()
BARE = small(tokenizer=False)

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1, 2, 999]], r"prompts\[0\] has the token id 999, outside the model's vocabulary of 259"),
        ([[1], [-1]], r"prompts\[1\] has the token id -1"),
        (["x" * 65], r"prompts\[0\] has \d+ tokens, but the model's context is 64"),
        ([1, 2, 3], r"prompts\[0\] is 1; prompts are a list of texts or of lists of token ids"),
        ([[1, 2.5]], r"prompts\[0\] is \[1, 2.5\]; expected a text or a list of whole numbers"),
        ([["a"]], r"expected a text or a list of whole numbers"),
        ([None], r"prompts\[0\] is None"),
    ],
)
def test_prompts_that_no_model_takes(prompts: Any, message: str) -> None:
    with pytest.raises(DougongError, match=message):
        Engine(LM).stream(prompts)  # at the call, not at the first token
    with pytest.raises(DougongError, match=message):
        Engine(LM).generate(prompts)


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(DougongError, match=r"prompts\[0\] is text, but this model has no tokenizer"):
        Engine(BARE).generate(["hello"])
    with pytest.raises(DougongError, match="stop strings need a tokenizer"):
        Engine(BARE).generate([[1]], Sampling(stop=("a",)))


def test_nothing_to_begin_with() -> None:
    with pytest.raises(DougongError, match=r"prompts\[0\] is empty, and this model has no beginning-of-text id"):
        Engine(BARE).generate([[]])
    nothing = small()
    nothing.tokenizer = byte_tokenizer(special_tokens=())
    with pytest.raises(DougongError, match="is empty"):
        Engine(nothing).generate([""])
    assert Engine(LM).generate([""], Sampling(max_tokens=1))[0].prompt == [LM.tokenizer.bos_id]


def test_counts_that_do_not_match() -> None:
    with pytest.raises(DougongError, match="2 samplings for 1 prompts"):
        Engine(LM).generate(["a"], [Sampling(), Sampling()])
    with pytest.raises(DougongError, match="1 prompts and 2 completions"):
        Engine(LM).score(["a"], ["b", "c"])
    with pytest.raises(DougongError, match="66 tokens; the model's context is 64"):
        Engine(LM).score([[1] * 60], [[2] * 6])
    with pytest.raises(DougongError, match=r"completions\[0\] has \d+ tokens, but the model's context is 64"):
        Engine(LM).score(["a" * 60], ["b" * 6])
    with pytest.raises(DougongError, match="max_batch is 0"):
        Engine(LM, max_batch=0)


def test_a_model_that_has_diverged() -> None:
    broken = small()
    broken.model.head.weight.data.fill_(torch.nan)
    with pytest.raises(DougongError, match="not finite"):
        Engine(broken).generate(["a"])
