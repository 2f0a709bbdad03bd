"""Every method on every family of models there is: attached, trained for an update, saved, loaded, merged."""

from __future__ import annotations

import json

import pytest
import torch

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.hub.families import FAMILIES
from dougong.model import Model, initialise
from dougong.train.optimizers import Optimizer
from dougong.train.tuned import mergeable
from dougong.tune import METHODS, attach, attached, load_adapter, merge, save_adapter
from dougong.tune.method import Method

from .models import apart, near

pytest.importorskip("transformers", reason="the configurations are those of transformers")
from tests.hub import foreign
from tests.hub.draws import DRAWN

OPTIONS: dict[str, dict] = {
    **{name: {"rank": 2} for name in ("lora", "dora", "lora_fa", "lora_plus", "delta_lora")},
    "adalora": {"rank": 3, "target": 2}, "vera": {"rank": 4}, "houlsby": {"width": 3}, "parallel": {"width": 3},
    "prompt": {"tokens": 3}, "p_tuning": {"tokens": 3}, "prefix": {"tokens": 3}, "frozen": {"layers": 1},
}  # fmt: skip
# What a family may have nothing of, and what is then said.
LACKING = {"bitfit": "no biases", "ia3": "fits no module", "prefix": "fits no module"}
FAST = ("lora", "prefix")  # of the other methods the slow run asks too


def build(family: str) -> LanguageModel:
    """A model of a configuration drawn at random, every parameter moved off its initial value."""
    import transformers

    drawn = foreign.draw_config(family, 1)
    config = json.loads(transformers.AutoConfig.for_model(family, **drawn).to_json_string(use_diff=False))
    model = initialise(Model(FAMILIES[family].from_config(config)), 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return LanguageModel(model, family=family, config=config)


def hidden(lm: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    more = {"source": tokens.flip(1)} if lm.spec.encoder is not None else {}
    out = lm.model(tokens, **more)
    return out.hidden if out.logits is None else out.logits


def update(lm: LanguageModel, tokens: torch.Tensor) -> None:
    """One of the optimizer, with whatever the method does around it."""
    lm.model.train()
    optimizers = Optimizer(rate=1e-2, weight_decay=0.0).build(lm.model, 10)
    loss = hidden(lm, tokens).float().log_softmax(-1)[..., 0].mean()
    loss.backward()
    assert torch.isfinite(loss)
    optimizers.step(1.0, torch.tensor(1.0))
    lm.model.eval()


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in METHODS]
)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name in DRAWN])
def test_a_method_on_a_family(family, method, tmp_path):
    lm = build(family)
    lm.model.eval()
    tokens = torch.randint(2, lm.spec.vocab, (2, 6), generator=torch.Generator().manual_seed(7))
    chosen: Method = METHODS[method](**OPTIONS.get(method, {}))
    with torch.no_grad():
        before = hidden(lm, tokens)
    try:
        attach(lm, chosen)
    except DougongError as error:
        assert method in LACKING and LACKING[method] in str(error), error
        pytest.skip(str(error))
    with torch.no_grad():
        if method not in ("prompt", "p_tuning", "prefix"):  # these say something from the beginning
            near(hidden(lm, tokens), before, 1e-4)
        for _ in range(2):  # a second one, for the first moves only the half of a product that is not zero
            torch.enable_grad()(update)(lm, tokens)
        after = hidden(lm, tokens)
    apart(after, before)
    if not chosen.whole:
        save_adapter(lm, tmp_path / "adapter")
        again = build(family)
        load_adapter(again, tmp_path / "adapter")
        again.model.eval()
        with torch.no_grad():
            near(hidden(again, tokens), after, 1e-4)  # sums in another order, after large steps
    if mergeable(attached(lm)["default"]):
        merge(lm)
        with torch.no_grad():
            near(hidden(lm, tokens), after, 1e-3)
