"""Contrastive search equals its definition, computed anew from whole texts at every step."""

from __future__ import annotations

import pytest
import torch

from dougong.base import DougongError
from dougong.engine import Engine, Sampling
from dougong.engine.choose import Ahead, adjusted
from dougong.engine.contrastive import ContrastiveSearch
from dougong.engine.grammar import Grammar
from dougong.engine.request import Event, Request
from dougong.engine.runner import Runner
from dougong.engine.sampling import Contrastive
from dougong.model import Model
from tests.contract.models import SPECS

from .kinds import MEMORY, all_free, moved
from .standin import small

pytestmark = pytest.mark.usefixtures("unchecked")

KINDS = ["llama", "mistral", "qwen3", *[name for name in ("mamba2", "deltanet", "mla") if name in SPECS]]


@torch.no_grad()
def slow(model: Model, prompt: list[int], sampling: Sampling) -> list[int]:
    """argmax over the k most probable v of (1 - alpha) p(v) - alpha max_j cos(h_v, h_j)."""
    asked = sampling.contrastive
    assert asked is not None
    output: list[int] = []
    for _ in range(sampling.max_tokens):
        text = prompt + output
        logits = model(torch.tensor([text])).logits[:, -1]
        row = Ahead(sampling, torch.Generator(), prompt, output, frozenset())
        weights, ids = adjusted(logits, [row]).softmax(-1)[0].topk(asked.k)
        scores = []
        for weight, token in zip(weights.tolist(), ids.tolist(), strict=True):
            hidden = model(torch.tensor([[*text, token]])).hidden[0]
            similar = torch.cosine_similarity(hidden[-1:], hidden[:-1], dim=-1).max()
            scores.append((1 - asked.alpha) * weight - asked.alpha * float(similar))
        output.append(ids[max(range(asked.k), key=scores.__getitem__)].item())
    return output


def search(model: Model, prompt: list[int], sampling: Sampling, pause: int = 0) -> list[Event]:
    """The driver alone on a runner; `pause`: every how many steps it gives its state back."""
    runner = Runner(model, MEMORY, 4)
    asked = Request(0, prompt, sampling, None, model.spec.context, frozenset())
    driver = ContrastiveSearch(runner, asked)
    events: list[Event] = []
    step = 0
    while not driver.finished:
        step += 1
        if pause and step % pause == 0:
            driver.pause()
        with torch.inference_mode():
            events += driver.take(runner.step(driver.work()))
    assert all_free(runner)
    return events


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("asked", [Contrastive(0.6, 4), Contrastive(0.9, 3), Contrastive(0.0, 5), Contrastive(1.0, 2)])
def test_it_is_its_definition(name: str, asked: Contrastive) -> None:
    model = moved(SPECS[name])
    prompt = torch.randint(0, 50, (19,), generator=torch.Generator().manual_seed(1)).tolist()  # longer than one piece
    sampling = Sampling(max_tokens=8, contrastive=asked)
    events = search(model, prompt, sampling)
    assert [event.token for event in events] == slow(model, prompt, sampling)
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize("pause", [2, 3, 5])
def test_a_search_that_gave_its_state_back_goes_on_as_before(pause: int) -> None:
    model = moved(SPECS["llama"])
    prompt = list(range(20))
    sampling = Sampling(max_tokens=10, contrastive=Contrastive(), repetition_penalty=1.3, banned=(7,))
    tokens = [event.token for event in search(model, prompt, sampling, pause)]
    assert tokens == slow(model, prompt, sampling)


def test_in_the_engine_beside_others_and_after_the_same_prompt() -> None:
    """What the prefix cache knows of a text comes without hidden states, and must not change the answer."""
    lm = small(context=64)
    engine = Engine(lm, memory=MEMORY, prefill_tokens=8)
    greedy = Sampling(max_tokens=10, temperature=0.0)
    asked = Sampling(max_tokens=10, contrastive=Contrastive(), top_logprobs=3)
    prompt = "hello there, this is a longer prompt"
    first = engine.generate([prompt, prompt, "a"], [greedy, asked, asked])
    again = engine.generate([prompt], asked)[0]
    assert first[1].tokens == again.tokens == slow(lm.model, again.prompt, asked)
    assert engine.generate([prompt], Sampling(max_tokens=10, contrastive=Contrastive(0.0)))[0].tokens == first[0].tokens
    assert again.logprobs == pytest.approx(engine.score([again.prompt], [again.tokens])[0], abs=2e-4)
    assert all(len(top) == 3 for top in again.tops)
    assert engine.runner.open_sequences == 0


def test_grammars_bans_and_ends() -> None:
    pytest.importorskip("xgrammar")
    lm = small(context=64)
    engine = Engine(lm, memory=MEMORY)
    answer = engine.generate(["x"], Sampling(contrastive=Contrastive(), grammar=Grammar.regex("[a-c]{4}!")))[0]
    assert len(answer.text) == 5 and answer.text.endswith("!") and answer.finish_reason == "stop"
    with pytest.raises(DougongError, match="no token is allowed"):
        engine.generate(["x"], Sampling(contrastive=Contrastive(), banned=tuple(range(lm.spec.vocab))))
