"""A language model with another head: reward and value models begin as copies of one that talks."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.model import Model, initialise
from dougong.parts.heads import Classifier, TokenClassifier


def with_task(lm: LanguageModel, task: Classifier | TokenClassifier, seed: int = 0) -> LanguageModel:
    """The same body under a fresh head for `task` instead of the one over the vocabulary. Weights are copied.

    The new head's weights start at 0, so that its first scores, and what they do to the body, are small.
    """
    spec = replace(lm.spec, head=None, task=task, mtp=None)
    model = initialise(Model(spec), seed)
    weights = lm.model.weights()
    with torch.no_grad():
        for name, parameter in model.weights().items():
            if name.startswith("task."):
                parameter.zero_()
            elif name in weights:
                parameter.copy_(weights[name])
            else:
                raise DougongError(f"the model has no weights {name}, which a body under another head needs")
    config = {key: value for key, value in lm.config.items() if key != "architectures"}
    return replace(lm, model=model, config=config)


def frozen_copy(model: Model) -> Model:
    """A copy that no training changes: the reference, or the policy as it was."""
    return copy.deepcopy(model).requires_grad_(False).eval()
