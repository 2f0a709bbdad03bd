"""A published model gives its published text: llama2.c's stories260K, greedy from the beginning of a text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from dougong.engine import Engine, Sampling

DATA = os.environ.get("DOUGONG_DATA")
FOLDER = Path(DATA or "") / "weights" / "stories260K"

pytestmark = [
    pytest.mark.skipif(not DATA or not FOLDER.is_dir(), reason="DOUGONG_DATA does not name the data folder"),
    pytest.mark.usefixtures("unchecked"),
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    import dougong

    return Engine(dougong.load(FOLDER / "stories260K.bin"))


def test_greedy_text_is_the_published_one(engine: Engine) -> None:
    reference = json.loads((FOLDER / "reference_greedy_ids.json").read_text(encoding="utf-8"))
    published = json.loads((FOLDER / "expected_outputs.json").read_text(encoding="utf-8"))[0]["expected"]
    ids = reference["greedy_ids_from_BOS"]
    answer = engine.generate([""], Sampling(max_tokens=len(ids) - 1, temperature=0.0))[0]
    assert answer.prompt == ids[:1]
    assert answer.tokens == ids[1:]
    assert answer.text == reference["text"] == published


def test_a_text_is_continued_with_its_space(engine: Engine) -> None:
    answer = engine.generate(["Once upon a"], Sampling(max_tokens=4, temperature=0.0))[0]
    assert answer.prompt[0] == 1
    assert answer.text.startswith(" time,")


def test_a_trained_model_in_a_crowd(engine: Engine) -> None:
    prompts = ["", "Once upon a time, there was a", "Lily", "The big red ball was too high. She", "Tom and"]
    sampling = Sampling(max_tokens=25, temperature=0.0)
    crowd = engine.generate(prompts, sampling)
    for prompt, answer in zip(prompts, crowd, strict=True):
        alone = engine.generate([prompt], sampling)[0]
        assert answer.tokens == alone.tokens
        assert answer.text == alone.text


def test_engine_and_training_agree_on_logprobs(engine: Engine) -> None:
    answer = engine.generate(["Lily and"], Sampling(max_tokens=50, seed=1, top_p=0.9))[0]
    engine.lm.model.train()
    logits = engine.lm.model(torch.tensor([answer.prompt + answer.tokens])).logits  # as the trainer calls it
    chosen = logits.log_softmax(-1)[0, len(answer.prompt) - 1 : -1].gather(-1, torch.tensor(answer.tokens)[:, None])
    assert answer.logprobs == pytest.approx(chosen[:, 0].tolist(), abs=1e-4)
