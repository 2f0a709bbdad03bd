"""Quantised models where people meet them: in the engine, and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dougong
from dougong.cli import main
from dougong.engine import Engine, Sampling
from dougong.hub import LanguageModel
from dougong.model import Model, decoder_spec, initialise


# int4 rounds every product to bfloat16, and so the logits.
@pytest.mark.parametrize(("method", "tolerance"), [("int8", 0.02), ("int4", 0.2)])
def test_a_trained_model_tells_the_same_story_alone_and_in_a_crowd(data: Path, method: str, tolerance: float):
    lm = dougong.load(data / "weights" / "stories260K" / "stories260K.bin", quantize=method)
    engine = Engine(lm, memory="64MiB")
    prompts = ["", "Once upon a time, there was a", "Lily", "The big red ball was too high. She", "Tom and"] * 3
    sampling = Sampling(max_tokens=24, temperature=0.0)
    crowd = engine.generate(prompts, sampling)
    for prompt, answer in zip(prompts[:5], crowd, strict=False):
        assert Engine(lm, memory="64MiB").generate([prompt], sampling)[0].tokens == answer.tokens
    assert len({tuple(answer.tokens) for answer in crowd}) == 5
    ids = torch.tensor([crowd[1].prompt + crowd[1].tokens])
    with torch.no_grad():
        scores = lm.model(ids).logits[0, len(crowd[1].prompt) - 1 : -1].log_softmax(-1)
    chosen = scores.gather(-1, torch.tensor(crowd[1].tokens)[:, None])[:, 0]
    assert torch.allclose(chosen, torch.tensor(crowd[1].logprobs), atol=tolerance)


def test_generate_runs_quantised(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from dougong.tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer()
    spec = decoder_spec(tokenizer.vocab_size, width=32, depth=2, heads=4, context=64)
    folder = tmp_path / "model"
    dougong.save(LanguageModel(initialise(Model(spec)), tokenizer), folder)
    asked = ["generate", str(folder), "hello", "--max-tokens", "4", "--temperature", "0", "--quantize"]
    assert main([*asked, "int8"]) == 0
    assert capsys.readouterr().out.startswith("hello")
    assert main([*asked, "int3"]) == 2
    assert "int8" in capsys.readouterr().err
