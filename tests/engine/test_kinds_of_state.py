"""The engine's greedy text is the whole-text forward pass's, whatever state a family carries, in a crowd of lengths."""

from __future__ import annotations

import pytest
import torch

from dougong.engine import Engine, Sampling
from dougong.hub import LanguageModel
from tests.hub.test_family_contract import build

pytest.importorskip("transformers", reason="the configurations are those of transformers")

PROMPTS = [[5, 6, 7, 8, 9], [3, 4], [7] * 11]


@pytest.mark.parametrize(
    "family",
    ["mamba", "mamba2", "rwkv", "jamba", "qwen3_next", "kimi_linear", "minimax", "deepseek_v32", "gpt_oss", "bloom"],
)
@torch.no_grad()
def test_greedy_text_is_that_of_the_whole_forward_pass(family: str) -> None:
    model = build(family)
    lm = LanguageModel(model, None, family, {}, {"eos_token_id": None})
    done = Engine(lm).generate(PROMPTS, Sampling(max_tokens=5, temperature=0.0, ignore_eos=True))
    for prompt, answer in zip(PROMPTS, done, strict=True):
        text = list(prompt)
        for _ in range(5):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
        assert list(answer.tokens) == text[len(prompt) :]
